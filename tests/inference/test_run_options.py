"""Devices and precision: chosen, respected, refused where the machine has them not."""

import logging

import pytest
import torch
from speechbrain.utils.run_opts import RunOptions
from tiny_verifier import load, make_folder

from speechbrain_ext.inference import SpeakerVerifier
from speechbrain_ext.inference.folder import checked_run_opts
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model's folder; only to be read."""
    return make_folder(tmp_path_factory.mktemp("whole") / "final")


def wavs():
    return torch.randn(2, 8000, generator=torch.Generator().manual_seed(3))


def test_run_options_are_respected(whole):
    verifier = load(whole)
    assert verifier.device == "cpu"
    assert all(p.device.type == "cpu" for p in verifier.parameters())
    options = RunOptions.from_dictionary({"device": "cpu", "noprogressbar": True})
    verifier = SpeakerVerifier.from_hparams(whole, run_opts=options)
    assert verifier.device == "cpu"
    assert verifier.noprogressbar
    trainable = load(whole, freeze_params=False)
    assert all(p.requires_grad for p in trainable.parameters())


def test_a_device_is_chosen_where_none_is_named(whole):
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    assert SpeakerVerifier.from_hparams(whole).device == device


def test_half_precision_that_a_cpu_emulates_is_single(whole, caplog, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    options = {"device": "cpu", "precision": "bf16"}
    with caplog.at_level(logging.WARNING):
        verifier = SpeakerVerifier.from_hparams(whole, run_opts=options)
    assert "precision fp32 instead of bf16 on cpu" in caplog.text
    expected = load(whole).encode_batch(wavs())
    assert torch.equal(verifier.encode_batch(wavs()), expected)
    assert options == {"device": "cpu", "precision": "bf16"}  # the caller's own


def test_bf16_on_a_cpu_that_has_it(whole, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    options = {"device": "cpu", "precision": "bf16"}
    verifier = SpeakerVerifier.from_hparams(whole, run_opts=options)
    expected, found = load(whole).encode_batch(wavs()), verifier.encode_batch(wavs())
    assert found.dtype == torch.float32
    assert 0 < (found - expected).norm() / expected.norm() < 0.1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"device": "cuda:99"}, r"device 'cuda:99', but this machine has \d+ GPU"),
        ({"device": "toaster"}, "device 'toaster', expected cpu, cuda or cuda:0"),
        (
            {"device": "cpu", "precision": "fp8"},
            "precision 'fp8', expected one of fp32, bf16, fp16, int8",
        ),
    ],
)
def test_run_options_that_this_machine_has_not(whole, options, expected):
    with pytest.raises(InputError, match=expected):
        SpeakerVerifier.from_hparams(whole, run_opts=options)
    with pytest.raises(InputError, match=expected):
        checked_run_opts(options)


@pytest.mark.parametrize("name", ["meta", "mps", "xpu", "hpu", "vulkan"])
def test_a_device_that_torch_knows_by_name_alone(whole, name):
    if name != "meta" and getattr(getattr(torch, name, None), "is_available", bool)():
        pytest.skip(f"a GPU of this kind is there: {name}")
    with pytest.raises(InputError, match=f"^device '{name}', .*expected cpu or cuda$"):
        SpeakerVerifier.from_hparams(whole, run_opts={"device": name})
