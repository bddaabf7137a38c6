"""Sub-centre ArcFace and the inter-top-k penalty, by hand; handed on in folders."""

import math

import pytest
import torch
from tiny_encoder import noise
from tiny_pretrained import SPEAKERS, make_model, training

from speechbrain_ext.losses import ArcFace
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.training.classifiers import keep_classifier, load_classifier
from speechbrain_ext.utils.errors import InputError


def unit(*degrees):
    """Vectors of length 1 in the plane, at these angles."""
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def cos(degrees):
    return math.cos(math.radians(degrees))


def test_the_nearest_centre_of_a_class_counts():
    arcface = ArcFace(2, 2, margin=math.radians(10), scale=1.0, n_centers=2)
    arcface.weight.data.copy_(unit(0, 90, 180, 200).view(2, 2, 2))
    embedding = 3 * unit(70)
    expected = torch.tensor([[cos(20), cos(110)]])
    torch.testing.assert_close(arcface.cosines(embedding), expected)
    logits = arcface.logits(embedding, torch.tensor([0]))
    torch.testing.assert_close(logits, torch.tensor([[cos(30), cos(110)]]))
    arcface(embedding, torch.tensor([0])).backward()
    gradient = arcface.weight.grad.norm(dim=-1)
    assert (gradient > 0).tolist() == [[False, True], [True, False]]


def test_the_nearest_other_classes_come_nearer():
    """m' = 6° at m = 0.2; at m = 0.1 half of it, at m = 0 nothing."""
    arcface = ArcFace(2, 4, 0.2, 1.0, inter_topk=2, inter_topk_margin=math.radians(6))
    arcface.weight.data.copy_(unit(0, 40, 100, 170))
    embedding, label = unit(0), torch.tensor([0])
    for margin, degrees in ((0.2, 6), (0.1, 3), (0.0, 0)):
        arcface.margin = margin
        expected = [math.cos(margin), cos(40 - degrees), cos(100 - degrees), cos(170)]
        found = arcface.logits(embedding, label)
        # at cos θ = 1 the sine has a floor of 1e-3
        torch.testing.assert_close(found, torch.tensor([expected]), atol=3e-4, rtol=0)


def test_an_embedding_far_from_its_class_keeps_the_margin_on_it():
    """The target is never among the k."""
    arcface = ArcFace(2, 3, 0.2, 1.0, inter_topk=2, inter_topk_margin=0.06)
    arcface.weight.data.copy_(unit(80, 10, 100))
    expected = [math.cos(math.radians(80) + 0.2)]
    expected += [math.cos(math.radians(a) - 0.06) for a in (10, 100)]
    found = arcface.logits(unit(0), torch.tensor([0]))
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_one_centre_and_no_penalty_are_plain_arcface():
    torch.manual_seed(0)
    plain = ArcFace(8, 20)
    torch.manual_seed(0)
    other = ArcFace(8, 20, n_centers=1, inter_topk=0, inter_topk_margin=0.1)
    assert other.weight.shape == (20, 8)
    embeddings, labels = noise(6, 8), torch.arange(6)
    assert torch.equal(plain(embeddings, labels), other(embeddings, labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_centers": 0}, "n_centers=0, expected a whole number of at least 1"),
        ({"inter_topk": 2.5}, "inter_topk=2.5, expected a whole number"),
        ({"inter_topk_margin": -0.1}, "inter_topk_margin=-0.1, expected a number"),
        ({"inter_topk": 4}, "inter_topk=4, expected less than the 4 classes"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(InputError, match=message):
        ArcFace(8, 4, **options)


def test_repr_tells_centres_and_penalty():
    text = repr(ArcFace(16, 9, n_centers=3, inter_topk=5))
    assert text.endswith("n_centers=3, inter_topk=5, inter_topk_margin=0.06)")


def test_centres_are_handed_on_by_speaker(tmp_path):
    classifier = ArcFace(8, 12, n_centers=3)
    folder = save_pretrained(tmp_path / "final", make_model(), classifier, training())
    kept, _ = keep_classifier(folder)
    assert torch.equal(kept.weight, classifier.weight)
    later = ArcFace(8, 2, n_centers=3)
    load_classifier(folder, later, ["dora", "anna"], 1)
    assert torch.equal(later.weight, classifier.weight[[3, 0]])
    with pytest.raises(InputError, match=r"weight \(4, 3, 8\) instead of \(4, 8\)"):
        load_classifier(folder, ArcFace(8, 4), SPEAKERS, 1)
