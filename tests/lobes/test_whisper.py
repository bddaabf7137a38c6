"""Whisper's encoder: transformers' states, every kind of file, padding, its length."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from random_gates import size_of
from tiny_encoder import noise, randomise
from tiny_verifier import load, write_voice
from transformers import (
    Wav2Vec2BertConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    WhisperModel,
)
from transformers.models.whisper.modeling_whisper import (
    WhisperEncoder as StockEncoder,
)

from speechbrain_ext.lobes.heads import MFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.whisper import WhisperEncoder
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.profiling import count_macs
from speechbrain_ext.utils.errors import InputError

SMALL = {
    "vocab_size": 16,
    "d_model": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_layers": 1,
    "decoder_attention_heads": 1,
    "decoder_ffn_dim": 8,
    "max_source_positions": 100,
    "max_target_positions": 4,
    **{f"{name}_token_id": n for n, name in enumerate(("pad", "bos", "eos"))},
    "decoder_start_token_id": 1,
}
# d_model, layers, heads, FFN, mels as published; parameters without positions
PUBLISHED = {
    "tiny": ((384, 4, 6, 1536, 80), 7_632_384),
    "small": ((768, 12, 12, 3072, 80), 87_002_112),
    "large-v3": ((1280, 32, 20, 5120, 128), 635_048_960),
}


def config(**changes):
    return WhisperConfig(**{**SMALL, **changes})


def saved(model, folder, **options):
    """A random model of transformers as a folder, and its encoder."""
    randomise(model.eval())
    model.save_pretrained(folder, **options)
    return getattr(getattr(model, "model", model), "encoder", model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole Whisper as most of the hub's are; only to be read."""
    path = tmp_path_factory.mktemp("whisper")
    saved(WhisperForConditionalGeneration(config()), path)
    return path


def assert_equal_states(encoder, stock, features):
    """Ours and transformers' for a full window [B, M, T]."""
    with torch.no_grad():
        peer = stock(features, output_hidden_states=True)
        states = encoder.encode(features.transpose(1, 2))
    assert len(states) == len(peer.hidden_states) == encoder.n_states
    for state, expected in zip(states, peer.hidden_states):
        torch.testing.assert_close(state, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(states[-1], peer.last_hidden_state, atol=1e-4, rtol=0)


# -- files -----------------------------------------------------------------------------


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize(
    "kind",
    [
        StockEncoder,
        WhisperModel,
        WhisperForConditionalGeneration,
        WhisperForAudioClassification,
    ],
)
def test_any_file_gives_transformers_states(tmp_path, kind, n_mels):
    stock = saved(kind(config(num_mel_bins=n_mels, encoder_layers=3)), tmp_path)
    encoder = WhisperEncoder(str(tmp_path)).eval()
    assert_equal_states(encoder, stock, noise(2, n_mels, 200))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_in_half_precision_is_computed_with_in_float32(tmp_path, dtype):
    saved(WhisperModel(config()).to(dtype), tmp_path)
    encoder = WhisperEncoder(tmp_path)
    assert {p.dtype for p in encoder.state_dict().values()} == {torch.float32}
    assert encoder(0.1 * noise(1, 8000))[0][0].dtype == torch.float32


def test_a_torch_file_and_several_files(tmp_path, folder):
    expected = WhisperEncoder(folder).state_dict()
    stock = WhisperForConditionalGeneration.from_pretrained(folder)
    stock.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    (tmp_path / "bin").mkdir()
    torch.save(stock.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    stock.config.save_pretrained(tmp_path / "bin")
    for source in ("parts", "bin"):
        found = WhisperEncoder(tmp_path / source).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_real_weights(shared):
    """A window of 30 s, which is all that transformers takes."""
    path = shared / "models" / "whisper-tiny.en"
    if not path.is_dir():
        pytest.skip(f"{path}, of shared, is absent")
    encoder = WhisperEncoder(path).eval()
    stock = StockEncoder(encoder.config).eval()
    stock.load_state_dict(encoder.state_dict())
    wav = 0.1 * noise(480_000)
    with torch.no_grad():
        states, lens = encoder(wav[None])
        peer = WhisperFeatureExtractor()(
            wav.numpy(), sampling_rate=16000, return_tensors="pt"
        )["input_features"]
        expected = stock(peer).last_hidden_state
    assert lens.tolist() == [1.0]
    # values reach 13, and pass through layers with some of several hundred
    torch.testing.assert_close(states[-1], expected, atol=2e-3, rtol=0)
    assert size_of(encoder) == PUBLISHED["tiny"][1]


@pytest.mark.parametrize("last_state", ["raw", "normalised"])
def test_golden_states(shared, last_state):
    path = shared / "golden" / "peers" / "hf_whisper_encoder"
    golden = np.load(path / "outputs.npz")
    encoder = WhisperEncoder(path, last_state=last_state).eval()
    assert size_of(encoder) == 84_960 - 200 * 48 - 96 * (last_state == "raw")
    for prefix, signal in (("", 0), ("", 1), ("", 2), ("pad", 0)):
        features = torch.tensor(golden[f"{prefix}feat{signal}"]).T[None]
        expected = torch.tensor(golden[f"{prefix}hidden{signal}"])
        if last_state == "normalised":
            expected[-1] = torch.tensor(golden[f"{prefix}last{signal}"])
        with torch.no_grad():
            states = torch.cat(encoder.encode(features))
        torch.testing.assert_close(states, expected, atol=3e-5, rtol=0)


# -- the function ----------------------------------------------------------------------


def test_raw_is_normalised_without_the_last_norm(folder):
    raw, normalised = (
        WhisperEncoder(folder, last_state=last_state).eval()
        for last_state in ("raw", "normalised")
    )
    with torch.no_grad():
        (*some, last), _ = raw(0.1 * noise(1, 16000))
        (*others, found), _ = normalised(0.1 * noise(1, 16000))
    assert all(map(torch.equal, some, others))
    assert torch.equal(normalised.layer_norm(last), found)
    assert set(normalised.state_dict()) - set(raw.state_dict()) == {
        *("layer_norm.weight", "layer_norm.bias")
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_attention_heads": 1, "encoder_layers": 1},
        {"activation_function": "relu", "encoder_ffn_dim": 7},
        {"d_model": 4, "encoder_attention_heads": 2},
        {"scale_embedding": True, "encoder_layerdrop": 0.5},
    ],
)
def test_states_equal_transformers(changes):
    stock = StockEncoder(config(**changes))
    table = stock.embed_positions.weight.clone()
    encoder = WhisperEncoder(config(**changes)).eval()
    found = encoder.embed_positions.weight
    torch.testing.assert_close(found, table, atol=1e-4, rtol=0)
    randomise(stock.eval())
    encoder.load_state_dict(stock.state_dict())
    assert_equal_states(encoder, stock, noise(2, 80, 200))


def test_gradients_equal_transformers():
    stock = randomise(StockEncoder(config()))
    encoder = WhisperEncoder(config())
    encoder.load_state_dict(stock.state_dict())
    features = noise(2, 200, 80)
    encoder.encode(features)[-1].square().mean().backward()
    peer = stock(features.transpose(1, 2)).last_hidden_state
    peer.square().mean().backward()
    expected = {name: p.grad for name, p in stock.named_parameters()}
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "activation_dropout"])
def test_dropouts_of_the_configuration_act_in_training_alone(name):
    encoder = randomise(WhisperEncoder(config(**{name: 0.5}))).eval()
    features = noise(1, 30, 80)
    still = encoder.encode(features)[-1]
    assert torch.equal(encoder.encode(features)[-1], still)
    assert not torch.equal(encoder.train().encode(features)[-1], still)


@pytest.mark.parametrize("garbage", [0.0, 1e6, float("nan")])
def test_padded_equals_single_for_odd_and_even_numbers_of_frames(garbage):
    encoder = randomise(WhisperEncoder(config())).eval()
    frames = (61, 60, 33, 2, 1)
    features = noise(len(frames), 61, 80)
    dirty = features.clone()
    for row, n in enumerate(frames):
        dirty[row, n:] = garbage
    lens = torch.tensor(frames) / 61
    with torch.no_grad():
        states = encoder.encode(dirty, lens)
        out = encoder.output_lens(dirty, lens) * states[0].shape[1]
        assert out.round().tolist() == [31, 30, 17, 1, 1]
        for row, n in enumerate(frames):
            alone = encoder.encode(features[row : row + 1, :n])
            for state, own in zip(states, alone):
                found = state[row, : own.shape[1]]
                torch.testing.assert_close(found, own[0], atol=1e-5, rtol=1e-4)
    for state in encoder.train().encode(dirty, lens):
        assert torch.isfinite(state).all()


@pytest.mark.parametrize("wav", [torch.zeros(1, 16000), noise(1, 16000)])
def test_silence_and_noise_give_finite_states(wav):
    encoder = randomise(WhisperEncoder(config())).eval()
    assert all(torch.isfinite(state).all() for state in encoder(wav)[0])


def test_half_weights_run_from_a_waveform():
    encoder = randomise(WhisperEncoder(config(encoder_layers=1))).eval()
    wavs = 0.1 * noise(1, 8000)
    expected = encoder(wavs)[0][-1]
    state = encoder.to(torch.bfloat16)(wavs)[0][-1]
    assert state.dtype == torch.bfloat16
    likeness = torch.cosine_similarity(state.float().flatten(), expected.flatten(), 0)
    assert likeness > 0.99


# -- counts ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", PUBLISHED)
def test_counts_of_the_published_sizes(size):
    (width, layers, heads, ffn, mels), expected = PUBLISHED[size]
    published = WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=ffn,
        num_mel_bins=mels,
    )
    with torch.device("meta"):
        encoder, stock = WhisperEncoder(published), StockEncoder(published)
    assert size_of(encoder) == expected == size_of(stock) - 1500 * width
    assert {n: t.shape for n, t in encoder.state_dict().items()} == {
        n: t.shape for n, t in stock.state_dict().items()
    }
    head = torch.nn.Identity()
    head.forward = lambda states, lens: states[-1]
    # 101 frames: 51 states
    by_hand = 101 * 3 * mels * width + 51 * 3 * width**2
    by_hand += layers * 51 * (4 * width**2 + 2 * 51 * width + 2 * width * ffn)
    assert count_macs(SpeakerEncoder(encoder, head), 1.01) == by_hand


# -- long recordings -------------------------------------------------------------------


def test_no_more_frames_than_positions():
    encoder = randomise(WhisperEncoder(config(max_source_positions=50))).eval()
    assert encoder.max_samples == 16000
    assert encoder(0.1 * noise(1, 16000))[0][-1].shape == (1, 50, 24)
    with pytest.raises(
        InputError, match=r"a recording of 1\.01 s, expected 1 s or les"
    ):
        encoder(0.1 * noise(1, 16160))


def test_long_recordings_are_embedded_in_windows_of_what_it_takes(tmp_path):
    encoder = randomise(WhisperEncoder(config(max_source_positions=50)))
    model = SpeakerEncoder(encoder, randomise(MFA(24, 3, 5, pooling_size=4))).eval()
    inference = {"speech_detection": False}
    folder = save_pretrained(tmp_path / "model", model, inference=inference)
    assert "\nwindow_seconds: 1.0 #" in (folder / "hyperparams.yaml").read_text()
    verifier = load(folder, overrides={"window_seconds": 60, "hop_seconds": 60})
    assert verifier.chunking[1:] == (1.0, 1.0)
    path = write_voice(tmp_path / "a.wav", seconds=2.5)
    wav = verifier.load_audio(path)
    with torch.no_grad():
        windows = [model(wav[None, n : n + 16000])[0, 0] for n in (0, 16000, 24000)]
    expected = sum(windows) / 3
    for seconds in (None, 60.0, float("inf")):
        (found,) = verifier.encode_files([path], window_seconds=seconds)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="expected 1 s or less"):
        verifier.encode_batch(wav)


# -- what is no Whisper ----------------------------------------------------------------


def test_sources_that_do_not_fit(tmp_path, folder):
    values = json.loads((folder / "config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()

    def refused(expected, name="model.safetensors", content=weights, **changes):
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        path.mkdir()
        (path / "config.json").write_text(json.dumps({**values, **changes}))
        (path / name).write_bytes(content)
        with pytest.raises(InputError, match=expected) as error:
            WhisperEncoder(path)
        assert "\n" not in str(error.value)

    refused("model_type 'wav2vec2', expected 'whisper'", model_type="wav2vec2")
    refused(r"weights do not fit: 15 missing: layers\.2\.", encoder_layers=3)
    refused(r"weights do not fit: 15 unexpected: layers\.1\.", encoder_layers=1)
    refused(r"conv1\.weight \(24, 80, 3\) instead of \(24, 128, 3\)", num_mel_bins=128)
    refused("d_model 24, expected an even mult", encoder_attention_heads=5)
    refused("d_model 15, expected an even mult", d_model=15)
    refused("encoder_attention_heads 0, expected 1 or", encoder_attention_heads=0)
    refused("max_source_positions -1, expected 1 or", max_source_positions=-1)
    refused("activation_function 'geloo', expected", activation_function="geloo")
    for group in ([3], [3, -1], [3, 1.5], 3, {"0": 3}):
        refused("ffn_dim_group .*, expected encoder_layers = 2", ffn_dim_group=group)
    refused("conv1_channels 0, expected 1 or more", conv1_channels=0)
    refused("refused as weights", "pytorch_model.bin", pickle.dumps(os.system, 2))
    refused("cannot be read|refused as weights", content=weights[:5000])
    with pytest.raises(InputError, match="last_state: 'tied', expected raw or normal"):
        WhisperEncoder(folder, last_state="tied")
    with pytest.raises(InputError, match="model_type 'wav2vec2-bert', expected 'whi"):
        WhisperEncoder(Wav2Vec2BertConfig().to_dict())
