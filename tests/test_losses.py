"""ArcFace against arccos in float64; finite at the poles; small in memory."""

import math

import pytest
import torch
from tiny_encoder import SavedForBackward, noise

from speechbrain_ext.losses import ArcFace, add_margin


def plain_arcface(embeddings, weight, labels, margin, scale):
    """cos(arccos(cos θ) + m) on the target, beyond π − m: cos θ − m sin m. float64."""
    rows = torch.nn.functional.normalize(embeddings.double().flatten(0, -2), dim=-1)
    classes = torch.nn.functional.normalize(weight.double(), dim=-1)
    cosine = rows @ classes.t()
    loss = 0.0
    for row, label in enumerate(labels.tolist()):
        theta = torch.arccos(cosine[row, label])
        if theta + margin < math.pi:
            target = torch.cos(theta + margin)
        else:
            target = cosine[row, label] - margin * math.sin(margin)
        logits = cosine[row].clone()
        logits[label] = target
        loss = loss - torch.log_softmax(scale * logits, 0)[label]
    return loss / len(labels)


def make(classes=50, size=16, margin=0.2, scale=32.0, seed=0):
    arcface = ArcFace(size, classes, margin, scale)
    arcface.weight.data.copy_(noise(classes, size, seed=seed))
    return arcface


def at_angle(direction, theta, seed=9):
    """A unit vector at the angle θ from ``direction`` [E]."""
    direction = direction / direction.norm()
    other = noise(len(direction), seed=seed).to(direction.dtype)
    other = other - (other @ direction) * direction
    return math.cos(theta) * direction + math.sin(theta) * other / other.norm()


@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("scale", [1.0, 32.0, 64.0])
def test_value_and_gradients_by_arccos(margin, scale):
    """Random rows, near ones, opposite ones beyond π − m, and long embeddings."""
    arcface = make(margin=margin, scale=scale)
    labels = torch.arange(24) * 2
    embeddings = 5 * noise(24, 16, seed=1)
    for row in range(8):  # 0.1 … 0.8 rad from the target, and from its opposite
        target = arcface.weight.detach()[labels[row]]
        embeddings[row] = at_angle(target, 0.1 * (row + 1))
        embeddings[row + 8] = at_angle(target, math.pi - 0.1 * (row + 1))
    embeddings.requires_grad_(True)
    inputs = [embeddings, arcface.weight]
    loss = arcface(embeddings, labels)
    gradients = torch.autograd.grad(loss, inputs)
    expected = plain_arcface(embeddings, arcface.weight, labels, margin, scale)
    assert loss.dtype == torch.float32
    assert loss.dim() == 0
    torch.testing.assert_close(loss.double(), expected, atol=1e-4, rtol=1e-5)
    for found, reference in zip(gradients, torch.autograd.grad(expected, inputs)):
        torch.testing.assert_close(found, reference, atol=1e-5 * scale, rtol=1e-3)


def test_logits_by_hand():
    """Two classes at a right angle, an embedding at 60° and 30° from them."""
    arcface = ArcFace(2, 2, margin=math.pi / 6, scale=10.0)
    arcface.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    embedding = torch.tensor([[[1.0, math.sqrt(3)]]])
    logits = arcface.logits(embedding, torch.tensor([0]))
    # cos(60° + 30°) and cos 30°
    torch.testing.assert_close(logits, torch.tensor([[0.0, 5 * math.sqrt(3)]]))
    loss = arcface(embedding, torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(5 * math.sqrt(3))))


def test_no_margin_is_a_cosine_softmax():
    arcface = make(margin=0.0)
    embeddings, labels = noise(8, 16, seed=1), torch.arange(8)
    logits = 32 * arcface.cosines(embeddings)
    torch.testing.assert_close(arcface.logits(embeddings, labels), logits)


def test_margin_may_be_set_at_any_time():
    """SpeechBrain's own caches cos m and sin m."""
    arcface, other = make(margin=0.2), make(margin=0.5)
    embeddings, labels = noise(8, 16, seed=1), torch.arange(8)
    before = arcface(embeddings, labels)
    arcface.margin = 0.5
    assert torch.equal(arcface(embeddings, labels), other(embeddings, labels))
    assert arcface(embeddings, labels) > before


@pytest.mark.parametrize("margin", [0.05, 0.2, 0.5, 1.5])
def test_target_decreases_with_the_angle(margin):
    """From 0 to π without a step upwards, also where θ + m passes π."""
    theta = torch.linspace(0.01, math.pi - 0.001, 20001, dtype=torch.float64)
    target = add_margin(torch.cos(theta), margin)
    assert (target.diff() < 0).all()
    # margins cost something everywhere
    assert (target < torch.cos(theta)).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5])
def test_gradients_are_finite_at_the_poles(sign, margin):
    """Embeddings that are ± a row of the weight: the cosine is ±1 exactly or nearly."""
    arcface = make(size=4, margin=margin)
    arcface.weight.data[:4] = torch.eye(4)
    embeddings = sign * arcface.weight.detach()[:10].clone()
    embeddings.requires_grad_(True)
    cosine = arcface.cosines(embeddings)
    assert (cosine.diagonal()[:4] == sign).all()  # exactly
    loss = arcface(embeddings, torch.arange(10))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(embeddings.grad).all()
    assert torch.isfinite(arcface.weight.grad).all()


def test_gradient_stays_bounded_towards_the_poles():
    """|d target / d cos| at most about 1000 sin m, the floor's own slope."""
    cosine = (1 - torch.logspace(-8, 0, 200)).requires_grad_(True)
    add_margin(cosine, 0.5).sum().backward()
    assert torch.isfinite(cosine.grad).all()
    assert cosine.grad.abs().max() < 1000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    arcface = make(classes=100)
    embeddings, labels = noise(8, 1, 16, seed=1), torch.arange(8)
    inputs = [embeddings.requires_grad_(True), arcface.weight]
    plain = arcface(embeddings, labels)
    expected = torch.autograd.grad(plain, inputs)
    with torch.autocast("cpu", dtype=dtype):
        loss = arcface(embeddings, labels)
        assert arcface.cosines(embeddings).dtype == torch.float32
        assert arcface.logits(embeddings, labels).dtype == torch.float32
    assert loss.dtype == torch.float32
    assert torch.equal(loss, plain)
    for found, gradient in zip(torch.autograd.grad(loss, inputs), expected):
        assert torch.equal(found, gradient)


def test_bf16_embeddings_are_taken_as_they_are():
    """From an autocast head: equal to the same rounded values in float32."""
    arcface = make()
    embeddings, labels = noise(8, 1, 16, seed=1).bfloat16(), torch.arange(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = arcface(embeddings, labels)
    assert torch.equal(loss, arcface(embeddings.float(), labels))


def test_shapes_of_embeddings_and_labels():
    arcface, embeddings = make(), noise(8, 16, seed=1)
    labels = torch.arange(8)
    expected = arcface(embeddings, labels)
    assert torch.equal(arcface(embeddings.unsqueeze(1), labels), expected)
    assert torch.equal(arcface(embeddings.unsqueeze(1), labels.unsqueeze(1)), expected)


def test_length_of_embeddings_does_not_matter():
    arcface, labels = make(), torch.arange(8)
    embeddings = noise(8, 16, seed=1)
    expected = arcface(embeddings, labels)
    for scale in (1e-6, 1e6):
        torch.testing.assert_close(arcface(scale * embeddings, labels), expected)


def test_memory_of_130000_classes():
    """VoxBlink2's size: two matrices of batch × classes for backward, no one-hot.

    80 MiB in all: cosines and log-probabilities of 31.7 MiB each, the weight and the
    normalised weight of 7.9 MiB. An int64 one-hot would be 63 MiB more.
    """
    classes, size, batch = 130_000, 16, 64
    arcface = make(classes=classes, size=size)
    embeddings = noise(batch, size, seed=1).requires_grad_(True)
    labels = torch.arange(batch) * 2000
    with SavedForBackward() as saved:
        loss = arcface(embeddings, labels)
    matrix = 4 * batch * classes
    large = [kept for kept in saved.storages.values() if kept[0] > 2**20]
    assert sum(kept[0] >= matrix for kept in large) <= 2
    assert saved.bytes < 81 * 2**20
    assert {dtype for _, dtype in large} == {torch.float32}
    loss.backward()
    assert torch.isfinite(arcface.weight.grad).all()
    assert torch.isfinite(embeddings.grad).all()


def test_repr_tells_sizes_and_margin():
    assert repr(make(classes=3)) == "ArcFace(16 → 3, margin=0.2, scale=32.0)"


def test_learns_to_separate():
    """Gradient descent reaches a loss near zero, margin included."""
    torch.manual_seed(0)
    arcface = ArcFace(8, 5, margin=0.5)
    embeddings = torch.nn.Parameter(noise(10, 8))
    labels = torch.arange(10) % 5
    optimiser = torch.optim.Adam([embeddings, arcface.weight], lr=0.05)
    losses = []
    for _ in range(200):
        optimiser.zero_grad()
        loss = arcface(embeddings, labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 5
    assert losses[-1] < 1e-3
