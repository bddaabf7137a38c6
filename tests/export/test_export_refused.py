"""What an export refuses, in one line, leaving everything as it was."""

import json
import os
import pickle
import resource
import shutil

import pytest
from safetensors.torch import save_file
from tiny_export import write_final, write_results
from tiny_training import start

from speechbrain_ext.adaptation import inject_lora
from speechbrain_ext.export.folder import export_model
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.scoring.cohort import Cohort, load_cohort, save_cohort
from speechbrain_ext.utils.errors import InputError, command_line

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def final(tmp_path_factory):
    """A trained model. Only to be read."""
    return write_final(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, final):
    """Its verification. Only to be read."""
    return write_results(tmp_path_factory.mktemp("run") / "verify", final)


@pytest.fixture
def results(run, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(run, tmp_path / "verify")


def refused(match, *words, **options):
    with pytest.raises(InputError, match=match) as caught:
        export_model(*words, **options)
    assert "\n" not in str(caught.value)


def test_the_place_of_something_else(final, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    trained = shutil.copytree(final, tmp_path / "final")
    before = sorted(tmp_path.rglob("*"))
    for name in ("file", "folder", "final"):
        refused(f"{name}: .* not an exported folder", final, tmp_path / name)
    refused("final: .* not an exported folder", trained, trained)
    for name in (".", "..", tmp_path / ".."):
        refused("expected the name of a folder|not an exported", final, name)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_export_is_kept(final, tmp_path):
    out = tmp_path / "m"
    export_model(final, out)
    refused("m: is an export already", out, tmp_path / "b")
    (out / "LICENSE").write_text("mine")
    refused("m: holds LICENSE", final, out)
    assert (out / "LICENSE").read_text() == "mine"
    (out / "LICENSE").unlink()
    (out / ".git").mkdir()
    refused(r"m: holds \.git", final, out)


def test_lora_that_is_not_merged(final, tmp_path):
    folder = shutil.copytree(final, tmp_path / "final")
    model = load_pretrained(folder)
    inject_lora(model.encoder, r=2)
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, folder / "speaker_encoder.safetensors")
    refused(r"safetensors: LoRA layers are not", folder, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_no_pretrained_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    refused("no hyperparams.yaml", tmp_path / "empty", tmp_path / "m")
    refused("absent: no such folder", tmp_path / "absent", tmp_path / "m")


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        ("{", "JSON"),
        ("[1]", r"\[1\]"),
        ("\x00", "JSON"),
        ('{"speakers": "id1"}', "speakers is 'id1'"),
        ('{"epoch": "last"}', "epoch is 'last'"),
        ('{"converted_from": 3}', "converted_from is 3"),
    ],
)
def test_a_damaged_training_file(final, tmp_path, content, culprit):
    folder = shutil.copytree(final, tmp_path / "final")
    (folder / "training.json").write_text(content)
    refused(rf"training\.json: .*{culprit}", folder, tmp_path / "m")


def test_no_training_file_is_none_known(final, tmp_path):
    folder = shutil.copytree(final, tmp_path / "other")
    (folder / "training.json").unlink()
    export_model(folder, tmp_path / "m")
    assert "Nothing is known of it." in (tmp_path / "m/README.md").read_text()


# ---- results -------------------------------------------------------------------------


def test_results_of_other_weights(final, results, tmp_path):
    other = write_final(tmp_path, seed=5)
    match = r"results\.json: .*other weights.*stage9/final/speaker_encoder\.safetensors"
    refused(match, other, tmp_path / "m", results)


def test_results_that_do_not_say_whose_they_are(final, tmp_path, caplog):
    results = write_results(tmp_path / "verify")
    export_model(final, tmp_path / "m", results)
    assert "results.json does not say which weights it is of" in caplog.text


def test_a_cohort_of_another_width(final, results, tmp_path):
    speakers, vectors, mean = load_cohort(results / "cohort.npz")
    save_cohort(results / "cohort.npz", Cohort(speakers, vectors[:, :5], mean[:5]))
    refused("final: embeddings of 8 values and a cohort of 5", final, "m", results)


def test_no_results(final, tmp_path):
    refused(r"results\.json: No such file", final, tmp_path / "m", tmp_path)


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        (lambda about: about.clear(), "no lists"),
        (lambda about: about.update(lists=[]), r"lists is \[\]"),
        (lambda about: about.update(lists=3), "lists is 3"),
        (lambda about: about["lists"][0].pop("list"), "lists is"),
        (lambda about: about["lists"][0]["systems"][0].pop("eer_percent"), "lists is"),
        (lambda about: about["lists"][0]["systems"][0].update(cllr=None), "lists is"),
        (lambda about: about["lists"][0]["systems"][0].update(min_dcf=[1]), "lists is"),
        (lambda about: about.update(top_n="all"), "top_n is 'all'"),
        (lambda about: about.update(weights_sha256=3), "weights_sha256 is 3"),
        (lambda about: about.update(cohort=[1]), r"cohort is \[1\]"),
    ],
)
def test_results_of_another_shape(final, results, tmp_path, change, culprit):
    path = results / "results.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))
    refused(rf"results\.json: {culprit}", final, tmp_path / "m", results)
    path.write_text("{")
    refused(r"results\.json: .*verify\.py", final, tmp_path / "m", results)


@pytest.mark.parametrize("name", ["cohort.npz", "calibration.json"])
@pytest.mark.parametrize("damage", ["remove", "pickle"])
def test_a_damaged_back_end(final, results, tmp_path, name, damage):
    (results / name).unlink()
    if damage == "pickle":
        (results / name).write_bytes(pickle.dumps({}))
    refused(name, final, tmp_path / "m", results)
    assert not (tmp_path / "m").exists()


def test_damaged_calibration_scores(final, results, tmp_path):
    path = results / "calibration_scores_as_norm.npz"
    os.truncate(path, 100)
    refused("calibration_scores_as_norm.npz", final, tmp_path / "m", results)


# ---- card ----------------------------------------------------------------------------


def test_what_the_hub_would_not_take(final, tmp_path):
    for licence in ("Apache 2.0", "", "CC-BY"):
        refused(f"licence '{licence}', expected", final, "m", licence=licence)
    refused("language 'English', expected ISO 639", final, "m", languages=["English"])
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# mine", r"mine\.md: begins with '# mine'"),
        ("---\n$front_matter\n---\n$nothing", r"mine\.md: \$nothing"),
        ("---\n$front_matter\n---\nfor 5$", r"mine\.md: .* \$\$"),
    ],
)
def test_a_template_that_is_none(final, tmp_path, text, message):
    (tmp_path / "mine.md").write_text(text)
    refused(message, final, tmp_path / "m", card_template=tmp_path / "mine.md")
    refused("absent.md: No such file", final, "m", card_template="absent.md")
    (tmp_path / "mine.md").write_bytes(b"\xff\xfe")
    refused("mine.md: not UTF-8", final, "m", card_template=tmp_path / "mine.md")
    assert {path.name for path in tmp_path.iterdir()} == {"mine.md"}


def test_a_template_of_ones_own(final, tmp_path):
    text = "---\n$front_matter\n---\n$title costs 5 $$ {{ nothing }} {% raw\n"
    (tmp_path / "mine.md").write_text(text)
    export_model(final, tmp_path / "m", card_template=tmp_path / "mine.md")
    written = (tmp_path / "m/README.md").read_text()
    assert written.endswith("---\nm costs 5 $ {{ nothing }} {% raw\n")
    assert "library_name: speechbrain\n" in written


# ---- whole or absent -----------------------------------------------------------------


@command_line
def _export_on_a_full_disk(limit, *words):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    export_model(*words)


@pytest.mark.parametrize("limit", [500, 1500, 20000])
def test_a_full_disk_leaves_the_older_export(final, run, tmp_path, limit):
    """Full at the configuration, the card or thresholds, the weights."""
    out = tmp_path / "m"
    export_model(final, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    process = start(
        _export_on_a_full_disk, limit, final, out, run, stderr=tmp_path / "err"
    )
    process.join(60)
    assert process.exitcode == 1
    line = (tmp_path / "err").read_text().splitlines()[-1]
    assert line.startswith("error: ")
    assert str(out) in line
    assert ".m.new" not in line
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"m", "err"}


def test_an_error_leaves_nothing(final, run, tmp_path, monkeypatch):
    def broken(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("speechbrain_ext.export.folder.save_thresholds", broken)
    with pytest.raises(OSError, match="No space left") as caught:
        export_model(final, tmp_path / "m", run)
    assert caught.value.filename == str(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
