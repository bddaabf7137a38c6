"""What every encoder promises (speechbrain_ext.lobes.encoder), on each of them.

A new encoder is one more line of ENCODERS: a small one with random weights, built as a
user builds it. What it does not have (groups, LoRA targets, recomputed layers) is said
by the encoder itself, and its tests are skipped or expect a refusal.
"""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from random_gates import relative_error, set_gates, size_of
from tiny_encoder import BASE, noise, randomise, tiny_config, waveform_config
from torch import nn
from transformers import WhisperConfig

from speechbrain_ext.adaptation import check_lora_gradients, inject_lora, merge_lora
from speechbrain_ext.features import W2VBertFeatures
from speechbrain_ext.lobes.campplus import CAMPPlus
from speechbrain_ext.lobes.ecapa import ECAPA
from speechbrain_ext.lobes.encoder import (
    Encoder,
    Head,
    PrunableGroup,
    count_parameters,
    padding_mask,
)
from speechbrain_ext.lobes.eres2net import ERes2NetV2
from speechbrain_ext.lobes.heads import MFA
from speechbrain_ext.lobes.int8 import in_int8, is_linear, largest_weight
from speechbrain_ext.lobes.nemo_conformer import NemoConformerEncoder
from speechbrain_ext.lobes.redimnet import ReDimNet, ReDimNet2
from speechbrain_ext.lobes.resnet import ResNet, SimAMResNet
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.sv_mixer import SVMixerEncoder, TransformerStudent
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.lobes.wav2vec2 import (
    HubertEncoder,
    UniSpeechSatEncoder,
    Wav2Vec2Encoder,
)
from speechbrain_ext.lobes.wavlm import WavLMEncoder
from speechbrain_ext.lobes.whisper import WhisperEncoder
from speechbrain_ext.pretrained import load_pretrained, load_trainable, save_pretrained
from speechbrain_ext.profiling import count_macs
from speechbrain_ext.profiling.layers import layer_times
from speechbrain_ext.pruning import (
    Budget,
    add_gates,
    expected_macs,
    expected_parameters,
    harden,
    prune,
)
from speechbrain_ext.pruning.costs import mac_costs
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.precision import round_for_autocast
from speechbrain_ext.utils.weights import load_strictly

SECONDS = (0.9, 0.37, 0.61)


# -- two encoders as their authors would write them ------------------------------------


class ToyEncoder(Encoder):
    """Two strided convolutions over the waveform, then one layer: two states.

    Its channels are prunable: group c0 and c1 share the second convolution's weight.
    """

    min_samples = 500
    lora_targets = ("linear",)

    def __init__(self, channels=(5, 6), width=8, frozen=False):
        super().__init__(frozen)
        self.channels, self.hidden_size, self.n_states = list(channels), width, 2
        first, second = channels
        self.stem = nn.ModuleList(
            [nn.Conv1d(1, first, 40, 20), nn.Conv1d(first, second, 20, 10)]
        )
        self.norm = nn.LayerNorm(second)
        self.projection = nn.Linear(second, width)
        self.linear = nn.Linear(width, width)

    def encode(self, x, lens=None):
        x = self.stem[1](self.stem[0](x.unsqueeze(1)).relu())
        x = self.projection(self.norm(x.transpose(1, 2)))
        return [x, x + self.linear(x).tanh()]

    def graph_form(self):
        return self  # its steps are the same for any batch already

    def output_lens(self, x, lens):
        if lens is None:
            return None
        samples = torch.round(lens.double() * x.shape[1]).long()
        frames = ((samples - 40) // 20 + 1 - 20) // 10 + 1
        return frames / frames.max()

    def prunable_groups(self):
        first, second = self.channels
        return [
            PrunableGroup(
                name="stem.0",
                kind="conv",
                units=first,
                full=self.arguments["channels"][0],
                input_weights=("stem.0.weight", "stem.0.bias"),
                output_weight="stem.1.weight",
                unit_dim=1,
            ),
            PrunableGroup(
                name="stem.1",
                kind="conv",
                units=second,
                full=self.arguments["channels"][1],
                input_weights=(
                    *("stem.1.weight", "stem.1.bias", "norm.weight", "norm.bias"),
                ),
                output_weight="projection.weight",
                norms=("norm",),
                layer=1,
            ),
        ]

    def resized(self, widths):
        arguments = {**self.arguments, "channels": list(widths.values())}
        return type(self)(**arguments, frozen=self.frozen)


class ToyFbank(Encoder):
    """A network of features with one state, time halved, sizes by keyword."""

    min_samples = 560

    def __init__(self, width=6, *, strength=1e-05, gradient_checkpointing=False):
        super().__init__(gradient_checkpointing=gradient_checkpointing)
        self.hidden_size, self.n_states, self.strength = width, 1, strength
        self.features = W2VBertFeatures(normalise_variance=False)
        self.layer = nn.Sequential(nn.Linear(160, width), nn.Tanh())

    def front_end(self, wavs, wav_lens=None):
        return self.features(wavs, wav_lens)

    def encode(self, x, lens=None):
        return [self.checkpointed(self.layer, self.strength * x)]


PRUNED = {
    "num_attention_heads_group": [1, 0, 4],
    "use_attention": [True, False, True],
    "intermediate_size_group": [[80, 7], [0, 80], [33, 80]],
    "use_feed_forward": [[True, True], [False, True], [True, True]],
    "conv_group": [[48, 48], [48, 5], [48, 48]],
}
WHISPER_PRUNED = {
    "num_attention_heads_group": [1, 0, 4],
    "ffn_dim_group": [0, 7, 80],
    "conv1_channels": 11,
}


def tiny_whisper(**changes):
    values = {"d_model": 48, "encoder_layers": 3, "encoder_attention_heads": 4}
    return WhisperConfig(**{**values, "encoder_ffn_dim": 80, **changes})


WAVEFORM_PRUNED = {
    "conv_dim": [9, 8, 5],
    "full_conv_dim": [12, 12, 12],
    "num_attention_heads_group": [0, 3, 4],
    "intermediate_size_group": [40, 0, 7],
}
# of encoders that other programs publish
AS_PUBLISHED = {"conv_scale": True, "repeat_last": True, "variance_floor": 1e-5}
NEMO_WIDTHS = [[3, 33, 0, 5], [0, 0, 64, 0]]
NEMO_OPTIONS = {"use_bias": False, "conv_norm_type": "layer_norm", "xscaling": False}


def nemo_config(**changes):
    """A configuration of 2 layers × 16 channels, as NeMo's recipes have it."""
    sizes = {"feat_in": 80, "n_layers": 2, "d_model": 16, "conv_kernel_size": 9}
    return {"encoder": {**sizes, **changes}}


ECAPA_PRUNED = {
    "channels": [24, 24, 24, 24, 20],
    "res2net_widths": [3, 1, 2],
    "se_widths": [7, 128, 1],
    "block_sums": True,
    "front_end": "voxblink2_std",
}


# A window of 20 frames: SECONDS are more than two of them, less than one, and between
def mixer_config(**changes):
    return {**STUDENT, "group_size": 8, "frames": 20, **changes}


STUDENT = {"hidden_size": 24, "num_hidden_layers": 2, "conv_dim": [12, 12, 12]}
STUDENT |= {"conv_kernel": [10, 5, 11], "conv_stride": [5, 4, 16]}
OF_FEATURES = {"hidden_size": 24, "num_hidden_layers": 2, "front_end": "w2v_bert"}


MIXER_PRUNED = {
    "layer_units": [
        {"token": 0, "slow": 3, "fast": 9},
        {"token": 80, "slow": 0, "fast": 96},
    ],
    "conv_dim": [9, 8, 5],
    "full_conv_dim": [12, 12, 12],
}


ENCODERS = {
    "w2v_bert": lambda **o: W2VBertEncoder(tiny_config(), **o),
    "w2v_bert_pruned": lambda **o: W2VBertEncoder(tiny_config(**PRUNED), **o),
    "whisper": lambda **o: WhisperEncoder(tiny_whisper(), **o),
    "whisper_pruned": lambda **o: WhisperEncoder(
        tiny_whisper(**WHISPER_PRUNED), last_state="raw", **o
    ),
    "wav2vec2": lambda **o: Wav2Vec2Encoder(waveform_config("wav2vec2"), **o),
    "hubert_base": lambda **o: HubertEncoder(waveform_config("hubert", **BASE), **o),
    "unispeech_sat": lambda **o: UniSpeechSatEncoder(
        waveform_config("unispeech-sat", conv_bias=False), last_state="raw", **o
    ),
    "wavlm_base": lambda **o: WavLMEncoder(waveform_config("wavlm", **BASE), **o),
    "wavlm": lambda **o: WavLMEncoder(waveform_config("wavlm"), **o),
    "wavlm_pruned": lambda **o: WavLMEncoder(
        waveform_config("wavlm", **WAVEFORM_PRUNED, **AS_PUBLISHED), **o
    ),
    "nemo_conformer": lambda **o: NemoConformerEncoder(nemo_config(), **o),
    "nemo_conformer_pruned": lambda **o: NemoConformerEncoder(
        nemo_config(layer_widths=NEMO_WIDTHS, **NEMO_OPTIONS), **o
    ),
    "campplus": lambda **o: CAMPPlus(
        [2, 1], [1, 2], channels=12, growth=4, bottleneck=6, stem_channels=4, **o
    ),
    "eres2netv2": lambda **o: ERes2NetV2(
        [1, 1, 2, 1], channels=8, chunks=3, front_end="wespeaker", **o
    ),
    "ecapa": lambda **o: ECAPA([16, 24, 24, 24, 20], n_mels=9, **o),
    "ecapa_zeros": lambda **o: ECAPA(padding="zeros", **ECAPA_PRUNED, **o),
    "resnet": lambda **o: ResNet(
        blocks=[1, 2, 1, 1], bottleneck=True, width=4, n_mels=20, **o
    ),
    "simam_resnet": lambda **o: SimAMResNet(
        blocks=[1, 1, 2, 1], width=4, n_mels=20, front_end="voxblink2", **o
    ),
    "redimnet": lambda **o: ReDimNet(
        bins=12,
        channels=4,
        stages_setup=[[1, 1, 2, [[3, 3]], 6], [3, 1, 1, [[3, 3]], None]],
        block_2d_type="basic_resnet_fwse",
        group_divisor=2,
        front_end={"feat_type": "tf"},
        **o,
    ),
    "redimnet2": lambda **o: ReDimNet2(
        bins=12,
        channels=4,
        stages_setup=[[[2, 2], 1, 0.5, [[3, 3]], 6], [[1, 2], 1, 1, [[3, 5]], 6]],
        block_1d_type="att",
        block_2d_type="convnext_like",
        out_channels=6,
        agg_gnorm=True,
        dual_agg=True,
        front_end={"norm_signal": True},
        **o,
    ),
    "sv_mixer": lambda **o: SVMixerEncoder(mixer_config(), **o),
    "sv_mixer_pruned": lambda **o: SVMixerEncoder(mixer_config(**MIXER_PRUNED), **o),
    "sv_mixer_drawing": lambda **o: SVMixerEncoder(
        mixer_config(form="drawing", any_length="resampled"), last_state="raw", **o
    ),
    "sv_mixer_features": lambda **o: SVMixerEncoder(
        {**OF_FEATURES, "group_size": 8, "frames": 20}, **o
    ),
    "mlp_mixer": lambda **o: SVMixerEncoder(mixer_config(block="mlp_mixer"), **o),
    "conv_mixer": lambda **o: SVMixerEncoder(mixer_config(block="conv_mixer"), **o),
    "cycle_mlp": lambda **o: SVMixerEncoder(mixer_config(block="cycle_mlp"), **o),
    "transformer_student": lambda **o: TransformerStudent(
        {**STUDENT, "num_attention_heads": 3, "intermediate_size": 40}
        | {"num_conv_pos_embeddings": 0, "num_conv_pos_embedding_groups": 4},
        **o,
    ),
    "transformer_student_features": lambda **o: TransformerStudent(
        {**OF_FEATURES, "num_attention_heads": 3, "intermediate_size": 40}
        | {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 4},
        **o,
    ),
    "toy": ToyEncoder,
    "toy_fbank": ToyFbank,
}


# An export takes ten seconds: of these the graph has no step that another one lacks, or
# it is that of test_onnx_export.
SAME_GRAPH = {
    *("w2v_bert", "whisper", "nemo_conformer", "resnet", "eres2netv2", "ecapa_zeros"),
    *("redimnet", "ecapa", "w2v_bert_pruned"),
    *("wav2vec2", "unispeech_sat", "wavlm", "wavlm_base", "transformer_student"),
    "transformer_student_features",
    *("sv_mixer", "sv_mixer_pruned", "mlp_mixer", "conv_mixer"),
}


@pytest.fixture(params=ENCODERS)
def build(request):
    """build(**options): a random encoder in eval mode."""
    return lambda **options: randomise(ENCODERS[request.param](**options)).eval()


@pytest.fixture
def encoder(build):
    return build()


def padded():
    """Three waveforms of other lengths in one batch, noise in the padding."""
    wavs = 0.1 * noise(3, round(16000 * max(SECONDS)))
    return wavs, torch.tensor(SECONDS) / max(SECONDS)


def states_of(encoder, *batch):
    with torch.no_grad():
        return encoder(*batch)[0]


def speaker_encoder(encoder):
    head = MFA(encoder.hidden_size, encoder.n_states, 4, pooling_size=3)
    return SpeakerEncoder(encoder, randomise(head)).eval()


# -- outputs ---------------------------------------------------------------------------


def test_states_are_as_many_and_as_wide_as_it_says(encoder):
    states, lens = encoder(*padded())
    assert len(states) == encoder.n_states
    assert {state.shape[::2] for state in states} == {(3, encoder.hidden_size)}
    assert len({state.shape[1] for state in states}) == 1
    assert lens.shape == (3,)
    assert float(lens.max()) == 1
    full, lens = encoder(padded()[0])
    assert full[0].shape == states[0].shape
    assert (lens == 1).all()


def test_a_padded_batch_is_its_utterances_alone(encoder):
    wavs, wav_lens = padded()
    with torch.no_grad():
        states, lens = encoder(wavs, wav_lens)
        for row, seconds in enumerate(SECONDS):
            alone, _ = encoder(wavs[row : row + 1, : round(16000 * seconds)])
            frames = alone[0].shape[1]
            assert round(float(lens[row]) * states[0].shape[1]) == frames
            for state, own in zip(states, alone):
                found = state[row : row + 1, :frames]
                torch.testing.assert_close(found, own, atol=2e-5, rtol=1e-4)


def test_the_shortest_input_is_the_one_it_says(encoder):
    states = states_of(encoder, 0.1 * noise(1, encoder.min_samples))
    assert states[0].shape[1] >= 1
    shortest = f"{encoder.min_samples / 16000:g}"
    with pytest.raises(InputError, match=f"seconds: 0.01, expected {shortest}"):
        encoder.example(0.01)


def test_front_end_then_encode_is_forward(encoder):
    wavs, wav_lens = padded()
    x, lens = encoder.front_end(wavs, wav_lens)
    with torch.no_grad():
        states = encoder.encode(x, lens)
    assert all(map(torch.equal, states, states_of(encoder, wavs, wav_lens)))
    x, lens = encoder.front_end(wavs, None)  # as training does it, without any lengths
    with torch.no_grad():
        states = encoder.encode(x), encoder.encode(x, lens)
    assert all(map(torch.equal, *states))
    assert encoder.output_lens(x, None) is None
    assert isinstance(encoder.same_front_end(copy.deepcopy(encoder)), bool)


def test_without_its_last_layer_its_other_states_are_as_they_were(encoder):
    """For heads that read no later state."""
    n_states = encoder.n_states - 1
    if n_states < 2:
        with pytest.raises(InputError, match="cannot leave out the layers behind"):
            encoder.truncate(n_states)
        return
    expected = states_of(encoder, *padded())[:n_states]
    encoder.truncate(n_states)
    assert encoder.n_states == n_states
    assert all(map(torch.equal, states_of(encoder, *padded()), expected))
    again = type(encoder)(**encoder.arguments)
    load_strictly(again, encoder.state_dict(), "shorter encoder")
    assert all(map(torch.equal, states_of(again.eval(), *padded()), expected))


def test_in_8_bits_it_is_nearly_itself_or_refused(encoder):
    """And a padded batch is its utterances alone, but for what rounds otherwise.

    Where float32 differs in a last bit, a value may round to the next step of 255.
    """
    model = speaker_encoder(encoder)
    if not encoder.int8_layers:
        with pytest.raises(InputError, match=f"int8: {type(encoder).__name__} has no"):
            in_int8(model)
        return
    if largest_weight() is None:
        pytest.skip("no 8-bit products here")
    wavs, wav_lens = padded()
    with torch.no_grad():
        exact = model(wavs, wav_lens)
        found = in_int8(model)(wavs, wav_lens)
        assert F.cosine_similarity(found, exact, -1).min() > 0.999
        for row, seconds in enumerate(SECONDS):
            alone = model(wavs[row : row + 1, : round(16000 * seconds)])
            assert (found[row] - alone).norm() < 1e-2 * alone.norm()
    left = {n.rsplit(".", 1)[-1] for n, m in encoder.named_modules() if is_linear(m)}
    assert not left & set(encoder.int8_layers)


# -- arguments and folders -------------------------------------------------------------


def test_weights_rounded_once_are_those_that_autocast_rounds(encoder):
    encoder.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        x, lens = encoder.front_end(*padded())
        expected = encoder.encode(x, lens)
        round_for_autocast(encoder, "cpu")
        found = encoder.encode(x, lens)
    for one, other in zip(found, expected, strict=True):
        # less than two steps of bf16 at the largest number
        assert one.dtype == other.dtype
        assert torch.allclose(one, other, atol=0.005 * float(other.abs().max()))
    types = {p.dtype for p in encoder.parameters()}
    assert torch.bfloat16 in types


def test_arguments_rebuild_it(encoder):
    again = type(encoder)(**encoder.arguments)
    assert again.arguments == encoder.arguments
    again.load_state_dict(encoder.state_dict())
    one, other = (states_of(e.eval(), *padded()) for e in (encoder, again))
    assert all(map(torch.equal, one, other))


def test_a_saved_model_loads_as_it_was(encoder, tmp_path):
    model = speaker_encoder(encoder)
    loaded = load_pretrained(save_pretrained(tmp_path / "model", model))
    assert type(loaded.encoder) is type(encoder)
    assert loaded.encoder.arguments == encoder.arguments
    assert torch.equal(loaded(*padded()), model(*padded()))


def test_a_saved_model_is_trained_on(encoder, build, tmp_path):
    folder = save_pretrained(tmp_path / "model", speaker_encoder(encoder))
    model = load_trainable(folder)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    frozen = load_trainable(folder, frozen_encoder=True)
    assert not any(p.requires_grad for p in frozen.encoder.parameters())
    assert not any(m.training for m in frozen.encoder.modules())
    assert all(p.requires_grad for p in frozen.head.parameters())
    if isinstance(encoder, ToyEncoder):
        with pytest.raises(InputError, match="gradient_checkpointing: ToyEncoder has"):
            load_trainable(folder, gradient_checkpointing=True)
    else:
        model = load_trainable(folder, gradient_checkpointing=True)
        assert model.encoder.gradient_checkpointing


# -- training --------------------------------------------------------------------------


def test_frozen_is_frozen_and_else_it_follows_train(build):
    encoder = build()
    assert all(module.training for module in encoder.train().modules())
    assert not any(module.training for module in encoder.eval().modules())
    if "frozen" in inspect.signature(type(encoder)).parameters:
        encoder = build(frozen=True)
    else:
        encoder.freeze()
    assert nn.ModuleList([encoder]).train().training
    for one in (encoder, copy.deepcopy(encoder).train()):
        assert not any(module.training for module in one.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert "frozen" not in encoder.arguments


def test_every_parameter_gets_a_gradient(encoder):
    """DistributedDataParallel stops at one that does not."""
    gradients_of(encoder.train(), *padded())
    assert all(p.grad is not None for p in encoder.parameters())


def gradients_of(encoder, *batch):
    torch.manual_seed(0)
    sum(state.square().mean() for state in encoder(*batch)[0]).backward()
    return [p.grad for p in encoder.parameters()]


def test_gradient_checkpointing_changes_no_gradient(build):
    encoder = build()
    if "gradient_checkpointing" not in inspect.signature(type(encoder)).parameters:
        with pytest.raises(InputError, match="gradient_checkpointing"):
            encoder.set_training_options(gradient_checkpointing=True)
        return
    encoder.set_training_options(gradient_checkpointing=True)
    recomputed = gradients_of(encoder.train(), *padded())
    plain = gradients_of(build().train(), *padded())
    for one, other in zip(recomputed, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_lora_learns_and_merges(encoder):
    if not encoder.lora_targets:
        with pytest.raises(InputError, match=r"no layers named \[\]"):
            inject_lora(encoder, r=2)
        return
    inject_lora(encoder, r=2, alpha=4).train()
    gradients_of(encoder, *padded())
    check_lora_gradients(encoder)
    trained = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in encoder.named_parameters() if "lora_" in n}
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    adapted = states_of(encoder.eval(), *padded())
    merged = states_of(merge_lora(encoder), *padded())
    for one, other in zip(merged, adapted):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


# -- pruning ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["soft", "hard"])
def test_gated_is_pruned_and_counted_is_real(encoder, how):
    if not encoder.prunable_groups():
        with pytest.raises(InputError, match="no units left to prune"):
            add_gates(encoder)
        return
    full = mac_costs(add_gates(encoder.double())).full
    set_gates(encoder, how)
    pruned = prune(encoder)
    wavs, wav_lens = padded()
    found = states_of(pruned, wavs.double(), wav_lens)
    assert relative_error(found, states_of(encoder, wavs.double(), wav_lens)) < 1e-5
    if how == "hard":
        assert expected_parameters(encoder).item() == size_of(pruned)
        real = mac_costs(pruned).rest
        assert expected_macs(encoder).item() == real < full
    again = type(encoder)(**pruned.arguments)
    assert {n: p.shape for n, p in again.state_dict().items()} == {
        n: p.shape for n, p in pruned.state_dict().items()
    }


def test_a_budget_is_met_to_less_than_a_unit(encoder):
    if not encoder.prunable_groups():
        with pytest.raises(InputError, match="has no gates"):
            Budget(encoder, sparsity=0.3)
        return
    set_gates(add_gates(encoder), "soft")
    budget = Budget(encoder, sparsity=0.3)
    cost = harden(budget)
    assert cost == size_of(prune(encoder)) <= 0.7 * budget.costs.full
    assert cost >= 0.7 * budget.costs.full - size_of_a_unit(budget.costs)


def size_of_a_unit(costs):
    return max(
        cost.unit
        + cost.fixed
        + sum(
            (1 + (other == own)) * pair * costs.groups[other].gate.size
            for other, pair in cost.pairs
        )
        for own, cost in enumerate(costs.groups)
    )


# -- profile and ONNX ------------------------------------------------------------------

# Multiply-adds of one second in the encoder alone, by hand
MACS = {
    # two convolutions (799 frames, 78 frames) and two linear maps
    ToyEncoder: 799 * 40 * 5 + 78 * (20 * 5 * 6 + 6 * 8 + 8 * 8),
    ToyFbank: 49 * 160 * 6,
}


class LastState(nn.Module):
    """A head without arithmetic."""

    def forward(self, states, lens):
        return states[-1]


def test_profile_counts_what_is_there(encoder):
    trained, total = count_parameters(encoder)
    assert trained == total == size_of(encoder)
    macs = count_macs(SpeakerEncoder(encoder, LastState()))
    assert macs == MACS.get(type(encoder), macs) > 0
    with torch.device("meta"):
        bare = type(encoder)(**encoder.arguments)
    assert count_parameters(bare).total == total
    assert count_macs(SpeakerEncoder(bare, LastState())) == macs
    # the attention of the pooling over all frames, then one linear map
    model, frames = speaker_encoder(encoder), encoder(padded()[0])[0][0].shape[1]
    channels = encoder.hidden_size * encoder.n_states
    pooling = frames * channels * 3 * 2 + 2 * channels * 4
    seconds = max(SECONDS)
    alone = count_macs(SpeakerEncoder(encoder, LastState()), seconds)
    assert count_macs(model, seconds) == alone + pooling


def test_layers_are_timed_or_refused_in_one_line(encoder):
    model = speaker_encoder(encoder)
    if not encoder.layer_kinds():
        with pytest.raises(InputError, match=type(encoder).__name__):
            layer_times(model, seconds=0.5, repeats=1)
        return
    times = {time.name: time for time in layer_times(model, seconds=0.5, repeats=1)}
    assert list(times) == [*encoder.layer_kinds(), "head", "rest"]
    for name, kind in encoder.layer_kinds().items():
        assert any(isinstance(m, kind) for m in encoder.modules()), name
        assert times[name].seconds > 0


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("build", sorted(set(ENCODERS) - SAME_GRAPH), indirect=True)
def test_onnx_equals_torch_or_is_refused_in_one_line(encoder, tmp_path):
    pytest.importorskip("onnxscript")
    from speechbrain_ext.export.onnx.export import export_onnx
    from speechbrain_ext.inference.onnx_runner import OnnxSpeakerEncoder

    model, output = speaker_encoder(encoder), tmp_path / "model.onnx"
    if encoder.graph_form() is None:
        with pytest.raises(InputError, match=type(encoder).__name__) as refused:
            export_onnx(model, output)
        assert "\n" not in str(refused.value)
        assert not list(tmp_path.iterdir())
        return
    export_onnx(model, output)
    graph = OnnxSpeakerEncoder(output, threads=1, speech_detection=False)
    assert graph.min_samples == encoder.min_samples
    assert graph.sample_rate == encoder.sample_rate
    wavs, wav_lens = padded()
    lengths = (wav_lens * wavs.shape[1]).round().int().tolist()
    found = graph.embed([wav[:n].numpy() for wav, n in zip(wavs, lengths)])
    with torch.no_grad():
        expected = model(wavs, wav_lens).squeeze(1)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=0)


def test_padding_mask():
    assert padding_mask(10, None) is None
    assert padding_mask(10, torch.tensor([1.0, 0.999])) is None
    mask = padding_mask(4, torch.tensor([1.0, 0.5]))
    assert mask.tolist() == [[False] * 4, [False, False, True, True]]


# -- the record of arguments -----------------------------------------------------------


class Pooled(Head):
    def __init__(self, input_size, n_states=1, *, embedding_size=3, **options):
        super().__init__()
        self.linear = nn.Linear(input_size, embedding_size)
        self.options = options

    def forward(self, states, lens=None):
        mask = padding_mask(states[-1].shape[1], lens)
        assert mask is None
        return self.linear(states[-1].mean(1, keepdim=True))


class Narrow(Pooled):
    def __init__(self, input_size):
        super().__init__(input_size, embedding_size=2)


def test_arguments_are_recorded_with_defaults_of_the_outermost_class():
    head = Pooled(4, gain=2.5)
    expected = {"input_size": 4, "n_states": 1, "embedding_size": 3, "gain": 2.5}
    assert head.arguments == expected
    assert type(head)(**head.arguments).options == {"gain": 2.5}
    assert copy.deepcopy(head).arguments == expected
    assert Narrow(4).arguments == {"input_size": 4}
    with pytest.raises(TypeError, match=r"Pooled.__init__\(\) missing 1 required"):
        Pooled()


def test_what_cannot_be_rebuilt_is_not_saved(tmp_path):
    class Local(ToyFbank):
        pass

    plain = nn.Linear(3, 3)
    for encoder, head, expected in (
        (ToyFbank(), plain, "Linear: no record of its arguments"),
        (ToyFbank(), Pooled(6, odd=plain), "Linear: no record of its arguments"),
        (ToyFbank(), Pooled(6, odd={1}), "Pooled: argument odd is a set"),
        (Local(), Pooled(6), "Local: expected a class that can be imported"),
    ):
        with pytest.raises(InputError, match=expected):
            save_pretrained(tmp_path / "model", SpeakerEncoder(encoder, head))
        assert not list(tmp_path.iterdir())


def test_a_lora_layer_without_gradient_is_named():
    """Its weight is used, the layer is not called: what transformers' WavLM does."""
    encoder = inject_lora(ToyEncoder(), r=2)
    check = copy.deepcopy(encoder)
    # backward needs something with a gradient
    needs_one = torch.zeros((), requires_grad=True)
    check.linear.forward = lambda x: x @ check.linear.weight + 0 * needs_one
    gradients_of(check, *padded())
    with pytest.raises(InputError, match=r"reaches 1 layer\(s\): linear; expected"):
        check_lora_gradients(check)
    gradients_of(encoder, *padded())
    check_lora_gradients(encoder)
