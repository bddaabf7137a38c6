"""Apple's GPUs have no float64: a device that refuses it, on any machine.

:class:`Apple` holds a tensor of the CPU and says that it lies on another device, here
called ``meta`` because torch asks no driver about that one. As on a real device float64
is an error, and so is an operation on tensors of two devices. What was moved to the CPU
is a plain tensor and may have any type.
"""

import pytest
import torch
from tiny_encoder import noise, randomise
from tiny_extraction import make_model
from tiny_verifier import load, make_folder
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from speechbrain_ext.features import W2VBertFeatures
from speechbrain_ext.inference.speech import SpeechDetector
from speechbrain_ext.lobes.heads import MFA, AdapterMFA, WeightedSumECAPA
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.utils.precision import valid_counts

pytestmark = pytest.mark.usefixtures("one_thread")
DEVICE = torch.device("meta")
_TAKES_TWO_DEVICES = ("copy_", "_to_copy", "index", "index_put_", "_index_put_impl_")


class Apple(torch.Tensor):
    """A tensor on a device without float64."""

    @staticmethod
    def __new__(cls, inner):
        if inner.dtype == torch.float64:
            raise TypeError("this device has no float64")
        layout = inner.size(), inner.stride(), inner.storage_offset()
        with torch.inference_mode(False):  # in which no views could be taken of it
            return torch.Tensor._make_wrapper_subclass(
                cls, *layout, dtype=inner.dtype, device=DEVICE
            )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class AppleDevice(TorchDispatchMode):
    """Inside, ``meta`` is such a device; → the number of its operations."""

    operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = _run(function, args, kwargs or {})
        self.operations += any(isinstance(x, Apple) for x in tree_leaves(result))
        return result


def _run(function, args, kwargs):
    outer = {}

    def to_cpu(x):
        if isinstance(x, Apple):
            outer[id(x.inner)] = x
            return x.inner
        is_device = isinstance(x, torch.device) and x == DEVICE
        return torch.device("cpu") if is_device else x

    def to_device(x):
        if not isinstance(x, torch.Tensor):
            return x
        return outer.get(id(x)) if id(x) in outer else Apple(x)

    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    theirs = [x for x in tensors if isinstance(x, Apple)]
    name = function.overloadpacket.__name__
    if theirs and name not in _TAKES_TWO_DEVICES:
        others = [x for x in tensors if not isinstance(x, Apple) and x.dim()]
        assert not others, f"{name}: tensors on two devices"
    inside = tree_map(to_cpu, (args, kwargs))
    result = function(*inside[0], **inside[1])
    device = kwargs.get("device")
    if name == "copy_":
        return args[0]
    if device == DEVICE or (device is None and theirs):
        return tree_map(to_device, result)
    return result


@pytest.fixture
def device():
    with AppleDevice() as mode:
        yield DEVICE
        assert mode.operations


def wavs():
    return 0.1 * noise(3, 12000), torch.tensor([1.0, 0.71234, 0.5])


def close(found, expected):
    assert found.device == DEVICE
    torch.testing.assert_close(found.detach().cpu(), expected, rtol=1e-4, atol=1e-5)


def test_the_stand_in_refuses_float64_and_two_devices(device):
    x = torch.ones(3).to(device)
    assert x.device == DEVICE
    assert (x + 1).cpu().double().tolist() == [2.0] * 3
    for bad in (x.double, lambda: torch.zeros(2, dtype=torch.float64, device=device)):
        with pytest.raises(TypeError, match="no float64"):
            bad()
    with pytest.raises(AssertionError, match="two devices"):
        x + torch.ones(3)


def test_features_equal_the_cpu_s(device):
    """Computed there: a quiet bin beside a loud tone needs float64."""
    tone = torch.sin(torch.arange(12000) * 0.5).expand(3, -1) + 1e-5 * wavs()[0]
    expected, lens = W2VBertFeatures()(tone, wavs()[1])
    found, found_lens = W2VBertFeatures()(tone.to(device), wavs()[1].to(device))
    assert found.device == found_lens.device == DEVICE
    assert torch.equal(found.cpu(), expected)
    assert torch.equal(found_lens.cpu(), lens)


@pytest.mark.parametrize("head", [MFA, AdapterMFA, WeightedSumECAPA])
def test_heads_and_pooling(device, head):
    head = randomise(head(8, 2)).eval()
    states, lens = [noise(3, 20, 8), noise(3, 20, 8, seed=1)], torch.tensor([1, 0.7, 1])
    with torch.no_grad():
        expected = head(states, lens)
        head = head.to(device)
        close(head([state.to(device) for state in states], lens.to(device)), expected)


@pytest.mark.parametrize("lens", [torch.float32, torch.float64])
def test_encode_and_verify_batch(device, tmp_path, lens):
    verifier = load(make_folder(tmp_path / "final"))
    batch, lengths = wavs()
    batch, lengths = batch.to(lens), lengths.to(lens)
    expected = verifier.encode_batch(batch, lengths)
    pair = batch.roll(1, 0)
    scores, _ = verifier.verify_batch(batch, pair, lengths, lengths, threshold=0.5)
    threshold = float(scores[1, 0])  # that very score is accepted
    verifier.mods.to(device)
    verifier.device = str(device)
    close(verifier.encode_batch(batch, lengths), expected)
    found, decision = verifier.verify_batch(
        batch, pair, lengths, lengths, threshold=threshold - 1e-3
    )
    close(found, scores)
    assert decision.device == DEVICE
    assert decision.cpu().tolist() == (scores >= threshold).tolist()


def test_speech_detection(device):
    batch, lens = wavs()
    expected = SpeechDetector()(batch, lens)
    found = SpeechDetector().to(device)(batch.to(device), lens.to(device))
    assert [f.tolist() for f in found] == [e.tolist() for e in expected]


def test_a_training_step_with_arcface(device):
    def step(where):
        model, loss = randomise(make_model()), randomise(ArcFace(8, 5))
        model, loss = model.to(where), loss.to(where)
        loss.margin = 0.2
        parameters = [*model.parameters(), *loss.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=0.01)
        embeddings = model(wavs()[0].to(where), wavs()[1].to(where))
        value = loss(embeddings, torch.tensor([0, 3, 4]).to(where))
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return value, parameters

    expected, weights = step("cpu")
    found, on_device = step(device)
    close(found, expected.detach())
    for one, other in zip(on_device, weights, strict=True):
        close(one, other.detach())


@pytest.mark.parametrize("total", [16000, 10_000_019])
def test_counts_are_exact(total):
    """As Python's float64 gives them, for every length that is a whole number."""
    counts = torch.linspace(560, total, 1000).long()
    lens = (counts.double() / total).float()
    expected = [round(x * total) for x in lens.tolist()]
    assert valid_counts(lens, total).tolist() == expected
