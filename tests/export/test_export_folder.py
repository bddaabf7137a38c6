"""An exported folder: what is in it, what it computes, what stays at home."""

import json
import os
import shutil
import socket

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_export import HELD_OUT, TRAINED, names_of, write_final, write_results

from speechbrain_ext.__main__ import main
from speechbrain_ext.export.folder import export_model, halved, is_export, lowest_cosine
from speechbrain_ext.inference import SpeakerVerifier
from speechbrain_ext.inference.thresholds import Thresholds, load_thresholds
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.pretrained import (
    load_pretrained,
    save_pretrained,
)
from speechbrain_ext.pruning import Budget, add_gates, harden, prune
from speechbrain_ext.scoring.backend import TrialSide
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.cohort import load_cohort
from speechbrain_ext.scoring.score_files import read_score_table
from speechbrain_ext.training.classifiers import load_classifier
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = {
    *("README.md", "hyperparams.yaml", "encoder_config.json", "training.json"),
    "custom_interface.py",
    "speaker_encoder.safetensors",
}
BACKEND = {"cohort.npz", "calibration.json", "thresholds.json"}


@pytest.fixture(scope="module")
def final(tmp_path_factory):
    """A trained model. Only to be read."""
    return write_final(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def results(tmp_path_factory, final):
    """Its verification. Only to be read."""
    return write_results(tmp_path_factory.mktemp("run") / "verify", final)


def wavs():
    return torch.randn(3, 8000, generator=torch.Generator().manual_seed(5))


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, final, results):
    """(folder, facts) of an export of both. Only to be read."""
    out = tmp_path_factory.mktemp("exports") / "my-model"
    return out, export_model(final, out, results)


def test_everything(final, whole):
    out, facts = whole
    assert names(out) == MODEL | BACKEND == set(facts.files)
    assert names(out.parent) == {"my-model"}
    assert is_export(out)
    assert not is_export(final)
    lens = torch.tensor([1.0, 0.8, 0.9])
    expected = load_pretrained(final)(wavs(), lens)
    assert torch.equal(load_pretrained(out)(wavs(), lens), expected)
    verifier = SpeakerVerifier.from_hparams(out, run_opts={"device": "cpu"})
    source = SpeakerVerifier.from_hparams(final, run_opts={"device": "cpu"})
    expected = source.encode_batch(wavs(), lens)
    assert torch.equal(verifier.encode_batch(wavs(), lens), expected)
    assert verifier.kinds == ["cosine", "as_norm", "llr"]
    assert verifier.backend.top_n == 4
    assert set(verifier.thresholds) == {"cosine", "as_norm", "llr"}
    assert facts.sizes["weight_type"] == "float32"
    weights = out / "speaker_encoder.safetensors"
    assert facts.sizes["bytes"] == weights.stat().st_size
    modes = {path.stat().st_mode for path in out.iterdir()}
    assert len(modes) == 1  # who may read the card may read the weights


def test_the_back_end_scores_as_in_the_verification(results, whole):
    backend = SpeakerVerifier.from_hparams(whole[0]).backend
    calibrator = QualityCalibrator.load(results / "calibration.json")
    assert np.array_equal(backend.calibrator.weights, calibrator.weights)
    cohort = load_cohort(results / "cohort.npz")
    assert np.array_equal(backend.cohort.vectors, cohort.vectors)
    side = TrialSide(np.eye(8, dtype=np.float32), np.full(8, 3.0))
    scores = backend.scores(side, side, np.array([[0, 1]]))
    assert list(scores) == ["cosine", "as_norm", "llr"]


def test_thresholds_are_those_of_the_held_out_trials(results, whole):
    out, facts = whole
    for kind, curve in load_thresholds(out / "thresholds.json").items():
        trials, scores = read_score_table(results / f"calibration_scores_{kind}.npz")
        assert {n[:4] for n in trials.names.tolist()} == set(names_of(HELD_OUT))
        expected = Thresholds.from_scores(scores, trials.labels)
        assert curve.to_dict() == expected.to_dict() == facts.thresholds[kind].to_dict()
    assert f"of {len(HELD_OUT)} speakers, held out" in facts.threshold_source


def test_no_name_of_a_speaker_leaves(final, results, whole):
    out, _ = whole
    content = b"".join(path.read_bytes() for path in out.iterdir())
    for name in names_of([*TRAINED, *HELD_OUT]):
        assert name.encode() not in content
        assert name.encode("utf-32-le") not in content  # as numpy stores text
    for path in (final, results):
        assert str(path.parent).encode() not in content
    training = json.loads((out / "training.json").read_text())
    assert training["n_speakers"] == len(TRAINED)
    assert (training["epoch"], training["stage"]) == (7, "stage9")
    assert not {"speakers", "n_speeds"} & set(training)
    cohort = load_cohort(out / "cohort.npz")
    assert cohort.speakers[:2].tolist() == ["speaker_000001", "speaker_000002"]


def test_with_the_classifier_training_goes_on(final, results, tmp_path):
    out = tmp_path / "m"
    facts = export_model(final, out, results, with_classifier=True)
    assert names(out) == MODEL | BACKEND | {"classifier.safetensors"}
    assert "classifier.safetensors" in facts.files
    classifier = ArcFace(8, 2)
    load_classifier(out, classifier, ["id03", "id01"], 1)
    rows = load_file(final / "classifier.safetensors")["weight"][[3, 1]]
    assert torch.equal(classifier.weight, rows)
    assert load_cohort(out / "cohort.npz").speakers.tolist() == names_of(TRAINED)


def test_no_classifier_to_export(final, tmp_path):
    bare = save_pretrained(tmp_path / "bare", load_pretrained(final))
    with pytest.raises(InputError, match=r"bare: no classifier\.safetensors to export"):
        export_model(bare, tmp_path / "m", with_classifier=True)
    assert names(tmp_path) == {"bare"}


def test_without_results(final, tmp_path, caplog):
    facts = export_model(final, tmp_path / "m")
    assert names(tmp_path / "m") == MODEL
    assert "no thresholds.json: no results of verify.py were given" in caplog.text
    assert facts.lists == []
    assert SpeakerVerifier.from_hparams(tmp_path / "m").kinds == ["cosine"]


def test_without_the_cohort(final, results, tmp_path, caplog):
    facts = export_model(final, tmp_path / "m", results, with_cohort=False)
    assert names(tmp_path / "m") == MODEL | {"thresholds.json"}
    assert list(facts.thresholds) == ["cosine"]
    assert facts.cohort_size == 0
    for kind in ("as_norm", "llr"):
        assert f"no thresholds of {kind}: the folder does not give it" in caplog.text
    verifier = SpeakerVerifier.from_hparams(tmp_path / "m")
    assert (verifier.kinds, list(verifier.thresholds)) == (["cosine"], ["cosine"])


def test_a_calibration_of_cosines_stays_without_a_cohort(final, tmp_path):
    results = write_results(tmp_path / "verify", final, cohort=None)
    for with_cohort in (True, False):
        export_model(final, tmp_path / "m", results, with_cohort=with_cohort)
        assert names(tmp_path / "m") == MODEL | BACKEND - {"cohort.npz"}
    assert SpeakerVerifier.from_hparams(tmp_path / "m").kinds == ["cosine", "llr"]


def test_s_norm_takes_all(final, tmp_path):
    results = write_results(tmp_path / "verify", final, top_n=None)
    facts = export_model(final, tmp_path / "m", results)
    assert list(facts.thresholds) == ["cosine", "as_norm", "llr"]
    verifier = SpeakerVerifier.from_hparams(tmp_path / "m")
    assert verifier.backend.top_n is None
    assert "as_norm_top_n: null" in (tmp_path / "m/hyperparams.yaml").read_text()


def test_files_of_an_earlier_run(final, results, tmp_path):
    """verify.py --cohort=… --calibrator=…: results.json says where they are."""
    moved = tmp_path / "again"
    moved.mkdir()
    about = json.loads((results / "results.json").read_text())
    about["cohort"] = str(results / "cohort.npz")
    about["calibrator"] = str(results / "calibration.json")
    (moved / "results.json").write_text(json.dumps(about))
    facts = export_model(final, tmp_path / "m", moved)
    assert names(tmp_path / "m") == MODEL | BACKEND
    assert list(facts.thresholds) == ["cosine", "as_norm", "llr"]


def test_a_pruned_model(tmp_path):
    final = write_final(tmp_path, layers=2)
    model = load_pretrained(final)
    add_gates(model.encoder)
    harden(Budget(model.encoder, sparsity=0.3))
    model.encoder = prune(model.encoder)
    pruned = save_pretrained(tmp_path / "prune1/final", model)
    facts = export_model(pruned, tmp_path / "m")
    assert names(tmp_path / "m") == MODEL | {"structure.png"}
    expected = load_pretrained(pruned)(wavs())
    assert torch.equal(load_pretrained(tmp_path / "m")(wavs()), expected)
    assert facts.structure["parameters"] == facts.sizes["encoder"]
    card = (tmp_path / "m/README.md").read_text()
    assert "structure.png)" in card
    assert "- pruned\n" in card.split("---")[1]


def test_half(final, results, whole, tmp_path):
    facts = export_model(final, tmp_path / "b", results, half=True)
    assert facts.sizes["weight_type"] == "float16"
    assert facts.sizes["bytes"] < 0.7 * whole[1].sizes["bytes"]  # headers stay
    stored = load_file(tmp_path / "b/speaker_encoder.safetensors")
    model = load_pretrained(tmp_path / "b")
    halves = {name for name, t in stored.items() if t.dtype == torch.float16}
    assert halves == {name for name, _ in model.named_parameters()}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    original = load_pretrained(final)
    assert facts.sizes["cosine"] == lowest_cosine(original, model)
    assert 0.999 < facts.sizes["cosine"] < 1
    for name, value in halved(original).items():
        assert torch.equal(stored[name], value)
    assert "stored as float16" in (tmp_path / "b/README.md").read_text()
    assert "stored as" not in (whole[0] / "README.md").read_text()


def test_weights_beyond_float16(final, tmp_path):
    folder = shutil.copytree(final, tmp_path / "final")
    model = load_pretrained(folder)
    with torch.no_grad():
        next(model.head.parameters()).fill_(1e6)
    save_pretrained(folder, model)
    with pytest.raises(InputError, match=r"NaN or infinite weights in head"):
        export_model(folder, tmp_path / "m", half=True)
    assert names(tmp_path) == {"final"}


def test_how_alike_two_models_are(final, tmp_path):
    model = load_pretrained(final)
    assert lowest_cosine(model, model) == pytest.approx(1, abs=1e-12)
    other = load_pretrained(write_final(tmp_path, seed=4))
    assert lowest_cosine(model, other) < 0.9


def test_a_converted_checkpoint(final, tmp_path):
    origin = {"file": "x.pth", "sha256": "00", "licence": "CC BY-NC-SA 4.0"}
    training = {"speakers": [], "n_speeds": 1, "epoch": 3, "converted_from": origin}
    folder = save_pretrained(
        tmp_path / "conv", load_pretrained(final), training=training
    )
    export_model(folder, tmp_path / "m", licence="other")
    told = json.loads((tmp_path / "m/training.json").read_text())
    assert told["converted_from"] == origin
    assert not {"stage", "n_speakers"} & set(told)
    card = (tmp_path / "m/README.md").read_text()
    assert "converted from: CC BY-NC-SA 4.0." in card
    assert "published checkpoint, x.pth" in card


def test_the_stage_is_told_wherever_the_folder_lies(final, tmp_path):
    training = {"speakers": [], "n_speeds": 1, "stage": "stage3_lmft", "epoch": 2}
    for number, name in enumerate(("stage2_x/final", "my model")):
        folder = save_pretrained(
            tmp_path / name, load_pretrained(final), training=training
        )
        export_model(folder, tmp_path / f"m{number}")
        told = json.loads((tmp_path / f"m{number}/training.json").read_text())
        assert told["stage"] == "stage3_lmft"
        card = (tmp_path / f"m{number}/README.md").read_text()
        assert "- stage: stage3_lmft\n- epoch: 2\n" in card


def test_settings_of_recordings_are_kept(final, tmp_path):
    windows = {"window_seconds": 20.0, "hop_seconds": 10.0}
    model = load_pretrained(final)
    folder = save_pretrained(tmp_path / "f", model, inference=windows)
    export_model(folder, tmp_path / "m")
    rules = SpeakerVerifier.from_hparams(tmp_path / "m").chunking
    assert (rules.window_seconds, rules.hop_seconds) == (20.0, 10.0)
    folder = save_pretrained(folder, model, inference={"window_seconds": 20.0})
    with pytest.raises(InputError, match=r"f/hyperparams\.yaml: hop_seconds is 60"):
        export_model(folder, tmp_path / "m")


def test_an_export_is_replaced_with_all_its_files(final, results, tmp_path):
    out = tmp_path / "m"
    export_model(final, out, results)
    other = write_final(tmp_path, seed=3)
    export_model(other, out)
    assert names(out) == MODEL
    assert names(tmp_path) == {"m", "stage9"}
    assert torch.equal(load_pretrained(out)(wavs()), load_pretrained(other)(wavs()))


def test_a_relative_folder(final, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export_model(os.path.relpath(final), "m/", os.path.relpath(results))
    assert names(tmp_path / "m") == MODEL | BACKEND
    assert 'from_hparams("m")' in (tmp_path / "m/README.md").read_text()


def test_the_command(final, results, tmp_path, capsys):
    out = tmp_path / "m"
    words = ["export", f"--pretrained_folder={final}", f"--results={results}"]
    words += [f"--output={out}", "--name=me/voice", "--licence=mit", "--half"]
    words += ["--language", "en", "zh", "--training_data=Our Data", "--without_cohort"]
    main(words)
    found = capsys.readouterr()
    assert found.out == f"{out}\n"
    assert "thresholds: " in found.err
    assert "files: README.md, hyperparams.yaml, " in found.err
    card = (out / "README.md").read_text()
    for text in (
        "- zh\n",
        "license: mit",
        "- data: Our Data",
        '("me/voice")',
        "float16",
    ):
        assert text in card
    assert names(out) == MODEL | {"thresholds.json"}
    scores = f"--thresholds_from=llr={results}/scores_vox1_x_llr.npz"
    words = [*words[:4], scores, f"--trials={results}/vox1_x.txt"]
    main([*words, "--with_classifier"])
    assert names(out) == MODEL | BACKEND | {"classifier.safetensors"}
    assert list(load_thresholds(out / "thresholds.json")) == ["llr"]
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1"):
        main([*words[:4], "--trials=x.txt"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "error: --trials x.txt: expected --thresholds_from with it"


def test_no_network(final, results, tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("a network call")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    export_model(final, tmp_path / "m", results, half=True)
    SpeakerVerifier.from_hparams(tmp_path / "m")
