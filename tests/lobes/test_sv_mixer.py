"""SV-Mixer and its peers: published figures, plain formulas, any length."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_encoder import noise, randomise, tiny_config, waveform_config
from torch import nn
from transformers import WhisperConfig

from speechbrain_ext.lobes.any_length import FramePlan
from speechbrain_ext.lobes.encoder import padding_mask
from speechbrain_ext.lobes.heads import MFA
from speechbrain_ext.lobes.mixing import (
    BY_GROUP,
    ChannelMLP,
    CycleLinear,
    Depthwise,
    GroupedLinear,
)
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.sv_mixer import SVMixerEncoder, TransformerStudent
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.lobes.wavlm import WavLMEncoder
from speechbrain_ext.lobes.whisper import WhisperEncoder
from speechbrain_ext.profiling import count_macs, count_parameters
from speechbrain_ext.utils.errors import InputError

# Of one layer in the paper's table 1: parameters in millions, multiply-adds in billions
TABLE = {
    "sv_mixer": (3.75, 0.63),
    "mlp_mixer": (8.58, 1.43),
    "cycle_mlp": (9.45, 1.42),
    "transformer": (8.40, 1.25),
}
THREE_SECONDS = 3.0
FRAMES = 149


def small(**changes):
    """A mixer with a window of 12 frames, 400 samples a frame."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "group_size": 8, "frames": 12}
    convolutions = {"conv_dim": [6], "conv_kernel": [400], "conv_stride": [400]}
    config = {**sizes, **convolutions, **changes}
    return randomise(SVMixerEncoder(config)).eval()


def states_of(encoder, wavs, *lens):
    with torch.no_grad():
        return encoder(wavs, *lens)[0]


class NoHead(nn.Module):
    """A head without arithmetic."""

    def forward(self, states, lens):
        return states[-1]


# -- sizes -----------------------------------------------------------------------------


def of_layers(name, count):
    """Parameters and multiply-adds of 3 s with so many layers."""
    with torch.device("meta"):
        if name == "transformer":
            encoder = TransformerStudent({"num_hidden_layers": count})
        else:
            config = {"num_hidden_layers": count, "block": name}
            encoder = SVMixerEncoder(config)
    macs = count_macs(SpeakerEncoder(encoder, NoHead()), THREE_SECONDS)
    return count_parameters(encoder).total, macs


@pytest.mark.parametrize("name", TABLE)
def test_sizes_of_the_papers_first_table(name):
    one, two = of_layers(name, 1), of_layers(name, 2)
    parameters, macs = (b - a for a, b in zip(one, two))
    published = TABLE[name]
    assert parameters == pytest.approx(1e6 * published[0], rel=0.01)
    if name == "transformer":  # the paper leaves out the products of attention
        macs -= 2 * FRAMES**2 * 1024
    assert macs == pytest.approx(1e9 * published[1], rel=0.02)


def test_the_sizes_that_the_formulas_give():
    width, groups, frames = 1024, 8, FRAMES
    one, two = of_layers("sv_mixer", 1), of_layers("sv_mixer", 2)
    parameters, macs = (b - a for a, b in zip(one, two))
    weights = 8 * frames**2 + 10 * width + width**2 * (16 + 3 + groups) // groups
    others = 5 * frames + 2 * width + 2 * 5 * width + 2 * width + 4 * width
    assert parameters == weights + others == 3_745_969  # the published code's number
    in_time = 8 * frames**2 * width
    at_full = frames * width * (10 + width * (8 + 3 + groups) // groups)
    assert macs == in_time + at_full + frames // 2 * 8 * width**2 // groups


def test_the_switches_lead_from_mlp_mixer_to_sv_mixer():
    none = {"local_global": False, "multi_scale": False, "grouped": False}
    plain = small(block="mlp_mixer")
    switched = small(**none)
    assert plain.state_dict().keys() == switched.state_dict().keys()
    sizes = {count_parameters(small(**{**none, name: True})).total for name in none}
    assert len(sizes) == 3
    wav = 0.1 * noise(1, 12 * 400)
    for one, other in zip(states_of(plain, wav), states_of(switched, wav)):
        assert torch.equal(one, other)


# -- the published block ---------------------------------------------------------------


def published_names(weights):
    """State dict of the published code → ours; the tests' own table of names."""
    parts = {
        "token_mixing.local_mix1": "token_mixing.local1",
        "token_mixing.local_mix2": "token_mixing.local2",
        "token_mixing.linear1": "token_mixing.over_time.up",
        "token_mixing.linear2": "token_mixing.over_time.down",
        "channel_mixing.norm1": "channel_mixing.norm",
        "channel_mixing.fc1": "channel_mixing.slow.up",
        "channel_mixing.fc2": "channel_mixing.slow.down",
        "channel_mixing.fc3": "channel_mixing.fast.up",
        "channel_mixing.fc4": "channel_mixing.fast.down",
        "channel_mixing.fc5": "channel_mixing.mix1",
        "channel_mixing.fc6": "channel_mixing.mix2",
        "feat_projection": "feature_projection",
    }
    ours = {}
    for name, tensor in weights.items():
        for theirs, own in parts.items():
            name = name.replace(f"{theirs}.", f"{own}.")
        if name.startswith(("layers.", "layer_norm.")):
            name = f"encoder.{name}"
        if name.startswith("conv_layers."):
            name = f"feature_extractor.{name}"
        pointwise = tensor.dim() == 3 and tensor.shape[2] == 1
        ours[name] = tensor[..., 0] if pointwise else tensor
    return ours


def test_golden_states(shared):
    folder = shared / "golden/peers/sv_mixer"
    weights = torch.load(folder / "weights.pth", weights_only=True)
    arrays = np.load(folder / "outputs.npz")
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "frames": 49, "group_size": 32}
    encoder = SVMixerEncoder({**sizes, "conv_dim": [32] * 7}).eval()
    encoder.load_state_dict(published_names(weights))
    assert count_parameters(encoder).total == 199_642
    for signal in range(3):
        wav = torch.from_numpy(arrays[f"wav{signal}"])[None, :16000]
        found = torch.stack(states_of(encoder, wav)).squeeze(1)
        expected = torch.from_numpy(arrays[f"hidden{signal}"])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def block_by_torch(layer, x):
    """The published block by its definition, with torch's own layers: [B, T, H]."""
    token, channel = layer.token_mixing, layer.channel_mixing
    groups = channel.fast.groups

    def grouped(mlp, y):
        y = F.conv1d(y, mlp.up.weight.unsqueeze(2), mlp.up.bias, groups=groups)
        down = mlp.down
        return F.conv1d(F.gelu(y), down.weight.unsqueeze(2), down.bias, groups=groups)

    def local(conv, y):
        taps = conv.weight.shape[2]
        return F.conv1d(y, conv.weight, conv.bias, padding=taps // 2, groups=y.shape[1])

    y = token.norm(x).transpose(1, 2)
    over_time = token.over_time
    wide = F.linear(
        F.gelu(F.linear(y, over_time.up.weight, over_time.up.bias)),
        over_time.down.weight,
        over_time.down.bias,
    )
    wide = wide + local(token.local2, F.gelu(local(token.local1, y)))
    x = x + wide.transpose(1, 2)
    y = channel.norm(x).transpose(1, 2)
    slow = grouped(channel.slow, F.avg_pool1d(y, 2))
    slow = F.interpolate(slow, size=y.shape[2], mode="linear")
    y = F.gelu(channel.mix1(slow + grouped(channel.fast, y)))
    return x + channel.mix2(y.transpose(1, 2))


@pytest.mark.parametrize("frames", [12, 13])
def test_the_block_is_its_definition(frames):
    encoder = small(frames=frames)
    x = noise(2, frames, 24)
    counts = torch.full((2,), frames)
    plan = FramePlan(counts, frames, frames)
    layer = encoder.encoder.layers[0]
    with torch.no_grad():
        found, expected = layer(x, plan), block_by_torch(layer, x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    # with a gradient it is computed by other steps
    torch.testing.assert_close(layer(x, plan).detach(), expected, atol=1e-5, rtol=1e-5)


def test_parts_by_hand():
    cycle = CycleLinear(4, 4, bias=False)
    with torch.no_grad():
        cycle.weight.copy_(torch.eye(4))
        found = cycle(torch.arange(12.0).view(1, 3, 4))
    # channels 0 and 3 from the frame before, 1 from this one, 2 from the next
    assert found.tolist() == [[[0, 1, 6, 0], [0, 5, 10, 3], [4, 9, 0, 7]]]
    grouped = GroupedLinear(4, 6, 2)
    x = noise(5, 4)
    weight = grouped.weight.unsqueeze(2)
    expected = F.conv1d(x.unsqueeze(2), weight, grouped.bias, groups=2).squeeze(2)
    found = grouped(x.view(5, 2, 2).transpose(0, 1)).transpose(0, 1).reshape(5, 6)
    torch.testing.assert_close(found, expected)
    local = Depthwise(4, 3)
    x = noise(2, 5, 4)
    expected = F.conv1d(x.mT, local.weight, local.bias, padding=1, groups=4).mT
    torch.testing.assert_close(local(x), expected)


def test_groups_one_after_the_other_are_all_at_once():
    mlp = ChannelMLP(256, 1024, 4)
    # the first has rows enough to go group by group, where nothing needs a gradient
    for x in (noise(2, BY_GROUP // 2, 256), noise(2, 70, 256)):
        with torch.no_grad():
            found = mlp(x)
        torch.testing.assert_close(found, mlp(x).detach(), atol=1e-5, rtol=1e-5)


# -- any length ------------------------------------------------------------------------


def plan_of(counts, window, rule="windows"):
    total = max(counts)
    padding = None
    if min(counts) < total:
        padding = torch.arange(total) >= torch.tensor(counts).unsqueeze(1)
    return FramePlan(torch.tensor(counts), total, window, rule, padding)


def windows_by_hand(x, window, layer):
    """The rule, frame by frame: x [c, C] → the same."""
    count = len(x)
    number = -(-count // window)
    total, weights = torch.zeros_like(x), torch.zeros(count, 1)
    for i in range(number):
        start = i * (count - window) // (number - 1) if number > 1 else 0
        frames = (start + torch.arange(window)) % count
        y = layer(x[frames].unsqueeze(0))[0]
        for place in range(min(window, count)):
            weight = min(place + 1, window - place)
            total[start + place] += weight * y[place]
            weights[start + place] += weight
    return total / weights


@pytest.mark.parametrize("counts", [[5], [12], [13], [24], [25], [61], [61, 7, 24, 12]])
def test_windows_are_as_the_rule_says(counts):
    mixing = small().encoder.layers[0].token_mixing.over_time
    x = noise(len(counts), max(counts), 24)
    with torch.no_grad():
        found = plan_of(counts, 12).applied(mixing, x)
        for row, count in enumerate(counts):
            expected = windows_by_hand(x[row, :count], 12, mixing)
            torch.testing.assert_close(found[row, :count], expected)


def test_a_window_of_frames_is_the_layer_itself():
    mixing = small().encoder.layers[0].token_mixing.over_time
    x = noise(2, 20, 24)
    x[:, 12:] = float("nan")
    for rule in ("windows", "resampled"):
        with torch.no_grad():
            alone = mixing(x[:, :12])
            beside = plan_of([12, 12, 20], 12, rule)
            found = beside.applied(mixing, torch.cat([x, noise(1, 20, 24)]))
        torch.testing.assert_close(found[:2, :12], alone, atol=1e-6, rtol=1e-6)


def test_resampled_is_torchs_interpolation():
    mixing = small().encoder.layers[0].token_mixing.over_time
    x = noise(1, 31, 24)
    with torch.no_grad():
        found = plan_of([31], 12, "resampled").applied(mixing, x)
        squeezed = F.interpolate(x.mT, size=12, mode="linear").mT
        expected = F.interpolate(mixing(squeezed).mT, size=31, mode="linear").mT
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_long_recording_and_its_parts_agree():
    """States of far frames differ by what windows and seams do, not by more."""
    encoder = small()
    for name, parameter in encoder.named_parameters():
        if "over_time" in name:
            parameter.data.mul_(0.3)  # a trained one adds to its input
    head = randomise(MFA(24, 3, 8, pooling_size=4))
    model = SpeakerEncoder(encoder, head).eval()
    voice = 0.1 * noise(1, 12 * 400).repeat(1, 4)
    with torch.no_grad():
        whole = model(voice).flatten()
        parts = model(voice.view(4, -1)).squeeze(1)
        other = model(0.1 * noise(1, 48 * 400, seed=5)).flatten()
    mean = parts.mean(0)
    assert F.cosine_similarity(whole, mean, 0) > 0.99
    assert F.cosine_similarity(whole, mean, 0) > F.cosine_similarity(whole, other, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"form": "drawing"},
        {"any_length": "resampled"},
        {"block": "conv_mixer"},
        {"block": "cycle_mlp"},
    ],
)
def test_of_two_frames_and_of_a_minute_in_one_batch(changes):
    """Below one window of 12 frames, just above it, and 200 of them."""
    encoder, frames = small(**changes), (2, 3, 11, 12, 13, 25, 2400)
    lengths = [400 * count + 399 * (count % 2) for count in frames]
    wavs = 0.1 * noise(len(frames), max(lengths))
    states = states_of(encoder, wavs, torch.tensor(lengths) / max(lengths))
    for row, (count, length) in enumerate(zip(frames, lengths)):
        alone = states_of(encoder, wavs[row : row + 1, :length])
        assert alone[0].shape[1] == count
        for state, own in zip(states, alone):
            found = state[row : row + 1, :count]
            torch.testing.assert_close(found, own, atol=2e-5, rtol=1e-4)


def test_the_cost_is_linear_in_length():
    encoder = SpeakerEncoder(small(), NoHead())
    costs = [count_macs(encoder, 12 * k * 400 / 16000) for k in (1, 2, 10)]
    assert costs[2] == 10 * costs[0] == 5 * costs[1]


# -- teachers and bad values -----------------------------------------------------------


def test_the_front_end_of_a_teacher():
    teacher = randomise(WavLMEncoder(waveform_config("wavlm"))).eval()
    config = {"hidden_size": 24, "group_size": 8, "num_hidden_layers": 1, "frames": 12}
    for given in (teacher, SpeakerEncoder(teacher, MFA(48, 4, 8))):
        student = SVMixerEncoder(config, front_end_from=given)
        assert student.standardise == teacher.standardise
        assert student.same_front_end(teacher)
        assert student.config.conv_dim == teacher.config.conv_dim
        theirs = teacher.feature_extractor.state_dict()
        own = student.feature_extractor.state_dict()
        assert all(torch.equal(own[name], theirs[name]) for name in theirs)
        assert "front_end_from" not in student.arguments
    # whatever the configuration says of it
    wide = {**config, "hidden_size": 48, "front_end": "w2v_bert"}
    student = SVMixerEncoder(wide, front_end_from=teacher).eval()
    wavs = 0.1 * noise(2, 8000)
    same = (states_of(e, wavs)[0] for e in (student, teacher))
    assert next(same).shape == next(same).shape
    projection = teacher.feature_projection.projection.weight
    assert torch.equal(student.feature_projection.projection.weight, projection)
    whisper = WhisperEncoder(
        WhisperConfig(d_model=8, encoder_layers=1, encoder_attention_heads=1)
    )
    with pytest.raises(InputError, match="front_end_from: WhisperEncoder, expected"):
        SVMixerEncoder(config, front_end_from=whisper)


@pytest.mark.parametrize("normalise_variance", [True, False])
def test_the_features_of_a_teacher(normalise_variance):
    sizes = tiny_config(normalise_variance=normalise_variance)
    teacher = randomise(W2VBertEncoder(sizes)).eval()
    width = teacher.hidden_size
    config = {"hidden_size": width, "group_size": 8, "frames": 24}
    student = SVMixerEncoder({**config, "num_hidden_layers": 1}, front_end_from=teacher)
    student.eval()
    assert student.config.front_end == "w2v_bert"
    assert student.same_front_end(teacher)
    assert teacher.same_front_end(student)
    wavs = 0.1 * noise(2, 9000)
    lens = torch.tensor([1.0, 0.6])
    valid = padding_mask(27, student(wavs, lens)[1]).logical_not()
    ours, theirs = (states_of(e, wavs, lens)[0][valid] for e in (student, teacher))
    assert torch.equal(ours, theirs)
    second = SVMixerEncoder({**config, "num_hidden_layers": 1}, front_end_from=student)
    assert torch.equal(states_of(second.eval(), wavs)[0], states_of(teacher, wavs)[0])
    again = SVMixerEncoder(**student.arguments)
    assert again.features.normalise_variance == normalise_variance
    other = W2VBertEncoder(tiny_config(normalise_variance=not normalise_variance))
    assert not student.same_front_end(other)
    assert not other.same_front_end(student)
    base = WavLMEncoder(waveform_config("wavlm"), standardise=False)
    for waveform in (small(), base):
        assert not student.same_front_end(waveform)
        assert not waveform.same_front_end(student)
    # whatever the configuration says of convolutions
    waveform = {"conv_dim": [8] * 7, "feat_extract_norm": "layer"}
    third = SVMixerEncoder(
        {**config, **waveform, "num_hidden_layers": 1}, front_end_from=teacher
    )
    assert third.same_front_end(teacher)


def test_frames_of_features_are_those_of_the_convolutions():
    """149 of 3 s, so that one time MLP serves both; the window is filled alike."""
    features = {"front_end": "w2v_bert", "frames": 149, "group_size": 8}
    mixers = [
        SVMixerEncoder({"hidden_size": 8, "num_hidden_layers": 1, **options})
        for options in (features, {"conv_dim": [4] * 7, "group_size": 8})
    ]
    for seconds in (1, 2, 3, 10):
        wav = 0.1 * noise(1, round(16000 * seconds))
        frames = {states_of(mixer.eval(), wav)[-1].shape[1] for mixer in mixers}
        assert len(frames) == 1
    fewest, most = mixers[0].fitting_samples
    for samples, fits in ((fewest - 1, False), (fewest, True), (most, True)):
        states = states_of(mixers[0], 0.1 * noise(1, samples))
        assert (states[0].shape[1] == 149) == fits
    assert mixers[0].prunable_groups()[0].name.startswith("encoder.layers.0")


@pytest.mark.parametrize("key", ["repeat_last", "conv_scale", "full_conv_dim"])
def test_what_features_have_none_of(key):
    with pytest.raises(InputError, match=f"{key}: .*, expected none with front_end"):
        TransformerStudent({"front_end": "w2v_bert", key: [1, 1]})


def test_without_lengths_features_look_for_none():
    """Lengths that a step did not give would be read back from a GPU."""
    student = SVMixerEncoder(
        {"front_end": "w2v_bert", "hidden_size": 8, "group_size": 8}
        | {"num_hidden_layers": 1, "frames": 12}
    )
    given = []
    student.features.register_forward_pre_hook(lambda m, args: given.append(args[1]))
    student.front_end(noise(2, 1600), None)
    assert given == [None]


def test_which_lengths_fill_the_window():
    assert small().fitting_samples == (12 * 400, 13 * 400 - 1)
    assert small(block="cycle_mlp").fitting_samples is None
    wav = 0.1 * noise(1, 13 * 400)
    for samples, fits in ((4799, False), (4800, True), (5199, True), (5200, False)):
        assert (states_of(small(), wav[:, :samples])[0].shape[1] == 12) == fits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "mixer"}, "block: 'mixer', expected one of sv_mixer, "),
        ({"form": "paper"}, "form: 'paper', expected one of code, drawing"),
        ({"any_length": "cut"}, "any_length: 'cut', expected one of windows, "),
        ({"grouped": 1}, "grouped: 1, expected true or false"),
        ({"frames": 0}, "frames"),
        ({"group_size": 7}, "group_size: 7, expected a divisor of hidden_size 24"),
        ({"layer_units": []}, "layer_units: 0 entries, expected 2"),
        ({"layer_units": [{}, {}]}, r"layer 0 has \[\], expected \['fast', 'slow', "),
        (
            {"layer_units": [{"token": 0, "slow": 0, "fast": 0}] * 2},
            "layer 0, fast 0, expected a multiple of 3, 3 to 96",
        ),
        ({"conv_stride": [4, 4]}, "conv_stride"),
        ({"normalise_variance": 1}, "normalise_variance: 1, expected true or false"),
        ({"front_end": "mfcc"}, "front_end: 'mfcc', expected one of convolutions, w2v"),
        (
            {"front_end": "w2v_bert"},
            r"conv_dim: \[6\], expected none with front_end w2v",
        ),
    ],
)
def test_bad_values_are_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message) as refused:
        small(**changes)
    assert "\n" not in str(refused.value)


def test_too_short_a_recording():
    with pytest.raises(InputError, match="waveform: 799 samples, expected 800 or more"):
        small()(torch.zeros(1, 799))


def test_an_unknown_key_is_not_another_model():
    with pytest.raises(InputError, match="hiddensize: unknown, expected keys of Mixer"):
        SVMixerEncoder({"hiddensize": 32})
    expected = "num_heads: unknown, expected keys of TransformerStudentConfig"
    with pytest.raises(InputError, match=expected):
        TransformerStudent({"num_heads": 4})
