"""SphereFace2 by its sum in float64, by hand, and where it has no margin."""

import math

import pytest
import torch
from tiny_encoder import noise

from speechbrain_ext.losses import SphereFace2
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def plain(embeddings, weight, bias, labels, margin, scale, share, exponent):
    """Its formula, one decision after the other, in float64."""
    total = 0.0
    for row, label in zip(embeddings.double().flatten(0, -2), labels.tolist()):
        for number, direction in enumerate(weight.double()):
            cosine = row @ direction / (row.norm() * direction.norm())
            g = 2 * ((cosine + 1) / 2) ** exponent - 1
            if number == label:
                total = total + share * torch.log1p(
                    torch.exp(-scale * (g - margin) - bias.double())
                )
            else:
                total = total + (1 - share) * torch.log1p(
                    torch.exp(scale * (g + margin) + bias.double())
                )
    return total.squeeze() / len(labels)


@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5])
@pytest.mark.parametrize(("scale", "share", "exponent"), [(32, 0.7, 3), (8, 0.5, 1.0)])
def test_value_and_gradients(margin, scale, share, exponent):
    classifier = SphereFace2(6, 9, margin, scale, share, exponent)
    classifier.weight.data.copy_(noise(9, 6, seed=0))
    classifier.bias.data.fill_(0.4)
    embeddings = (3 * noise(5, 1, 6, seed=1)).requires_grad_(True)
    labels = torch.tensor([0, 3, 8, 3, 5])
    inputs = [embeddings, classifier.weight, classifier.bias]
    loss = classifier(embeddings, labels)
    expected = plain(*inputs, labels, margin, scale, share, exponent)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, atol=1e-4, rtol=1e-5)
    found = torch.autograd.grad(loss, inputs)
    for one, other in zip(found, torch.autograd.grad(expected, inputs)):
        torch.testing.assert_close(one, other, atol=1e-5 * scale, rtol=1e-3)


def test_by_hand():
    """The target at 0°, the other class at 90°: g = 1 and −3/4."""
    classifier = SphereFace2(2, 2, margin=0.25, scale=2.0, target_weight=0.75)
    classifier.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    loss = classifier(torch.tensor([[4.0, 0.0]]), torch.tensor([0]))
    expected = 0.75 * math.log1p(math.exp(-1.5)) + 0.25 * math.log1p(math.exp(-1.0))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_gradients_are_finite_at_the_poles():
    classifier = SphereFace2(4, 2)
    embeddings = torch.stack([classifier.weight[0], -classifier.weight[0]]).detach()
    embeddings.requires_grad_(True)
    classifier(embeddings, torch.tensor([0, 0])).backward()
    for tensor in (embeddings, classifier.weight, classifier.bias):
        assert tensor.grad.isfinite().all()


def test_autocast_changes_nothing():
    classifier, labels = SphereFace2(16, 5), torch.tensor([0, 4, 2])
    embeddings = noise(3, 16, seed=2)
    expected = classifier(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = classifier(embeddings, labels)
    assert torch.equal(found, expected)


def test_learns_to_separate():
    torch.manual_seed(0)
    classifier = SphereFace2(8, 4)
    labels = torch.arange(4).repeat(8)
    embeddings = torch.nn.Parameter(noise(32, 8, seed=3))
    optimiser = torch.optim.Adam([embeddings, *classifier.parameters()], 0.05)
    for _ in range(100):
        optimiser.zero_grad()
        classifier(embeddings, labels).backward()
        optimiser.step()
    assert torch.equal(classifier.cosines(embeddings).argmax(1), labels)


def test_a_share_beyond_one_is_one_line():
    with pytest.raises(InputError, match=r"target_weight=1\.5, expected 0 to 1"):
        SphereFace2(8, 4, target_weight=1.5)


def test_repr():
    assert repr(SphereFace2(8, 4)).endswith("target_weight=0.7, exponent=3.0)")
