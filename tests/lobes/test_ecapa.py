"""ECAPA-TDNN: sizes, SpeechBrain's module as a peer, rows in a batch, pruning."""

import pytest
import torch
from random_gates import relative_error, set_gates, size_of
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from tiny_encoder import noise, randomise
from torch import nn

from speechbrain_ext.lobes.ecapa import ECAPA
from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.lobes.heads import ECAPAPooling
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.pruning import (
    Budget,
    add_gates,
    expected_parameters,
    harden,
    prune,
)
from speechbrain_ext.pruning.costs import parameter_costs
from speechbrain_ext.utils.errors import InputError

CHANNELS = [16, 16, 16, 16, 24]
pytestmark = pytest.mark.usefixtures("one_thread")


def model(channels=CHANNELS, flavour="speechbrain", head=None, **options):
    """Random weights and running statistics, in eval mode."""
    encoder = ECAPA(channels, n_mels=20, **options)
    pooling = ECAPAPooling(
        channels[-1], embedding_size=7, flavour=flavour, **(head or {})
    )
    made = randomise(SpeakerEncoder(encoder, pooling))
    for number, module in enumerate(made.modules()):
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.copy_(0.1 * noise(module.num_features, seed=number))
    return made.eval()


@pytest.mark.parametrize(
    ("channels", "padding", "flavour", "attention", "norm", "parameters"),
    [
        ([1024] * 4 + [1536], "reflect", "speechbrain", 128, False, 14_660_416),
        ([1024] * 4 + [3072], "reflect", "speechbrain", 128, False, 20_767_552),
        ([1024] * 4 + [1536], "zeros", "wespeaker", 128, False, 14_657_088),
        ([1024] * 4 + [1536], "zeros", "voxblink2", 256, True, 15_444_544),
    ],
)
def test_sizes(channels, padding, flavour, attention, norm, parameters):
    with torch.device("meta"):
        head = {"attention_channels": attention, "embedding_norm": norm}
        encoder = ECAPA(channels, padding=padding)
        head = ECAPAPooling(channels[-1], flavour=flavour, **head)
    made = SpeakerEncoder(encoder, head)
    assert count_parameters(made).total == parameters


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_sizes": [3, 5, 3, 3], "dilations": [2, 1, 3, 1], "res2net_scale": 4},
    ],
)
@pytest.mark.parametrize("frames", [(40, 6, 23), (106, 140, 60)])
def test_speechbrains_module_row_by_row(options, frames):
    """Its tensors under its names; rows of other lengths, garbage behind them.

    Long rows are computed one by one, short ones at once, behind a mask.
    """
    blocks = len(options.get("dilations", CHANNELS)) - 2
    channels = [12, *[16] * blocks, 24]  # with a shortcut
    public = ECAPA_TDNN(20, channels=channels, lin_neurons=1, **options)
    public = randomise(public).eval()
    encoder = ECAPA(channels, n_mels=20, **options).eval()
    tensors = public.state_dict()
    encoder.load_state_dict({n: tensors[n] for n in encoder.state_dict()})
    x = noise(3, max(frames), 20)
    with torch.no_grad():
        (state,) = encoder.encode(x, torch.tensor(frames) / max(frames))
        assert state.shape == (3, max(frames), 24)
        for row, count in enumerate(frames):
            y, outputs = x[row : row + 1, :count].transpose(1, 2), []
            for block in public.blocks:
                y = block(y)
                outputs.append(y)
            y = public.mfa(torch.cat(outputs[1:], 1)).transpose(1, 2)
            found = state[row, :count]
            torch.testing.assert_close(found, y[0], atol=1e-5, rtol=1e-5)


def test_a_padded_row_trains_as_it_does_alone():
    """Statistics of BatchNorm are those of valid frames."""
    one = model().train()
    wavs = 0.1 * noise(2, 8000)
    same = torch.cat([wavs, torch.full_like(wavs, 0.3)], 1)
    for batch, lens in ((wavs, None), (same, torch.tensor([0.5, 0.5]))):
        other = model().train()
        (state,), _ = other.encoder(batch, lens)
        norm = other.encoder.blocks[1].tdnn1.norm.norm
        if lens is None:
            expected, moved = state, norm.running_var
        else:
            found = state[:, : expected.shape[1]]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(norm.running_var, moved)
    assert not torch.equal(one.encoder.blocks[1].tdnn1.norm.norm.running_var, moved)


@pytest.mark.parametrize("flavour", ["speechbrain", "wespeaker", "voxblink2"])
@pytest.mark.parametrize("how", ["soft", "hard"])
def test_a_pruned_model_is_the_gated_one(flavour, how):
    padding = "reflect" if flavour == "speechbrain" else "zeros"
    options = {"padding": padding, "block_sums": flavour == "voxblink2"}
    gated = add_gates(model(flavour=flavour, **options).double())
    kinds = [group.kind for group in gated.prunable_groups()]
    assert kinds == ["res2", "se"] * 3 + ["attention"]
    set_gates(gated, how)
    pruned = prune(gated)
    wavs, lens = 0.1 * noise(2, 8000).double(), torch.tensor([1.0, 0.6])
    with torch.no_grad():
        found, expected = pruned(wavs, lens), gated(wavs, lens)
    assert relative_error([found], [expected]) < 1e-6
    if how == "hard":
        assert expected_parameters(gated).item() == size_of(pruned)
    again = prune(set_gates(add_gates(pruned), "hard", seed=5))
    assert size_of(again) < size_of(pruned)


def test_what_a_channel_of_res2_costs():
    """Of 2 in each of 8 chunks: 8 rows and columns of 16, 7 · 3 with each other."""
    costs = parameter_costs(add_gates(model().encoder))
    res2 = costs.groups[0]
    norms_and_biases = 15 * 3
    assert (res2.unit, res2.pairs) == (2 * 8 * 16 + norms_and_biases, ((0, 21),))
    assert costs.full == size_of(model().encoder)


def test_a_budget_over_encoder_and_head():
    gated = set_gates(add_gates(model([32] * 4 + [24])), "soft")
    budget = Budget(gated, sparsity=0.4)
    cost = harden(budget)
    assert cost == size_of(prune(gated)) <= 0.6 * budget.costs.full


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"channels": [16, 16, 24]}, "expected one of each for the first layer"),
        ({"channels": [16, 16, 24, 16, 24]}, "expected those of the blocks equal"),
        ({"channels": [16, 20, 20, 20, 24]}, "a multiple of 8"),
        ({"channels": [8, 16, 16, 16, 9], "block_sums": True}, "all but the last"),
        ({"kernel_sizes": [4, 3, 3, 3, 1]}, "kernel_sizes: 4, expected odd"),
        ({"padding": "circular"}, "padding='circular'"),
        ({"front_end": "nemo"}, "front_end 'nemo', expected one of speechbrain"),
        ({"front_end": "wespeaker", "fbank": {"f_max": 1}}, "fbank="),
        ({"fbank": {"deltas": True}}, "fbank: .*deltas"),
        ({"dither": 1.0}, "dither=1.0, expected 0"),
        ({"se_widths": [3, 3]}, r"se_widths=\[3, 3\], expected 3"),
        ({"res2net_widths": [1, 0, 2]}, "res2net_widths"),
        ({"res2net_scale": 1}, "res2net_scale"),
    ],
)
def test_sizes_that_do_not_fit(options, match):
    with pytest.raises(InputError, match=match):
        ECAPA(**options)


def test_a_row_too_short_to_be_reflected():
    encoder = ECAPA(CHANNELS, n_mels=20).eval()
    assert encoder.min_samples == 4 * 160
    with pytest.raises(InputError, match="a row of 639 samples"):
        encoder(noise(2, 8000), torch.tensor([1.0, 639 / 8000]))
    kaldi = ECAPA(CHANNELS, n_mels=20, front_end="3dspeaker")
    assert kaldi.min_samples == 400 + 4 * 160


def test_an_unknown_pooling():
    with pytest.raises(InputError, match="flavour='clovaai', expected speechbrain or"):
        ECAPAPooling(8, flavour="clovaai")
