"""Folders that are damaged, partial or hostile: one line, or what is left works."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pretrained import Malice, empty, garbage, hostile
from tiny_verifier import CPU, load, write_voice

from speechbrain_ext.inference import SpeakerVerifier
from speechbrain_ext.inference.thresholds import load_thresholds
from speechbrain_ext.scoring.cohort import Cohort, save_cohort
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def hostile_array(path):
    with open(path, "wb") as file:
        np.savez(file, speakers=np.array([Malice()], dtype=object))


@pytest.mark.parametrize("damage", [garbage, empty, hostile, hostile_array])
@pytest.mark.parametrize(
    "name",
    [
        "speaker_encoder.safetensors",
        "speaker_encoder.ckpt",
        "encoder_config.json",
        "hyperparams.yaml",
        "calibration.json",
        "cohort.npz",
        "thresholds.json",
    ],
)
def test_a_damaged_file_is_one_line(folder, name, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.endswith(".ckpt"):
        (folder / "speaker_encoder.safetensors").unlink()
    damage(folder / name)
    with pytest.raises(InputError) as caught:
        load(folder)
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "malice").exists()


def written(name, text):
    """A file of the folder holds something else."""

    def mutate(folder):
        (folder / name).write_text(text)
        return {}

    return mutate


def given(**options):
    """What from_hparams is called with."""
    return lambda folder: options


@pytest.mark.parametrize(
    ("mutate", "culprit"),
    [
        (written("hyperparams.yaml", "# nothing"), r"hyperparams\.yaml: .*key: value"),
        (written("hyperparams.yaml", "- a\n- b\n"), r"hyperparams\.yaml: .*key: value"),
        (written("hyperparams.yaml", "words"), r"hyperparams\.yaml: .*key: value"),
        (
            written("encoder_config.json", "{}"),
            r"encoder_config\.json: \w+ is None, exp",
        ),
        (written("encoder_config.json", "[1]"), r"encoder_config\.json: all of it is"),
        (given(overrides="min_seconds: 3"), "overrides: 'min_seconds: 3', expected a"),
        (given(overrides=[("min_seconds", 3)]), r"overrides: \[.*expected a dict"),
        (given(overrides={"pretrained_path": "x"}), "overrides: pretrained_path, exp"),
        (given(run_opts="cpu"), "run_opts: 'cpu', expected a dict"),
        (given(run_opts={"devise": "cpu"}), "run_opts: 'devise', expected .*device"),
        (given(run_opts={1: "cpu"}), "run_opts: 1, expected"),
        (given(run_opts={"device": 0.5}), r"device 0\.5, expected cpu"),
        (given(source=None), "source: None, expected a model's folder or owner/name"),
        (given(source=3), "source: 3, expected a model's folder"),
        (given(source="~nobody-here/x"), "~nobody-here/x: no such folder"),
        (given(source="long" * 1000), "longlong: no such folder"),
    ],
)
def test_what_is_of_another_kind_is_one_line(folder, mutate, culprit):
    options = {"source": folder, "run_opts": CPU, **mutate(folder)}
    with pytest.raises(InputError, match=culprit) as caught:
        SpeakerVerifier.from_hparams(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["speaker_encoder.safetensors", "encoder_config.json", "hyperparams.yaml"]
)
def test_a_needed_file_that_is_missing_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        load(folder)


@pytest.mark.parametrize(
    ("absent", "kinds"),
    [
        (["calibration.json"], ["cosine", "as_norm"]),
        (["calibration.json", "cohort.npz"], ["cosine"]),
        (["thresholds.json"], ["cosine", "as_norm", "llr"]),
        (["training.json"], ["cosine", "as_norm", "llr"]),
    ],
)
def test_a_folder_without_its_optional_files_works(folder, absent, kinds, tmp_path):
    for name in absent:
        (folder / name).unlink()
    verifier = load(folder)
    assert verifier.kinds == kinds
    paths = [write_voice(tmp_path / f"{n}.wav", n) for n in range(2)]
    found = verifier.compare(*paths)
    assert (found.llr is None) == ("llr" not in kinds)
    assert found.score == kinds[-1]


def test_a_calibrator_without_its_cohort_is_refused(folder):
    (folder / "cohort.npz").unlink()
    with pytest.raises(
        InputError,
        match=r"calibration\.json: calibrates as_norm_4, .* expected cosine, .* "
        r"with cohort\.npz absent",
    ):
        load(folder)


def test_a_cohort_of_another_model_is_refused(folder):
    random = np.random.default_rng(0)
    vectors = random.standard_normal((8, 9)).astype(np.float32)
    names = np.array([f"s{number}" for number in range(8)])
    save_cohort(folder / "cohort.npz", Cohort(names, vectors, vectors.mean(0)))
    with pytest.raises(InputError, match=r"cohort\.npz: the model: embeddings of 8"):
        load(folder)
    few = Cohort(names[:3], vectors[:3, :8], vectors[0, :8])
    save_cohort(folder / "cohort.npz", few)
    with pytest.raises(
        InputError, match=r"cohort\.npz: cohort of 3 speakers, expected"
    ):
        load(folder)


def test_weights_that_do_not_fit_are_an_error_with_the_keys(folder):
    for name, sign in (("encoder_config.json", '"'), ("hyperparams.yaml", "")):
        layers = f"num_hidden_layers{sign}: "
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(f"{layers}1", f"{layers}3"))
    with pytest.raises(
        InputError, match=r"weights do not fit: \d+ missing: .*layers\.1"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"min_seconds": 0.01}, r"min_seconds is 0\.01, expected at least 0\.035"),
        ({"hop_seconds": 61}, "hop_seconds is 61, expected above 0"),
        ({"sample_rate": 8000}, "sample_rate is 8000, expected 16000"),
        ({"as_norm_top_n": -3}, "as_norm_top_n is -3, expected a whole number of at"),
        ({"as_norm_top_n": 2.5}, r"as_norm_top_n is 2\.5, expected a whole number"),
        ({"nothing": 1}, "nothing"),
    ],
)
def test_settings_out_of_range_name_the_file(folder, overrides, expected):
    with pytest.raises(InputError, match=rf"hyperparams\.yaml: .*{expected}"):
        load(folder, overrides=overrides)


def test_a_module_of_another_kind_is_refused(folder):
    path = folder / "hyperparams.yaml"
    text = path.read_text()
    start = text.index("speaker_encoder: !new")
    model = "speaker_encoder: !new:torch.nn.Identity\n"
    path.write_text(text[:start] + model)
    (folder / "speaker_encoder.safetensors").unlink()
    torch.save({}, folder / "speaker_encoder.ckpt")
    with pytest.raises(InputError, match="is a Identity, expected a SpeakerEncoder"):
        load(folder)


def test_a_file_that_the_yaml_file_wants_is_named(folder):
    path = folder / "hyperparams.yaml"
    path.write_text("x: !apply:builtins.open [absent.txt]\n" + path.read_text())
    with pytest.raises(InputError, match=r"params\.yaml: absent\.txt: No such file"):
        load(folder)


def test_yaml_is_code_and_no_other_file_is(folder, tmp_path):
    """As everywhere in SpeechBrain, and as the documentation says."""
    path = folder / "hyperparams.yaml"
    run = f"x: !apply:os.mkdir [{tmp_path / 'ran'}]\n"
    path.write_text(run + path.read_text())
    load(folder)
    assert (tmp_path / "ran").is_dir()


# ---- what looks like something else --------------------------------------------------


def changed(path, change):
    """A JSON file with something changed."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("name", ["calibration.json", "cohort.npz", "thresholds.json"])
def test_a_link_to_nothing_is_not_taken_for_a_file_that_was_left_out(folder, name):
    (folder / name).unlink()
    (folder / name).symlink_to("blobs/absent")
    with pytest.raises(InputError, match=f"{name}: No such file"):
        load(folder)


def test_a_calibrator_whose_inputs_are_in_another_order(folder):
    def turned(values):
        values["names"] = values["names"][1:] + values["names"][:1]

    changed(folder / "calibration.json", turned)
    with pytest.raises(
        InputError, match=r"calibration\.json: calibrates 'duration_min' first, expect"
    ):
        load(folder)


def test_a_list_in_the_place_of_a_number_is_not_printed_in_full(folder):
    path = folder / "thresholds.json"
    points = list(range(5000))
    changed(path, lambda values: values["scores"]["cosine"].update(eer=points))
    with pytest.raises(
        InputError, match=r"cosine\.eer is \[0, 1, .*\], expected a"
    ) as caught:
        load_thresholds(path)
    assert len(str(caught.value)) < 300


def test_even_odds_are_a_threshold_of_nought(folder, tmp_path):
    (folder / "thresholds.json").unlink()
    path = write_voice(tmp_path / "a.wav")
    found = load(folder).compare(path, path, score="llr")
    assert str(found.threshold) == "0.0"


def edited(folder, edit):
    """The folder's weights, changed."""
    path = folder / "speaker_encoder.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path)


def test_lora_that_is_not_merged(folder):
    lora = "encoder.encoder.layers.0.self_attn.linear_q.lora_A.default.weight"
    edited(folder, lambda weights: weights.update({lora: torch.zeros(2, 16)}))
    with pytest.raises(InputError, match=r"safetensors: LoRA layers are not merged"):
        load(folder)


def test_whole_numbers_are_no_weights(folder):
    """Cast, most of them would be 0."""
    name = "head.bottleneck.weight"
    edited(folder, lambda weights: weights.update({name: weights[name].int()}))
    with pytest.raises(
        InputError, match=f"1 of the wrong type: {name} torch.int32 instead of torch.fl"
    ):
        load(folder)
