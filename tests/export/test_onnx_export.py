"""An exported graph computes what its model computes, for any length and batch."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny_encoder import noise
from tiny_onnx import MODELS, mfa, pruned

from speechbrain_ext import __version__
from speechbrain_ext.__main__ import main
from speechbrain_ext.export.onnx.build import graph_halves
from speechbrain_ext.export.onnx.check import check_against_torch
from speechbrain_ext.export.onnx.export import export_onnx
from speechbrain_ext.features import W2VBertFeatures
from speechbrain_ext.lobes.conformer import RelativeKeyAttention
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 16000


def session(file):
    """onnxruntime as a user without our runner has it, in one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options)


def by_torch(model, wavs, wav_lens=None):
    with torch.inference_mode():
        return model(wavs, wav_lens).squeeze(1).numpy()


def largest(one, other):
    return float(np.abs(one - other).max())


@pytest.fixture(params=MODELS, scope="module")
def pair(request, onnx_models):
    """A model and the session of its file."""
    model, file, _ = onnx_models(request.param)
    return model, session(file)


def test_the_pruned_model_has_uneven_layers_and_missing_parts():
    layers = pruned().encoder.encoder.layers
    assert layers[0].self_attn is None
    assert layers[1].ffn1 is None
    assert layers[2].conv_module is None
    assert len({layer.shape.ffn2 for layer in layers}) == 3


def test_equals_torch_for_lengths_of_every_kind(pair):
    model, graph = pair
    # all residues of two frames are seen by lengths around them, 5 and 20 s besides
    lengths = [1840, 2000, 2001, *range(RATE, RATE + 320, 29), 5 * RATE + 77, 20 * RATE]
    for number, length in enumerate(lengths):
        wavs = 0.1 * noise(1, length, seed=number)
        (found,) = graph.run(None, {"wavs": wavs.numpy()})
        assert found.shape == (1, 7)
        assert largest(found, by_torch(model, wavs)) < 1e-4, length


def test_the_shortest_recording(onnx_models):
    model, file, report = onnx_models("pruned")
    assert report["min_samples"] == 560
    wavs = 0.1 * noise(2, 560)
    (found,) = session(file).run(None, {"wavs": wavs.numpy()})
    assert largest(found, by_torch(model, wavs)) < 1e-4


def test_a_padded_batch_equals_its_single_recordings(pair):
    model, graph = pair
    samples = [2 * RATE + 11, RATE + 7, 2100]
    wavs = 0.1 * noise(3, samples[0])
    padded = wavs.clone()
    for row, length in zip(padded, samples):
        row[length:] = float("nan")  # what lies there has no effect
    lens = np.float32(np.array(samples) / samples[0])
    (found,) = graph.run(None, {"wavs": padded.numpy(), "wav_lens": lens})
    for row, wav, length in zip(found, wavs, samples):
        alone = wav[None, :length]
        assert largest(row, by_torch(model, alone)) < 1e-4
        (single,) = graph.run(None, {"wavs": alone.numpy()})
        assert largest(row, single) < 1e-5


def test_full_rows_need_no_lengths(pair):
    model, graph = pair
    wavs = 0.1 * noise(3, RATE + 5)
    (without,) = graph.run(None, {"wavs": wavs.numpy()})
    for lens in (np.ones(3, np.float32), np.ones(1, np.float32)):
        (found,) = graph.run(None, {"wavs": wavs.numpy(), "wav_lens": lens})
        np.testing.assert_array_equal(found, without)
    assert largest(without, by_torch(model, wavs)) < 1e-4


@pytest.mark.parametrize("level", [1.0, 1e-2, 1e-5, 0.0])
def test_loud_and_quiet_recordings(onnx_models, level):
    model, file, _ = onnx_models("mfa")
    time = torch.arange(RATE) / RATE
    tone = torch.sin(2 * torch.pi * 440 * time)  # beside it, most mel bins are silent
    wavs = level * (tone + 1e-6 * noise(RATE) + 0.3)[None] / 1.3
    (found,) = session(file).run(None, {"wavs": wavs.numpy()})
    assert largest(found, by_torch(model, wavs)) < 1e-4


@pytest.mark.parametrize("normalise_variance", [True, False])
def test_features_in_one_product_equal_those_of_the_model(normalise_variance):
    own = W2VBertFeatures(normalise_variance)
    model = mfa()
    model.encoder.features = own
    graph, _ = graph_halves(model)
    wavs = 0.1 * noise(3, RATE + 200)  # 98.75 hops: the last frame has no partner
    lens = torch.tensor([1.0, 0.51, 0.035])
    expected, expected_lens = own(wavs, lens)
    found, found_lens = graph(wavs, lens)
    frames = (expected_lens * expected.shape[1]).round().long()
    assert (found_lens * found.shape[1]).round().tolist() == frames.tolist()
    for one, other, n in zip(found, expected, frames):
        assert (one[:n] - other[:n]).abs().max() < 2e-5


def test_the_file_says_what_a_service_must_know(onnx_models):
    model, file, report = onnx_models("ecapa")
    said = {p.key: p.value for p in onnx.load(file).metadata_props}
    assert said["sample_rate"] == "16000"
    assert said["embedding_size"] == "7"
    assert said["min_samples"] == "1840"
    assert said["speechbrain_ext_version"] == __version__
    size = sum(p.numel() for p in model.encoder.parameters())
    assert int(said["encoder_parameters"]) == size
    with pytest.raises(InputError, match="a row of 4 frames"):
        model(noise(1, 1839))
    assert report["fp32_bytes"] == file.stat().st_size
    assert report["max_difference"] < 1e-4
    assert json.loads(file.with_suffix(".json").read_text()) == report


def test_inputs_and_output_are_named_and_free_in_size(onnx_models):
    _, file, _ = onnx_models("pruned")
    graph = session(file)
    (wavs,) = graph.get_inputs()
    (lens,) = graph.get_overridable_initializers()
    (embeddings,) = graph.get_outputs()
    assert (wavs.name, wavs.shape) == ("wavs", ["batch", "samples"])
    assert lens.name == "wav_lens"
    assert (embeddings.name, embeddings.shape) == ("embeddings", ["batch", 7])


def test_the_command_leaves_file_report_and_speech_detector_alone(onnx_models):
    _, file, _ = onnx_models("pruned")
    names = sorted(path.name for path in file.parent.iterdir())
    detector = ["silero_vad.LICENSE.txt", "silero_vad.onnx"]
    assert names == ["model", "model.json", "model.onnx", *detector]
    assert "MIT License" in file.with_name(detector[0]).read_text()
    onnx.checker.check_model(str(file.with_name(detector[1])))


def test_the_graph_shares_weights_and_leaves_the_model_as_it_is():
    model = pruned()
    before = by_torch(model, 0.1 * noise(1, RATE))
    _, embedding = graph_halves(model)
    own = {id(p) for p in model.parameters()}
    assert {id(p) for p in embedding.parameters()} == own
    attention = model.encoder.encoder.layers[1].self_attn
    assert type(attention) is RelativeKeyAttention
    assert type(model.encoder.features) is W2VBertFeatures
    np.testing.assert_array_equal(by_torch(model, 0.1 * noise(1, RATE)), before)


def test_another_model_is_told_apart(onnx_models):
    model, file, _ = onnx_models("pruned")
    other = load_pretrained(file.parent / "model")
    with torch.no_grad():
        other.head.bottleneck.weight[0, 0] += 0.01
    assert check_against_torch(model, file)["max_difference"] < 1e-4
    with pytest.raises(InputError, match=r"differ from torch's by .*expected 0\.0001"):
        check_against_torch(other, file)


def test_a_missing_package_is_one_line_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"onnxscript is missing.*\.\[onnx\]"):
        export_onnx(mfa(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_name_without_onnx_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"model\.pt: expected a name that ends in"):
        export_onnx(mfa(), tmp_path / "model.pt")


def test_an_output_below_a_file_is_one_line(tmp_path, onnx_models, capsys):
    _, file, _ = onnx_models("pruned")
    (tmp_path / "taken").write_text("a file")
    output = tmp_path / "taken" / "model.onnx"
    with pytest.raises(SystemExit) as stopped:
        main(["onnx", "--source", str(file.parent / "model"), "--output", str(output)])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == f"error: {output}: Not a directory\n"
