"""wav2vec 2.0 and its kin against transformers' own models; padding against none."""

import json

import numpy as np
import pytest
import torch
from random_gates import close, relative_error, set_gates, size_of
from tiny_encoder import BASE, noise, randomise, waveform_config
from transformers import AutoModel, Wav2Vec2Config, Wav2Vec2ForPreTraining

from speechbrain_ext.adaptation import check_lora_gradients, inject_lora
from speechbrain_ext.lobes import waveform_convolutions
from speechbrain_ext.lobes.cpu_inference import gelu
from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.lobes.heads import MFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.wav2vec2 import (
    HubertEncoder,
    UniSpeechSatEncoder,
    Wav2Vec2Encoder,
)
from speechbrain_ext.lobes.wavlm import WavLMEncoder
from speechbrain_ext.pruning import add_gates, expected_parameters, prune
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.weights import read_weights, save_weights

KINDS = {
    "wav2vec2": Wav2Vec2Encoder,
    "hubert": HubertEncoder,
    "unispeech-sat": UniSpeechSatEncoder,
    "wavlm": WavLMEncoder,
}
# What checkpoints differ in: norms, biases, widths, taps, strides
FLAVOURS = {
    "large": {},
    "base": BASE,
    "pre_norm_group": {"feat_extract_norm": "group"},
    "post_norm_layer": {"do_stable_layer_norm": False, "conv_bias": False},
    "odd": {
        "conv_dim": [7, 5, 6, 9],
        "conv_kernel": [9, 4, 7, 1],
        "conv_stride": [4, 5, 3, 2],
        "num_conv_pos_embeddings": 15,
        "num_conv_pos_embedding_groups": 3,
        "hidden_size": 36,
        "num_attention_heads": 3,
        "hidden_act": "relu",
        "feat_extract_activation": "gelu_new",
    },
}
LENGTHS = (20000, 7001, 12345)


def stock(kind, **changes):
    """transformers' model with random weights, in eval mode."""
    config = waveform_config(kind, apply_spec_augment=False, **changes)
    return randomise(AutoModel.from_config(config, attn_implementation="eager")).eval()


def padded(*lengths):
    """Waveforms of these lengths in one batch, noise in the padding → (batch, lens)."""
    wavs = 0.1 * noise(len(lengths), max(lengths)) + 0.03
    return wavs, torch.tensor(lengths) / max(lengths)


def expected_states(model, wav, last_state, standardise):
    """transformers' states of one waveform [T]."""
    if standardise:
        wav = (wav - wav.mean()) / torch.sqrt(wav.var(correction=0) + 1e-7)
    with torch.no_grad():
        output = model(wav.unsqueeze(0), output_hidden_states=True)
    states = list(output.hidden_states)
    if last_state == "normalised":
        states[-1] = output.last_hidden_state
    return states


def assert_equal(encoder, model, lengths=LENGTHS, atol=2e-5):
    """A padded batch, with gradients and without, and every waveform alone."""
    wavs, lens = padded(*lengths)
    options = encoder.arguments["last_state"], encoder.standardise
    for needs_gradient in (False, True):
        with torch.set_grad_enabled(needs_gradient):
            states, relative = encoder(wavs, lens)
        for row, length in enumerate(lengths):
            wav = wavs[row, :length]
            expected = expected_states(model, wav, *options)
            with torch.set_grad_enabled(needs_gradient):
                alone, _ = encoder(wav.unsqueeze(0))
            frames = expected[0].shape[1]
            assert round(float(relative[row]) * states[0].shape[1]) == frames
            assert len(states) == len(alone) == len(expected) == encoder.n_states
            for found, own, other in zip(states, alone, expected):
                for one in (found[row : row + 1, :frames], own):
                    torch.testing.assert_close(one, other, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers(kind, flavour, tmp_path, monkeypatch):
    """A folder of ``save_pretrained``; pieces of the recording and whole ones."""
    model = stock(kind, **FLAVOURS[flavour])
    model.save_pretrained(tmp_path)
    encoder = KINDS[kind](tmp_path).eval()
    assert encoder.standardise == (model.config.feat_extract_norm == "layer")
    monkeypatch.setattr(waveform_convolutions, "PIECE", 7)
    assert_equal(encoder, model)
    assert size_of(encoder) == size_of(model) - model.config.hidden_size
    raw = KINDS[kind](tmp_path, last_state="raw", standardise=False).eval()
    assert_equal(raw, model, LENGTHS[:1])


@pytest.mark.parametrize("standardise", [True, False])
def test_the_preprocessor_says_whether_to_standardise(standardise, tmp_path):
    model = stock("hubert")
    model.save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"do_normalize": standardise}))
    encoder = HubertEncoder(str(tmp_path)).eval()
    assert encoder.arguments["standardise"] is encoder.standardise is standardise
    assert_equal(encoder, model, LENGTHS[1:2])
    assert not HubertEncoder(tmp_path, standardise=not standardise).same_front_end(
        encoder
    )
    file.write_text("[")
    with pytest.raises(InputError, match="not a readable JSON object"):
        HubertEncoder(tmp_path)


def test_without_the_norm_before_the_projection(tmp_path):
    model = stock("hubert", feat_proj_layer_norm=False)
    model.save_pretrained(tmp_path)
    assert_equal(HubertEncoder(tmp_path).eval(), model, LENGTHS[1:])


def test_files_of_other_days(tmp_path):
    """A pre-training model in halves, as a torch file, the old names of its weight."""
    config = waveform_config("wav2vec2", proj_codevector_dim=8, codevector_dim=8)
    model = randomise(Wav2Vec2ForPreTraining(config)).eval()
    model.save_pretrained(tmp_path)
    weights = read_weights(tmp_path / "model.safetensors")
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in weights.items()
    }
    assert old.keys() != weights.keys()
    (tmp_path / "model.safetensors").unlink()
    torch.save(old, tmp_path / "pytorch_model.bin")
    assert_equal(Wav2Vec2Encoder(tmp_path).eval(), model.wav2vec2, LENGTHS[1:])
    torch.save(
        {n: v.bfloat16() for n, v in old.items()}, tmp_path / "pytorch_model.bin"
    )
    encoder = Wav2Vec2Encoder(tmp_path)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["hubert_base", "hubert_large", "wav2vec2_large"])
def test_golden_states(name, shared):
    assert_golden(KINDS[name.partition("_")[0]], name, shared)


def test_golden_states_of_unispeech_sat(shared):
    assert_golden(UniSpeechSatEncoder, "unispeech_sat_large", shared)


def assert_golden(encoder_class, name, shared):
    """States of a folder of public reference values, alone and in a padded batch."""
    folder = shared / "golden" / "peers" / f"hf_{name}_like"
    golden = np.load(folder / "outputs.npz")
    encoder = encoder_class(folder, standardise="input0" in golden).eval()
    wavs = [torch.from_numpy(golden[f"wav{i}"]) for i in range(3)]
    counts = torch.tensor([len(wav) for wav in wavs])
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True, padding_value=0.1)
    with torch.no_grad():
        states, _ = encoder(batch, counts / counts.max())
        for row, wav in enumerate(wavs):
            expected = list(torch.from_numpy(golden[f"hidden{row}"]))
            expected[-1] = torch.from_numpy(golden[f"last{row}"])
            for found, own, other in zip(states, encoder(wav[None])[0], expected):
                for one in (found[row, : len(other)], own[0]):
                    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


# -- sizes -----------------------------------------------------------------------------

LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
}


@pytest.mark.parametrize(
    ("kind", "conv_bias", "published"),
    [
        ("hubert", True, 315_438_720),
        ("wav2vec2", True, 315_438_720),
        ("unispeech-sat", False, 315_435_136),
        ("wavlm", False, 315_453_120),
    ],
)
def test_parameters_of_large(kind, conv_bias, published):
    """As published, less the embedding of masked frames."""
    config = KINDS[kind].config_class(**LARGE, conv_bias=conv_bias)
    with torch.device("meta"):
        encoder, raw = KINDS[kind](config), KINDS[kind](config, last_state="raw")
    assert count_parameters(encoder).total == published - 1024
    assert count_parameters(raw).total == published - 1024 - 2 * 1024


# -- pruning ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flavour", ["large", "base"])
def test_empty_layers_whole_modules_and_a_second_time(kind, flavour):
    """Layer 0 without heads, the next one without units, the last without any."""
    encoder = randomise(KINDS[kind](waveform_config(kind, **FLAVOURS[flavour])))
    encoder = add_gates(encoder.eval().double(), whole=["heads", "ffn"])
    set_gates(encoder, "soft")
    for log_alpha in (p for n, p in encoder.named_parameters() if "whole" in n):
        log_alpha.data.fill_(1.0)
    names = ["0.attention", "1.feed_forward", "2.attention", "2.feed_forward"]
    close(encoder, *(f"encoder.layers.{name}" for name in names))
    wavs, lens = padded(*LENGTHS)
    with torch.no_grad():
        gated = encoder(wavs.double(), lens)[0]
        pruned = prune(encoder)
        assert relative_error(pruned(wavs.double(), lens)[0], gated) < 1e-5
        again = set_gates(add_gates(pruned), "soft", seed=1)
        twice = prune(again)
        found = twice(wavs.double(), lens)[0]
        assert relative_error(found, again(wavs.double(), lens)[0]) < 1e-5
    layers = pruned.encoder.layers
    assert layers[0].attention is layers[2].attention is layers[1].feed_forward is None
    full = {group.name: group.full for group in twice.prunable_groups()}
    assert full == {group.name: group.full for group in encoder.prunable_groups()}
    set_gates(encoder, "hard")
    assert expected_parameters(encoder).item() == size_of(prune(encoder))


def test_gates_in_training_are_drawn_once_a_call():
    """All states change with them, and every gate gets a gradient."""
    torch.manual_seed(0)
    encoder = randomise(WavLMEncoder(waveform_config("wavlm"))).train()
    set_gates(add_gates(encoder, whole=["heads"]), "soft")
    states, _ = encoder(*padded(9000, 8000))
    sum(state.square().mean() for state in states).backward()
    gates = [p for n, p in encoder.named_parameters() if "log_alpha" in n]
    assert gates
    assert all(p.grad is not None for p in gates)


# -- training --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_lora_reaches_every_adapter_and_states_stay_as_many(kind):
    encoder = KINDS[kind](waveform_config(kind, layerdrop=0.9), frozen=True)
    inject_lora(encoder, r=2).train()
    states, lens = encoder(*padded(9000, 8000))
    assert len(states) == 4
    MFA(48, 4, 5)(states, lens).square().sum().backward()
    check_lora_gradients(encoder)
    assert len([n for n, _ in encoder.named_parameters() if "lora_A" in n]) == 6


def test_dropouts_of_the_configuration_are_in_force_in_training():
    model = SpeakerEncoder(Wav2Vec2Encoder(waveform_config("wav2vec2")), MFA(48, 4, 5))
    wavs = padded(9000)[0]
    dropped = [model.encoder.train()(wavs)[0][-1] for _ in range(2)]
    assert not torch.equal(*dropped)
    plain = [model.encoder.eval()(wavs)[0][-1] for _ in range(2)]
    assert torch.equal(*plain)


def test_gelu_in_place_is_gelu():
    x = noise(1000)
    expected = torch.nn.functional.gelu(x)
    with torch.no_grad():
        found = gelu(x)
    assert torch.equal(found, expected)
    assert found is x


# -- bad input -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add_adapter": True}, "add_adapter True, expected False"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim 16, expected None"),
        ({"hidden_act": "gelo"}, "hidden_act 'gelo', expected 'gelu'"),
        ({"feat_extract_activation": "x"}, "feat_extract_activation 'x', expected"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm 'batch', expected"),
        ({"num_attention_heads": 5}, "num_attention_heads 5, expected a divisor of"),
        ({"num_conv_pos_embedding_groups": 5}, "embedding_groups 5, expected a div"),
        ({"num_attention_heads_group": [4]}, r"group \[4\], expected 3 entries"),
        ({"attn_implementation": "sdpa"}, "attn_implementation 'sdpa', expected none"),
        ({"model_type": "hubert"}, "model_type 'hubert', expected 'wav2vec2'"),
        ({"conv_dim": [12, 12]}, "conv_"),
    ],
)
def test_configurations_that_are_refused(changes, message, tmp_path):
    values = {**waveform_config("wav2vec2").to_dict(), **changes}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    for source in (values, str(file)):
        with pytest.raises(InputError, match=message) as refused:
            Wav2Vec2Encoder(source)
        assert "\n" not in str(refused.value)


def test_an_attention_implementation_is_refused_but_not_a_model_s_own():
    config = waveform_config("hubert")
    model = randomise(AutoModel.from_config(config)).eval()
    assert config._attn_implementation == "sdpa"
    encoder = HubertEncoder(config)
    again = HubertEncoder(**encoder.arguments)
    assert again.n_states == len(model.encoder.layers) + 1
    config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="'flash_attention_2', expected none"):
        HubertEncoder(config)


def test_other_bad_input(tmp_path):
    with pytest.raises(InputError, match="last_state: 'mean', expected 'raw' or"):
        Wav2Vec2Encoder(Wav2Vec2Config(), last_state="mean")
    encoder = Wav2Vec2Encoder(waveform_config("wav2vec2"))
    with pytest.raises(InputError, match=r"shape \(2, 1, 900\), expected \[B, T\]"):
        encoder(torch.zeros(2, 1, 900))
    shortest = encoder.min_samples
    with pytest.raises(
        InputError, match=f"{shortest - 1} samples, expected {shortest}"
    ):
        encoder(torch.zeros(2, 2 * shortest), torch.tensor([1.0, 0.5 - 0.5 / shortest]))
    model = stock("wav2vec2", num_hidden_layers=2)
    model.save_pretrained(tmp_path)
    weights = read_weights(tmp_path / "model.safetensors")
    name = "encoder.layers.1.layer_norm.weight"
    save_weights(
        {n: w for n, w in weights.items() if n != name}, tmp_path / "model.safetensors"
    )
    with pytest.raises(InputError, match=f"weights do not fit: 1 missing: {name}"):
        Wav2Vec2Encoder(tmp_path)


def test_a_positional_convolution_of_each_channel_alone_ends_in_half_precision():
    """oneDNN's of 16 channels did not, in fp16."""
    layer, x = waveform_convolutions.NormedConvolution(16, 31, 16), noise(2, 40, 16)
    with torch.no_grad():
        expected = layer(x)
        with torch.autocast("cpu", torch.float16):
            found = layer(x)
    assert torch.allclose(found.float(), expected, atol=1e-2)
