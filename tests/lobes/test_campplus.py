"""CAM++ and ERes2NetV2: counts, segments, and what inference computes otherwise."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_encoder import noise, randomise
from torch import nn

from speechbrain_ext.lobes.campplus import CAMPPlus, DenseLayer, Segments
from speechbrain_ext.lobes.convolution import NormedConv2d, RowEnds
from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.lobes.eres2net import AFF, ERes2NetV2
from speechbrain_ext.lobes.heads import TSTP
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
OF_CAMPPLUS = {"variance_eps": 0.0, "bias": False, "embedding_norm": True}


@pytest.mark.parametrize(
    ("build", "head", "parameters"),
    [
        (CAMPPlus, {"embedding_size": 512, **OF_CAMPPLUS}, 7_176_224),
        (CAMPPlus, {"embedding_size": 192, **OF_CAMPPLUS}, 6_848_544),
        (ERes2NetV2, {"embedding_size": 192}, 17_859_632),
        (
            lambda: ERes2NetV2(base_width=24, chunks=4, expansion=4),
            {"embedding_size": 192},
            53_513_632,
        ),
    ],
)
def test_published_numbers_of_parameters(build, head, parameters):
    with torch.device("meta"):
        encoder = build()
        model = SpeakerEncoder(encoder, TSTP(encoder.hidden_size, **head))
    assert count_parameters(model).total == parameters


def small(kind, **options):
    """A random encoder whose BatchNorms have statistics and signs of their own."""
    if kind is CAMPPlus:
        sizes = {"channels": 10, "growth": 4, "bottleneck": 6, "stem_channels": 4}
        encoder = CAMPPlus([2, 2], [1, 2], n_mels=16, **sizes, **options)
    else:
        encoder = ERes2NetV2([1, 2, 1, 1], 8, chunks=3, n_mels=16, **options)
    for number, module in enumerate(randomise(encoder).modules()):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            statistics = noise(2, module.num_features, seed=number)
            module.running_mean.copy_(0.2 * statistics[0])
            module.running_var.copy_(0.3 + statistics[1].square())
            with torch.no_grad():
                module.weight[::3] *= -1
                module.weight[-1] = 0
    return encoder.eval()


both = pytest.mark.parametrize("kind", [CAMPPlus, ERes2NetV2])


@both
def test_inference_is_what_training_computes(kind):
    """One step for a map and its BatchNorm, bounds for BatchNorm and ReLU."""
    encoder, x = small(kind), noise(3, 230, 16)
    for lens in (None, torch.tensor([1.0, 0.13, 0.87])):
        (step_by_step,) = encoder.encode(x, lens)
        with torch.no_grad():
            (found,) = encoder.encode(x, lens)
            (exact,) = copy.deepcopy(encoder).double().encode(x.double(), lens)
        for row, length in enumerate([1.0] * 3 if lens is None else lens.tolist()):
            frames = round(length * 230)
            frames = -(-frames // (2 if kind is CAMPPlus else 8))
            expected = exact[row, :frames]
            for state in (found, step_by_step):
                error = (state[row, :frames] - expected).abs().max()
                assert error < 1e-5 * expected.abs().max()


@both
def test_inference_sees_changed_weights(kind):
    """What it keeps of them is made anew."""
    encoder, x = small(kind), noise(1, 40, 16)
    other = randomise(small(kind), seed=5)
    with torch.no_grad():
        (first,) = encoder.encode(x)
        (expected,) = other.encode(x)
        assert (first - expected).abs().max() > 0.1
        encoder.load_state_dict(other.state_dict())
        assert torch.equal(encoder.encode(x)[0], expected)
        encoder.load_state_dict(small(kind).state_dict(), assign=True)
        assert torch.equal(encoder.encode(x)[0], first)
        assert torch.equal(copy.deepcopy(encoder).encode(x)[0], first)
        half = encoder.bfloat16().encode(x.bfloat16())[0]
        torch.testing.assert_close(half.float(), first, atol=0.5, rtol=0.1)
        norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
        norms[0].running_mean += 5
        moved = encoder.float().encode(x)[0]
    encoder.requires_grad_(False)
    torch.testing.assert_close(moved, encoder.encode(x)[0], atol=1e-4, rtol=1e-4)
    assert (moved - first).abs().max() > 1e-3
    assert len(encoder.state_dict()) == len(small(kind).state_dict())


@both
def test_autocast(kind):
    encoder, x = small(kind), noise(2, 60, 16)
    lens = torch.tensor([1.0, 0.5])
    with torch.no_grad():
        (expected,) = encoder.encode(x, lens)
        with torch.autocast("cpu", torch.bfloat16):
            (found,) = encoder.encode(x, lens)
    error = (found.float() - expected)[0].abs().max() / expected.abs().max()
    assert error < 0.05


def test_segments():
    """Of 230 frames and of 130 valid ones, by hand."""
    h = noise(2, 230, 3)
    segments = Segments(h, RowEnds(torch.tensor([230, 130]), 230))
    context = segments.context(h)
    assert context.shape == (2, 3, 3)
    for row, parts in enumerate(
        [[(0, 100), (100, 200), (200, 230)], [(0, 100), (100, 130)]]
    ):
        for number, (start, end) in enumerate(parts):
            expected = h[row, start:end].mean(0) + h[row, : parts[-1][1]].mean(0)
            torch.testing.assert_close(context[row, number], expected)
    spread = segments.spread(context)
    assert torch.equal(spread[:, 99], context[:, 0])
    assert torch.equal(spread[:, 100], context[:, 1])
    assert torch.equal(spread[:, 229], context[:, 2])
    alone = Segments(h[:, :100]).context(h[:, :100])
    torch.testing.assert_close(alone, 2 * h[:, :100].mean(1, keepdim=True))


@pytest.mark.parametrize("frames", [1, 2, 3, 9])
@pytest.mark.parametrize("dilation", [1, 2])
def test_dilated_taps_are_a_convolution(frames, dilation):
    """Of rows shorter than it reaches, too."""
    layer = randomise(DenseLayer(5, 6, 4, dilation)).eval()
    h = noise(2, frames, 6)
    weight = layer.taps.weight.unflatten(0, (3, 4)).permute(1, 2, 0)
    expected = F.conv1d(
        h.transpose(1, 2), weight, padding=dilation, dilation=dilation
    ).transpose(1, 2)
    torch.testing.assert_close(layer._convolved(h), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer._convolved(h), expected)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_convolution_and_what_follows(kernel, clip):
    layer = randomise(NormedConv2d(3, 4, kernel, (2, 1), bias=True)).eval()
    layer.norm.running_mean.copy_(noise(4))
    layer.norm.running_var.copy_(0.5 + noise(4).square())
    x, added = noise(2, 3, 8, 9), noise(2, 4, 4, 9)
    y = layer.norm(layer.conv(x)) + added
    expected = y.clamp(0, clip)
    torch.testing.assert_close(layer(x, added, highest=clip), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, added.clone(), highest=clip), expected)
        plain = layer(x, added.clone(), rectified=False)
        torch.testing.assert_close(plain, y)


def test_fusion_of_two_maps():
    fusion, x, y = (
        randomise(AFF(8)).eval(),
        noise(1, 8, 3, 4),
        noise(1, 8, 3, 4, seed=1),
    )
    squeezed = F.silu(fusion.squeeze.norm(fusion.squeeze.conv(torch.cat([x, y], 1))))
    a = 1 + fusion.excite.norm(fusion.excite.conv(squeezed)).tanh()
    torch.testing.assert_close(fusion(x, y), a * x + (2 - a) * y)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CAMPPlus(n_mels=81), "n_mels=81, expected a multiple of 8"),
        (lambda: CAMPPlus([3, 4]), r"layers=\[3, 4\] and dilations=\[1, 2, 2\], exp"),
        (lambda: CAMPPlus(growth=0), "growth=0, expected a whole number"),
        (lambda: CAMPPlus(front_end="kaldi"), "front_end 'kaldi', expected one of wes"),
        (lambda: ERes2NetV2(n_mels=0), "n_mels=0, expected a multiple of 8"),
        (lambda: ERes2NetV2([3, 4, 6]), r"blocks=\[3, 4, 6\], expected four numbers"),
        (
            lambda: ERes2NetV2(channels=2, base_width=16),
            "chunks of 0 channels in stage",
        ),
    ],
)
def test_bad_sizes_are_one_line(build, message):
    with torch.device("meta"), pytest.raises(InputError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_same_front_end():
    encoder = small(CAMPPlus)
    assert encoder.same_front_end(small(ERes2NetV2))
    assert not encoder.same_front_end(small(ERes2NetV2, front_end="wespeaker"))
    assert not encoder.same_front_end(nn.Linear(1, 1))
