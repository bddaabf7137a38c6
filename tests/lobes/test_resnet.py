"""ResNets: published sizes, convolutions in one step, ends of padded rows, pooling."""

import pytest
import torch
from tiny_encoder import noise, randomise
from torch import nn

from speechbrain_ext.features import KaldiFbank
from speechbrain_ext.lobes import cpu_inference
from speechbrain_ext.lobes.convolution import RowEnds
from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.lobes.heads import ASP, TSTP
from speechbrain_ext.lobes.resnet import ResNet, SimAMResNet
from speechbrain_ext.lobes.resnet_blocks import Convolution, simam
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.profiling import count_macs
from speechbrain_ext.utils.errors import InputError

SIZES = {
    6_634_336: (ResNet, "34", TSTP),
    19_814_880: (ResNet, "152", TSTP),
    23_792_224: (ResNet, "221", TSTP),
    28_626_016: (ResNet, "293", TSTP),
    25_213_760: (SimAMResNet, "34", ASP),
    50_232_896: (SimAMResNet, "100", ASP),
    98_937_408: (SimAMResNet, "293", ASP),
}


def published(kind, size, head):
    with torch.device("meta"):
        encoder = kind(size)
        return SpeakerEncoder(encoder, head(encoder.hidden_size))


@pytest.mark.parametrize("parameters", SIZES)
def test_published_sizes(parameters):
    model = published(*SIZES[parameters])
    assert count_parameters(model).total == parameters
    assert model.encoder.arguments["size"] == SIZES[parameters][1]


def test_multiply_adds_as_published():
    """wespeaker's README: of 200 frames, and with those of BatchNorm."""
    for size, published_macs in (("34", 4.55e9), ("221", 21.29e9), ("293", 28.10e9)):
        macs = count_macs(published(ResNet, size, TSTP), 2.015)  # 200 frames
        assert macs == pytest.approx(published_macs, rel=0.02)


def test_two_embedding_layers():
    with torch.device("meta"):
        head = TSTP(10240, embedding_size=256, second_layer=True)
    encoder = published(*SIZES[23_792_224]).encoder
    model = SpeakerEncoder(encoder, head)
    assert count_parameters(model).total == 23_858_016


# -- convolutions ----------------------------------------------------------------------


def convolution(kernel, stride=1):
    module = Convolution(5, 7, kernel, stride)
    norm = randomise(nn.BatchNorm2d(7)).eval()
    norm.running_mean.copy_(noise(7))
    norm.running_var.copy_(0.5 + noise(7, seed=1).abs())
    x = noise(2, 5, 12, 9).contiguous(memory_format=torch.channels_last)
    return module, norm, x


@pytest.mark.parametrize("one_step", [True, False])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_sum", [True, False])
def test_one_step_is_its_steps(monkeypatch, one_step, kernel, stride, relu, with_sum):
    """With oneDNN's operation and without it, as in other builds of torch."""
    monkeypatch.setattr(cpu_inference, "ONEDNN", one_step and cpu_inference.ONEDNN)
    module, norm, x = convolution(kernel, stride)
    expected = norm(nn.functional.conv2d(x, module.weight, None, stride, kernel // 2))
    added = None
    if with_sum:
        added = noise(*expected.shape, seed=2)
        added = added.contiguous(memory_format=torch.channels_last)
        expected = expected + added
    expected = expected.relu() if relu else expected
    torch.testing.assert_close(module(x, norm, added, relu), expected)
    with torch.inference_mode():
        found = module(x, norm, added, relu)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_in_training_the_statistics_move():
    module, norm, x = convolution(3)
    norm.train()
    before = norm.running_mean.clone()
    with torch.no_grad():
        module(x, norm)
    assert (norm.running_mean != before).any()


@pytest.mark.parametrize("kind", [ResNet, SimAMResNet])
def test_fast_and_plain_ways_agree(kind):
    """Without a gradient in one step, else step by step; in float64 too."""
    encoder = randomise(kind(blocks=[2, 1, 1, 1], width=4, n_mels=16)).eval()
    wavs, lens = 0.1 * noise(3, 8000), torch.tensor([1.0, 0.41, 0.73])
    (plain,), _ = encoder(wavs, lens)
    with torch.no_grad():
        (fast,), found = encoder(wavs, lens)
        (wide,), _ = encoder.double()(wavs, lens)
    for row, frames in enumerate((found * fast.shape[1]).round().int()):
        for other in (plain, wide.float()):
            torch.testing.assert_close(
                fast[row, :frames], other[row, :frames], atol=1e-5, rtol=1e-5
            )


def test_what_lies_behind_the_end_does_not_matter():
    """Not zero there, as features are, but anything."""
    encoder = randomise(SimAMResNet(blocks=[1, 1, 1, 1], width=4, n_mels=16)).eval()
    x, lens = noise(2, 50, 16), torch.tensor([1.0, 0.5])
    x[1, 25:] = 0.0
    with torch.no_grad():
        expected = encoder.encode(x[1:, :25])[0]
        found = encoder.encode(x, lens)[0]
    assert expected.shape[1] == 4
    torch.testing.assert_close(found[1:, :4], expected, atol=1e-5, rtol=1e-5)


def test_ends_by_hand():
    """Frames 5, 2 and 4 of 5: halved twice, 2, 1 and 1 of 2."""
    ends = RowEnds(torch.tensor([5, 2, 4]), 5)
    halved = ends.strided(1).strided(2).strided(2)
    assert (halved.valid.tolist(), halved.frames) == ([2, 1, 1], 2)
    ones = torch.ones(3, 1, 1, 5)
    with torch.no_grad():
        cleared = ends.cleared(ones.clone(), 1, 3).squeeze().int().tolist()
    assert cleared == [[1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 1, 1, 0]]
    expected = [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    assert ends.cleared(ones, 1, 3).squeeze().int().tolist() == expected


@pytest.mark.parametrize("gradient", [True, False])
def test_simam_by_hand(gradient):
    """x = 0, 2: μ = 1, v = 2, energy 1 / (8 + 4e-4) + 1/2 for both."""
    x = torch.tensor([0.0, 2.0, 7.0]).view(1, 1, 1, 3)
    added = torch.tensor([-1.0, 1.0, 0.0]).view(1, 1, 1, 3)
    with torch.set_grad_enabled(gradient):
        found = simam(x, added, RowEnds(torch.tensor([2]), 3))
    gate = torch.sigmoid(torch.tensor(1 / (8 + 4e-4) + 0.5))
    expected = torch.tensor([0.0, 1 + 2 * gate])
    torch.testing.assert_close(found.flatten()[:2], expected)


# -- heads -----------------------------------------------------------------------------


def test_tstp_is_mean_and_deviation():
    x, lens = noise(2, 6, 8), torch.tensor([1.0, 0.5])
    for channels in (None, 4):
        head = TSTP(8, 1, 3, channels=channels).eval()
        for row, frames in enumerate((6, 3)):
            own = x[row, :frames]
            own = own if channels is None else own.unflatten(1, (4, 2)).transpose(1, 2)
            own = own.flatten(0, -2)  # [N, channels]
            deviation = (own.var(0) + 1e-7).sqrt()
            pooled = torch.cat([own.mean(0), deviation])
            expected = head.bottleneck(pooled)
            torch.testing.assert_close(head([x], lens)[row, 0], expected)
    assert torch.isfinite(TSTP(8)([x[:, :1]])).all()  # of a single frame


def test_heads_refuse_in_one_line():
    with pytest.raises(InputError, match="channels=3, expected a divisor of 8"):
        TSTP(8, channels=3)
    with pytest.raises(InputError, match="hidden"):
        ASP(8, hidden=0)


# -- arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        (ResNet, {"size": "33"}, "size='33'.* expected one of 18, 34"),
        (SimAMResNet, {"size": "221"}, "size='221'.* expected one of 34, 100, 293"),
        (ResNet, {"size": "34", "blocks": [1, 1, 1, 1]}, "size='34', blocks="),
        (ResNet, {}, "blocks=None, expected 4 numbers above 0, or a size"),
        (ResNet, {"blocks": [1, 1, 0, 1]}, r"blocks=\[1, 1, 0, 1\], expected 4"),
        (ResNet, {"size": "34", "width": 0}, "width"),
        (ResNet, {"size": "34", "front_end": "mfcc"}, "front_end 'mfcc', expected one"),
        (
            ResNet,
            {"blocks": [1, 1, 1, 1], "width": 2, "block_widths": [[3], [1], [1], [1]]},
            "block_widths=.* expected 4 lists of 1 number",
        ),
    ],
)
def test_bad_arguments(kind, options, match):
    with pytest.raises(InputError, match=match):
        kind(**options)


def test_front_ends():
    small = {"blocks": [1, 1, 1, 1], "width": 2}
    encoders = [
        ResNet(**small, front_end=name)
        for name in ("wespeaker", "3dspeaker", "voxblink2", "voxblink2_std")
    ]
    wavs = 0.1 * noise(1, 8000)
    features = [encoder.front_end(wavs)[0] for encoder in encoders]
    torch.testing.assert_close(features[1], KaldiFbank()(wavs)[0])
    assert features[2].shape[1] == features[0].shape[1] + 3  # centred frames
    assert all(
        one.same_front_end(other) == (one is other)
        for one in encoders
        for other in encoders
    )
