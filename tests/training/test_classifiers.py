"""The classifier in a model's folder: rows by name, handed on, damaged."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_pretrained import (
    DAMAGES,
    SPEAKERS,
    make_classifier,
    make_model,
    save_tiny,
    training,
)

from speechbrain_ext.data.labels import Classes
from speechbrain_ext.losses import ArcFace, SphereFace2
from speechbrain_ext.pretrained import (
    save_pretrained,
)
from speechbrain_ext.training.classifiers import (
    keep_classifier,
    load_classifier,
    read_training,
)
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    """A saved model of 4 speakers at 3 speeds."""
    return save_tiny(tmp_path / "final")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["classifier.safetensors", "training.json"])
def test_a_damaged_classifier_is_one_line(folder, name, damage):
    damage(folder / name)
    with pytest.raises(InputError) as caught:
        load_classifier(folder, make_classifier(), SPEAKERS, 3)
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- classes -------------------------------------------------------------------------


def rows_after(folder, speakers, n_speeds, n_perturbed=None):
    classes = Classes(len(speakers), n_speeds, n_perturbed).count
    classifier = ArcFace(8, classes)
    load_classifier(folder, classifier, speakers, n_speeds, n_perturbed)
    return classifier.weight.detach()


def test_stage_2_takes_every_class_over(folder):
    weight = make_classifier().weight.detach()
    assert torch.equal(rows_after(folder, SPEAKERS, 3), weight)


def test_stage_3_keeps_the_first_classes_at_true_speed(folder):
    weight = make_classifier().weight.detach()
    assert torch.equal(rows_after(folder, SPEAKERS, 1), weight[:4])


def test_classes_go_by_name_and_not_by_place(folder):
    weight = make_classifier().weight.detach()
    found = rows_after(folder, ["dora", "anna"], 2)
    assert torch.equal(found, weight[[3, 0, 4 + 3, 4 + 0]])


@pytest.mark.parametrize(
    ("speakers", "n_speeds", "n_perturbed", "rows"),
    [
        (["anna", "bert"], 1, None, [0, 1]),
        (["bert", "anna"], 3, None, [1, 0, 3, 2, 5, 4]),
        (["dora", "bert"], 1, None, [7, 1]),
        (["bert", "dora", "carl"], 3, 1, [1, 3, 5, 7, 6]),
    ],
)
def test_some_speakers_at_three_speeds_and_others_at_one(
    tmp_path, speakers, n_speeds, n_perturbed, rows
):
    """Anna and Bert at three, Carl and Dora at true speed: 6 + 2 classes."""
    classifier, mixed = make_classifier(8), {**training(), "n_perturbed": 2}
    folder = save_pretrained(tmp_path / "final", make_model(), classifier, mixed)
    found = rows_after(folder, speakers, n_speeds, n_perturbed)
    assert torch.equal(found, classifier.weight.detach()[rows])
    with pytest.raises(InputError, match=r"final: .* knows 'carl' at true speed"):
        rows_after(folder, ["bert", "carl"], 3)


def test_an_unknown_speaker_is_named(folder):
    with pytest.raises(
        InputError,
        match=r"has no classes for 2 of the 3 training speakers, first 'emil'",
    ):
        rows_after(folder, ["anna", "emil", "fred"], 1)


def test_more_speeds_than_before_are_refused(tmp_path):
    classifier = make_classifier(4)
    folder = save_pretrained(
        tmp_path / "final", make_model(), classifier, training(n_speeds=1)
    )
    with pytest.raises(InputError, match=r"of 1 speed\(s\) has no classes for 3"):
        rows_after(folder, SPEAKERS, 3)


def test_another_number_of_classes_than_the_file_says(folder):
    save_file({"weight": torch.ones(11, 8)}, folder / "classifier.safetensors")
    with pytest.raises(InputError, match="11 classes, expected 12 as in"):
        rows_after(folder, SPEAKERS, 3)
    save_file({"other": torch.ones(12, 8)}, folder / "classifier.safetensors")
    with pytest.raises(InputError, match="0 classes, expected 12"):
        rows_after(folder, SPEAKERS, 3)


def test_another_embedding_size_does_not_fit(folder):
    with pytest.raises(InputError, match="wrong shape"):
        load_classifier(folder, ArcFace(16, 12), SPEAKERS, 3)


@pytest.mark.parametrize(
    "values",
    [{}, {"speakers": SPEAKERS}, {"speakers": "anna", "n_speeds": 3}, [1], None]
    + [{"speakers": SPEAKERS, "n_speeds": "3"}]
    + [{"speakers": SPEAKERS, "n_speeds": 3, "n_perturbed": n} for n in (5, -1, "x")],
)
def test_training_must_say_speakers_and_speeds(folder, values):
    (folder / "training.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"training\.json: "):
        read_training(folder)


def test_what_training_knew_is_read_back(folder):
    assert read_training(folder) == training()


# ---- a classifier that is handed on --------------------------------------------------


def test_a_classifier_is_kept_with_what_its_rows_stand_for(folder, tmp_path):
    classifier, kept = keep_classifier(folder)
    assert kept == {"speakers": SPEAKERS, "n_speeds": 3}
    again = save_pretrained(tmp_path / "again", make_model(), classifier, kept)
    files = [f / "classifier.safetensors" for f in (folder, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_rows_go_from_one_loss_to_another(tmp_path):
    """The bias of SphereFace2 stays with SphereFace2."""
    former = SphereFace2(8, 12)
    former.bias.data.fill_(-3.0)
    folder = save_pretrained(tmp_path / "a", make_model(), former, training())
    names = {name for name, _ in keep_classifier(folder)[0].named_parameters()}
    assert names == {"weight", "bias"}
    same, other = SphereFace2(8, 4), ArcFace(8, 4)
    for later in (same, other):
        load_classifier(folder, later, SPEAKERS, 1)
        assert torch.equal(later.weight, former.weight[:4])
    assert same.bias.item() == -3.0
    folder = save_pretrained(
        tmp_path / "b", make_model(), make_classifier(), training()
    )
    later = SphereFace2(8, 12)
    load_classifier(folder, later, SPEAKERS, 3)
    assert later.bias.item() == 0.0


def test_a_model_without_classifier_has_none_to_hand_on(tmp_path):
    folder = save_pretrained(tmp_path / "bare", make_model())
    assert keep_classifier(folder) == (None, {})


def test_a_classifier_of_other_speakers_is_not_handed_on(tmp_path):
    few = training(SPEAKERS[:3])
    folder = save_pretrained(tmp_path / "a", make_model(), make_classifier(), few)
    with pytest.raises(InputError, match="12 classes, expected 9"):
        keep_classifier(folder)
