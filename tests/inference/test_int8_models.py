"""precision int8: verifier and detector, from a folder, in Python and by command."""

import json

import pytest
import torch
from tiny_detector import load_detector, make_detector
from tiny_verifier import load, make_whole, write_voice

from speechbrain_ext.__main__ import main
from speechbrain_ext.inference import SpeakerVerifier
from speechbrain_ext.inference.folder import checked_run_opts
from speechbrain_ext.inference.voices import Voices
from speechbrain_ext.lobes.ecapa import ECAPA
from speechbrain_ext.lobes.heads import MFA
from speechbrain_ext.lobes.int8 import Int8Linear, largest_weight
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.pretrained import load_pretrained, save_pretrained
from speechbrain_ext.pruning import Budget, add_gates, harden, prune
from speechbrain_ext.utils.errors import InputError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(largest_weight() is None, reason="no 8-bit products here"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model's folder with a back-end; only to be read."""
    return make_whole(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def wavs(tmp_path_factory):
    """Two takes of one voice, one of another, of three lengths."""
    folder = tmp_path_factory.mktemp("wavs")
    return [
        write_voice(folder / f"{name}.wav", number, seconds, seed)
        for name, number, seconds, seed in (
            *(("a1", 20, 1.0, 0), ("a2", 20, 0.7, 1), ("b", 25, 0.4, 2)),
        )
    ]


def nearly(found, exact):
    """Close, and not the same."""
    cosine = torch.nn.functional.cosine_similarity(found, exact, -1)
    return bool((cosine > 0.999).all()) and not torch.equal(found, exact)


def eight_bits(verifier):
    layers = [m for m in verifier.modules() if isinstance(m, Int8Linear)]
    return verifier.precision == "int8" and bool(layers)


def test_a_verifier_in_8_bits(whole, wavs):
    exact, found = load(whole), load(whole, precision="int8")
    assert eight_bits(found)
    assert found.device == "cpu"
    both = [verifier.encode_files(wavs) for verifier in (found, exact)]
    assert nearly(*both)
    alone = torch.cat([found.encode_files([wav]) for wav in wavs])
    assert (both[0] - alone).norm() < 1e-2 * alone.norm()
    decided = found.compare(wavs[0], wavs[1])
    assert decided.cosine == pytest.approx(exact.compare(*wavs[:2]).cosine, abs=5e-3)
    assert decided.llr is not None
    options = SpeakerVerifier.from_hparams(whole, run_opts={"precision": "int8"})
    assert torch.equal(options.encode_files(wavs), both[0])


def test_a_pruned_model_in_8_bits(whole, wavs, tmp_path):
    model = load_pretrained(whole)
    add_gates(model.encoder)
    harden(Budget(model.encoder, sparsity=0.4))
    model.encoder = prune(model.encoder)
    options = {"inference": {"speech_detection": False}}
    folder = save_pretrained(tmp_path / "pruned", model.eval(), **options)
    both = [load(folder, precision=p).encode_files(wavs) for p in ("int8", "fp32")]
    assert nearly(*both)


def test_a_detector_in_8_bits(wavs, tmp_path):
    folder = make_detector(tmp_path / "detector")
    found = load_detector(folder, precision="int8")
    assert eight_bits(found)
    exact = load_detector(folder).score_files(wavs)
    assert abs(found.score_files(wavs) - exact).max() < 0.05 * abs(exact).max()


def test_enrolled_voices_are_those_of_either_precision(whole, wavs, tmp_path):
    """As of bf16: the same model, whose embeddings can be compared."""
    exact, path = load(whole), tmp_path / "voices.safetensors"
    voices = Voices(exact)
    voices.add("Anna", wavs[:1])
    voices.save(path)
    found = load(whole, precision="int8")
    assert Voices.load(path, found).names == ["Anna"]


def test_the_commands(whole, wavs, tmp_path, capsys):
    words = ["--source", str(whole), "--precision", "int8"]
    main(["verify", *wavs[:2], *words])
    found = json.loads(capsys.readouterr().out)
    expected = load(whole, precision="int8").compare(*wavs[:2])
    assert found["scores"]["cosine"] == expected.cosine
    detector = str(make_detector(tmp_path / "detector"))
    main(["detect", wavs[0], "--source", detector, "--precision=int8"])
    assert json.loads(capsys.readouterr().out)
    with pytest.raises(SystemExit):
        main(["verify", *wavs[:2], "--source", str(whole), "--precision=int4"])
    assert "precision 'int4', expected one of fp32" in capsys.readouterr().err


def test_what_has_no_8_bits(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"int8 on cuda:0: .* expected cpu"):
        checked_run_opts({"device": "cuda:0", "precision": "int8"})
    with pytest.raises(InputError, match="has no gradients, expected freeze_params"):
        load(whole, precision="int8", freeze_params=False)
    encoder = ECAPA([16, 24, 24, 24, 20], n_mels=9)
    model = SpeakerEncoder(encoder, MFA(encoder.hidden_size, 1, 4, pooling_size=3))
    folder = save_pretrained(tmp_path / "ecapa", model.eval())
    with pytest.raises(InputError, match="ECAPA has no layers that multiply in 8"):
        load(folder, precision="int8")
