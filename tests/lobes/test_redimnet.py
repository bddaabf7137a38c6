"""ReDimNet and ReDimNet2: sizes, ways that must agree, refused arguments."""

import pytest
import torch
from tiny_encoder import noise, randomise

from speechbrain_ext.lobes import redim_blocks, redimnet
from speechbrain_ext.lobes.heads import ASTP
from speechbrain_ext.lobes.redimnet import ReDimNet, ReDimNet2
from speechbrain_ext.lobes.redimnet_sizes import SIZES, SIZES2
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

PARAMETERS = {
    ReDimNet: (1.0, 2.1, 4.9, 3.2, 6.4, 7.7, 15.0),
    ReDimNet2: (1.1, 2.2, 3.7, 4.2, 6.7, 9.0, 12.4),
}
STAGES = [[1, 2, 2, [[3, 3]], 6], [3, 1, 1, [[3, 3]], 4]]
STAGES2 = [[[2, 2], 1, 0.5, [[3, 3]], 6], [[1, 2], 1, 1, [[3, 3]], 6]]


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize("kind", [ReDimNet, ReDimNet2])
def test_parameters(kind):
    with torch.device("meta"):
        found = {}
        for size in SIZES:
            encoder = kind(size)
            found[size] = count(encoder, ASTP(encoder.hidden_size))
    expected = dict(zip(SIZES, PARAMETERS[kind], strict=True))
    assert {size: round(n / 1e6, 1) for size, n in found.items()} == expected
    exact = {ReDimNet: 15_015_473, ReDimNet2: 12_394_784}
    assert found["B6"] == exact[kind]
    assert list(SIZES) == list(SIZES2)


def tiny(kind, **options):
    stages = STAGES if kind is ReDimNet else STAGES2
    options = {"bins": 12, "channels": 4, "stages_setup": stages, **options}
    encoder = randomise(kind(**options)).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            size = module.num_features
            module.running_mean.copy_(0.1 * noise(size, seed=size))
            module.running_var.copy_(1 + noise(size, seed=size).abs())
            with torch.no_grad():  # some scales are below zero
                module.weight.copy_(0.5 + noise(size, seed=size + 1))
    return encoder


KINDS = [
    (ReDimNet, {"block_2d_type": "basic_resnet", "group_divisor": 2}),
    (ReDimNet, {"block_2d_type": "basic_resnet_fwse", "group_divisor": 0}),
    (ReDimNet, {"block_2d_type": "convnext_like_relu", "group_divisor": 4}),
    (ReDimNet, {"block_1d_type": "convx2", "out_channels": 7}),
    (ReDimNet2, {"agg_gnorm": True, "dual_agg": True}),
    (ReDimNet2, {"return_2d_output": False, "out_channels": 9}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("part", [2**19, 1])
def test_inference_on_a_cpu_is_the_plain_way(kind, options, part, monkeypatch):
    """BatchNorms folded, maps in parts, row by row: as where gradients are needed."""
    monkeypatch.setattr(redim_blocks, "PART", part)
    monkeypatch.setattr(redimnet, "ROW_FRAMES", 30 if part == 1 else 512)
    encoder = tiny(kind, **options)
    x, lens = noise(4, 97, 12), torch.tensor([97, 40, 97, 61]) / 97
    expected = encoder.encode(x, lens)[0].detach()
    before = x.clone()
    with torch.no_grad():
        found = encoder.encode(x, lens)[0]
    assert torch.equal(x, before)
    frames = (encoder.output_lens(x, lens) * expected.shape[1]).round().int()
    for row, own, n in zip(found, expected, frames):
        torch.testing.assert_close(row[:n], own[:n], atol=1e-5, rtol=1e-5)
        assert not row[n:].any()


def test_frames_are_cut_to_the_time_stride():
    encoder = tiny(ReDimNet2)
    x = noise(1, 11, 12)
    with torch.no_grad():
        state, whole = encoder.encode(x)[0], encoder.encode(x[:, :8])[0]
    assert state.shape[1] == 8
    assert torch.equal(state, whole)
    lens = encoder.output_lens(noise(2, 11, 12), torch.tensor([11, 7]) / 11)
    assert lens.tolist() == [1.0, 0.5]
    assert encoder.output_lens(x, None) is None


def test_layers_of_lora_are_not_folded_away():
    from speechbrain_ext.adaptation import inject_lora

    encoder = tiny(ReDimNet, group_divisor=2, block_2d_type="basic_resnet")
    inject_lora(encoder, r=2, target_modules=["point1", "point2"])
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    x = noise(1, 30, 12)
    expected = encoder.eval().encode(x)[0]
    with torch.no_grad():
        found = encoder.encode(x)[0]
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_gradients_of_all_sources():
    """The weights of a sum of one source have a gradient too, of zero."""
    encoder = tiny(ReDimNet2, agg_gnorm=True, dual_agg=True).train()
    encoder.encode(noise(2, 24, 12))[0].square().mean().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert not encoder.stages[0].aggregation.weight.grad.any()
    assert encoder.stages[1].aggregation.weight.grad.all()


def test_dropout_of_stages_is_of_training():
    encoder = tiny(ReDimNet, feat_agg_dropout=0.5)
    x = noise(1, 24, 12)
    assert torch.equal(encoder.encode(x)[0], encoder.encode(x)[0])
    encoder.train()
    assert not torch.equal(encoder.encode(x)[0], encoder.encode(x)[0])


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        (ReDimNet, {"size": "B7"}, "size='B7', expected one of B0, B1"),
        (ReDimNet, {"bins": 64, "stages_setup": [STAGES[1]]}, "64 bins, stride 3"),
        (ReDimNet, {"block_1d_type": "gru"}, "block_1d_type='gru', expected"),
        (ReDimNet, {"group_divisor": 100}, "group_divisor=100: 0 groups of"),
        (ReDimNet, {"front_end": {"n_mels": 80}}, "n_mels=80, but bins=72"),
        (ReDimNet, {"stages_setup": [[1, 1, 1, [[2, 2]], 8]]}, "stage 0 is"),
        (ReDimNet, {"stages_setup": [[1, 1, 1, [[3, 3]], 50]]}, "reduced width 23"),
        (ReDimNet2, {"stages_setup": [[1, 1, 1, [[3, 3]], 8]]}, r"\[\[bins, frames\]"),
        (ReDimNet2, {"agg_gnorm": 7}, "agg_gnorm=7, expected a divisor of 1440"),
        (ReDimNet2, {"channels": 0}, "channels"),
    ],
)
def test_refused(kind, options, match):
    with torch.device("meta"), pytest.raises(InputError, match=match):
        kind(**options)
