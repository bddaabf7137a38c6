"""NeMo's Conformer: published figures, archives in its format, its options, its head.

The archives are written here as NeMo writes them: a tar of ./model_config.yaml with the
sections of a whole recogniser, ./model_weights.ckpt with all its tensors, and others.
"""

import gzip
import io
import json
import pickle
import tarfile

import huggingface_hub
import pytest
import torch
from golden_peers import GoldenPeer, assert_within, rounding
from tiny_encoder import noise, randomise

from speechbrain_ext.features.nemo import NemoFeatures
from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.lobes.heads import ConformerMFA
from speechbrain_ext.lobes.nemo_conformer import NemoConformerEncoder
from speechbrain_ext.lobes.nemo_layers import ConformerLayer
from speechbrain_ext.utils.errors import InputError

TARGET = "nemo.collections.asr.modules."
LARGE = {"feat_in": 80, "n_layers": 18, "d_model": 512, "n_heads": 8}
RECIPE = """\
sample_rate: 16000
log_prediction: true
ctc_reduction: mean_batch
tokenizer: {dir: null, type: bpe, model_path: 'nemo:ab_tokenizer.model'}
preprocessor:
  _target_: nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor
  sample_rate: ${model.sample_rate}
  normalize: per_feature
  window_size: 0.025
  window_stride: 0.01
  window: hann
  features: 80
  n_fft: 512
  log: true
  frame_splicing: 1
  dither: 1.0e-05
  pad_to: 0
  pad_value: 0.0
spec_augment:
  _target_: nemo.collections.asr.modules.SpectrogramAugmentation
  freq_masks: 2
encoder:
  _target_: nemo.collections.asr.modules.ConformerEncoder
  feat_in: ${model.preprocessor.features}
  feat_out: -1
  n_layers: 2
  d_model: 16
  subsampling: striding
  subsampling_factor: 4
  subsampling_conv_channels: -1
  ff_expansion_factor: 4
  self_attention_model: rel_pos
  n_heads: 4
  att_context_size: [-1, -1]
  xscaling: true
  untie_biases: true
  pos_emb_max_len: 5000
  conv_kernel_size: 9
  dropout: 0.1
  dropout_emb: 0.0
  dropout_att: 0.1
decoder:
  _target_: nemo.collections.asr.modules.ConvASRDecoder
  feat_in: 16
  num_classes: 7
"""


# -- archives as NeMo writes them ------------------------------------------------------


@pytest.fixture(scope="module")
def encoder():
    """A tiny random encoder of RECIPE in eval mode."""
    settings = {"feat_in": 80, "n_layers": 2, "d_model": 16, "conv_kernel_size": 9}
    encoder = randomise(NemoConformerEncoder({"encoder": settings}))
    for layer in encoder.layers:
        layer.conv.batch_norm.running_mean.copy_(0.1 * noise(16))
        layer.conv.batch_norm.running_var.copy_(1 + 0.2 * noise(16).abs())
    return encoder.eval()


def tensors_of(encoder, **changes):
    """All tensors of a recogniser around ``encoder``; None among ``changes``: gone."""
    mel, window = encoder._constants()
    tensors = {
        "preprocessor.featurizer.window": window.clone(),
        "preprocessor.featurizer.fb": mel[None].clone(),
        **{f"encoder.{name}": value for name, value in encoder.state_dict().items()},
        "decoder.decoder_layers.0.weight": noise(8, 16, 1),
        "decoder.decoder_layers.0.bias": noise(8),
    }
    tensors.update(changes)
    return {name: value for name, value in tensors.items() if value is not None}


def saved(values):
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


def write_archive(path, members, mode="w"):
    """A tar of name → bytes, with a folder's entry first, as ``tar.add`` has it."""
    with tarfile.open(path, mode) as archive:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def members_of(encoder, config=RECIPE, **changes):
    return {
        "./model_config.yaml": config.encode(),
        "./ab_tokenizer.model": b"\0" * 700,
        "./model_weights.ckpt": saved(tensors_of(encoder, **changes)),
    }


def states_of(encoder, *batch):
    with torch.no_grad():
        return encoder(*batch)[0]


@pytest.mark.parametrize("how", ["tar", "gz", "half", "folder", "unpacked", "bare"])
def test_reads_what_nemo_writes(encoder, how, tmp_path):
    path, members = tmp_path / "stt_en.nemo", members_of(encoder)
    wavs, source = 0.1 * noise(2, 9000), path
    expected = states_of(encoder, wavs)
    if how == "half":
        halves = {k: v.half() for k, v in tensors_of(encoder).items() if v.dim()}
        members["./model_weights.ckpt"] = saved({**tensors_of(encoder), **halves})
    write_archive(path, members, "w:gz" if how == "gz" else "w")
    if how == "folder":
        source = tmp_path
    elif how in ("unpacked", "bare"):
        path.unlink()
        source = str(tmp_path)
        for name, content in members.items():
            (tmp_path / name).write_bytes(content)
        if how == "bare":  # the encoder's own tensors, without its name before theirs
            torch.save(encoder.state_dict(), tmp_path / "model_weights.ckpt")
    found = NemoConformerEncoder(source).eval()
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    loose = {"atol": 0.03, "rtol": 0.03} if how == "half" else {"atol": 0, "rtol": 0}
    torch.testing.assert_close(states_of(found, wavs), expected, **loose)
    json.dumps(found.arguments)
    assert found.arguments["source"]["encoder"]["n_heads"] == 4


def test_of_a_hub_id_the_archive_alone_is_fetched(encoder, tmp_path, monkeypatch):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    write_archive(tmp_path / "stt_en.nemo", members_of(encoder))
    found = NemoConformerEncoder("nvidia/stt_en", savedir="kept").eval()
    assert asked == {
        "name": "nvidia/stt_en",
        "allow_patterns": ["*.nemo"],
        "cache_dir": "kept",
    }
    wavs = 0.1 * noise(1, 6000)
    assert torch.equal(states_of(found, wavs)[-1], states_of(encoder, wavs)[-1])


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_configuration_alone_has_random_weights(suffix, tmp_path):
    path, section = tmp_path / f"conformer{suffix}", RECIPE.replace("\n", "\n  ")
    text = "name: Conformer\nmodel:\n  " + section  # as the file of a recipe
    if suffix == ".json":
        text = json.dumps({"encoder": {"feat_in": 80, "n_layers": 2, "d_model": 16}})
    path.write_text(text)
    encoder = NemoConformerEncoder(str(path))
    assert encoder.n_states == 3
    assert encoder.hidden_size == 16
    assert encoder.features.frame == 400


def config_with(section, **changes):
    """Sections of RECIPE's kind with some keys changed."""
    sections = {
        "encoder": {"feat_in": 80, "n_layers": 1, "d_model": 16},
        "preprocessor": {"features": 80, "window_size": 0.025},
    }
    sections[section].update(changes)
    return sections


REFUSED = {
    "encoder": [
        ({"subsampling": "vggnet"}, "subsampling 'vggnet' is not built, expected 's"),
        ({"subsampling": "stacking"}, "subsampling 'stacking' is not built"),
        ({"self_attention_model": "rel_pos_local_attn"}, "'rel_pos_local_attn' is not"),
        ({"untie_biases": False}, "encoder.untie_biases False is not built, expected"),
        ({"att_context_size": [128, 0]}, r"att_context_size \[128, 0\] is not built"),
        ({"causal_downsampling": True}, "causal_downsampling True is not built"),
        ({"reduction": "striding"}, "reduction 'striding' is not built"),
        ({"conv_norm_type": "group_norm4"}, "conv_norm_type 'group_norm4' is not"),
        ({"feat_out": 8}, "feat_out 8 is not built, expected -1"),
        ({"new_key": 3}, "encoder.new_key 3 is not known here"),
        ({"_target_": TARGET + "SqueezeformerEncoder"}, "SqueezeformerEncoder, expec"),
        ({"n_layers": "2"}, "encoder.n_layers: '2', expected a whole number"),
        ({"n_layers": 0}, "encoder.n_layers: 0, expected greater than 0"),
        ({"d_model": 18}, "encoder.d_model 18, expected a multiple of n_heads 4"),
        ({"d_model": 9, "n_heads": 3}, "encoder.d_model 9, expected an even number"),
        ({"subsampling_factor": 6}, "subsampling_factor 6, expected a power of 2"),
        ({"conv_kernel_size": 8}, "conv_kernel_size 8, expected an odd number"),
        ({"conv_context_size": [4, 4]}, r"\[4, 4\], expected null, causal or two num"),
        ({"layer_widths": [[4, 64, 64]]}, r"\[\[4, 64, 64\]\], expected 1 lists of nu"),
        ({"layer_widths": [[5, 1, 1, 1]]}, r"up to \[4, 64, 64, 16\]"),
        ({"feat_in": 64}, "encoder.feat_in 64, expected preprocessor.features 80"),
    ],
    "preprocessor": [
        ({"_target_": TARGET + "AudioToMFCCPreprocessor"}, "AudioToMFCCPreprocessor, "),
        ({"frame_splicing": 3}, "preprocessor.frame_splicing 3 is not built, expected"),
        ({"exact_pad": True}, "preprocessor.exact_pad True is not built"),
        ({"n_fft": 256}, "n_fft 256, expected an even number of n_window_size 400"),
        ({"window": "kaiser"}, "preprocessor.window: 'kaiser', expected"),
        ({"window_size": "long"}, "preprocessor.window_size 'long', expected seconds"),
    ],
}


@pytest.mark.parametrize("section", REFUSED)
def test_what_is_not_built_is_refused_by_name(section):
    for changes, message in REFUSED[section]:
        with pytest.raises(InputError, match=message) as refused:
            NemoConformerEncoder(config_with(section, **changes))
        assert str(refused.value).startswith("encoder configuration: "), changes
        assert "\n" not in str(refused.value)


def test_keys_without_effect_are_passed_over():
    changes = {"stochastic_depth_drop_prob": 0.1, "pos_emb_max_len": 9, "x": None}
    encoder = NemoConformerEncoder(config_with("encoder", **changes))
    assert encoder.arguments["source"]["encoder"] == config_with("encoder")["encoder"]


class Harmful:
    def __reduce__(self):
        return (print, ("code was run",))


def test_damaged_and_hostile_archives_are_one_line(encoder, tmp_path, capsys):
    path = tmp_path / "model.nemo"
    members = members_of(encoder)
    weights = "./model_weights.ckpt"
    whole = write_archive(path, members).read_bytes()
    linked = tmp_path / "linked.nemo"
    with tarfile.open(linked, "w") as archive:
        for name in ("model_config.yaml", "model_weights.ckpt"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    bomb = {**members, weights: b"\0" * 2**27}
    outside = {f"../{name}": content for name, content in members.items()}
    name = "encoder.layers.1.norm_out.weight"
    cases = [
        (whole[: len(whole) // 2], "model_weights.ckpt|not a readable .nemo file"),
        (gzip.compress(whole)[:-4000], "not a readable .nemo file"),
        (b"PK no tar at all", "not a readable .nemo file"),
        (b"", "not a readable .nemo file"),
        (linked.read_bytes(), "no model_config.yaml and model_weights.ckpt in this"),
        (outside, "no model_config.yaml and model_weights.ckpt in this archive"),
        ({**members, weights: pickle.dumps(Harmful(), 2)}, "model_weights.ckpt"),
        ({**members, weights: saved({"a": Harmful()})}, "refused as weights"),
        ({**members, weights: saved([1, 2])}, "expected a flat dictionary of tensors"),
        ({**members, "./model_config.yaml": b"!!python/name:os.system"}, "not a reada"),
        ({**members, "./model_config.yaml": b"a: [1"}, "not a readable configuration"),
        ({**members, "./model_config.yaml": b"decoder: 1"}, "no section encoder"),
        ({**members, "./model_config.yaml": b"encoder: {a: '${b.c}'}"}, "refers to no"),
        (members_of(encoder, **{name: None}), "1 missing: layers.1.norm_out.weight"),
        (members_of(encoder, **{"encoder.x": noise(2)}), "1 unexpected: x"),
        (members_of(encoder, **{"speaker.x": noise(2)}), "1 unexpected: speaker.x"),
        (members_of(encoder, **{name: noise(3)}), "1 of the wrong shape: layers.1"),
        (
            members_of(encoder, **{"preprocessor.featurizer.fb": noise(1, 64, 257)}),
            r"preprocessor.featurizer.fb \(1, 64, 257\) is not what the section",
        ),
        (
            members_of(encoder, RECIPE.replace("n_layers: 2", "n_layers: 3")),
            "missing: layers.2.norm_feed_forward1.weight",
        ),
    ]
    for content, message in cases:
        if isinstance(content, dict):
            write_archive(path, content)
        else:
            path.write_bytes(content)
        with pytest.raises(InputError, match=message) as refused:
            NemoConformerEncoder(path)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)
    write_archive(path, bomb, "w:gz")
    with pytest.raises(InputError, match="of 134,217,728 bytes, expected 67,108,864 o"):
        NemoConformerEncoder(path)
    assert "code was run" not in capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} == {path.name, linked.name}


def test_a_folder_of_something_else_is_one_line(encoder, tmp_path):
    with pytest.raises(InputError, match=r"\.nemo files: none; expected one, or model"):
        NemoConformerEncoder(tmp_path)
    for name in ("a.nemo", "b.nemo"):
        write_archive(tmp_path / name, members_of(encoder))
    with pytest.raises(InputError, match=r"\.nemo files: a.nemo, b.nemo; expected one"):
        NemoConformerEncoder(tmp_path)
    for source in (tmp_path / "c.nemo", "no/where.yaml", "no/such/folder"):
        with pytest.raises(InputError, match=str(source)):
            NemoConformerEncoder(source)


# -- figures ---------------------------------------------------------------------------


def test_golden_states(shared):
    folder = shared / "golden" / "peers" / "nemo_conformer"
    golden = GoldenPeer(folder, transposed=True)
    arguments = json.loads((folder / "config.json").read_text())["arguments"]
    encoder = NemoConformerEncoder({"encoder": arguments}).eval()
    weights = torch.load(folder / "weights.pth", weights_only=True)
    encoder.load_state_dict(weights)
    wavs, plain = golden.wavs, NemoFeatures(normalize=None)
    for number, wav in enumerate(wavs):
        features, _ = encoder.front_end(wav[None])
        # the public code adds a frame of zeros
        expected = golden.features[number][: features.shape[1]]
        log_mel = plain(wav[None])[0][0]
        bound = rounding(log_mel.exp())
        of_deviation = expected.abs() * bound.square().mean(0).sqrt()
        bound = (bound + bound.mean(0) + of_deviation) / log_mel.std(0)
        assert_within(features[0], expected, bound)
        assert bound.median() < 2e-4
        golden.features[number] = expected
    golden.give_features(encoder)
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    lens = torch.tensor([len(wav) for wav in wavs]) / batch.shape[1]
    together = states_of(encoder, batch, lens)
    for number, wav in enumerate(wavs):
        frames, steps = golden.arrays[f"len{number}"].int().tolist()
        assert len(golden.features[number]) == frames
        alone = states_of(encoder, wav[None])
        assert alone[0].shape[1] == steps
        for layer, expected in enumerate(golden.arrays[f"hidden{number}"]):
            for found in (alone[layer][0], together[layer][number, :steps]):
                torch.testing.assert_close(found, expected[:steps], atol=1e-4, rtol=0)


def test_counts_of_the_large_model():
    with torch.device("meta"):
        encoder = NemoConformerEncoder({"encoder": LARGE})
        head = ConformerMFA(encoder.hidden_size, encoder.n_states)
    assert count_parameters(encoder).total == 121_435_136
    assert count_parameters(encoder.pre_encode).total == 7_608_320
    assert count_parameters(encoder.layers[0]).total == 6_323_712
    assert count_parameters(head.pooling).total == 4_728_192
    assert count_parameters(head).total == 130_937_472 - 121_435_136


@pytest.mark.parametrize(
    "changes",
    [
        {"subsampling": "dw_striding", "subsampling_factor": 8, "use_bias": False},
        {"subsampling_factor": 2, "subsampling_conv_channels": 5, "feat_in": 33},
        {"subsampling": None, "conv_context_size": "causal"},
        {"conv_context_size": [2, 6], "conv_kernel_size": 9, "conv_norm_type": None},
    ],
)
def test_options_keep_a_padded_batch_equal_to_its_utterances(changes):
    changes["conv_norm_type"] = changes.get("conv_norm_type") or "layer_norm"
    settings = {"feat_in": 80, "n_layers": 2, "d_model": 16, **changes}
    sections = {"encoder": settings, "preprocessor": {"features": settings["feat_in"]}}
    encoder = randomise(NemoConformerEncoder(sections)).eval()
    samples = torch.tensor([16000, 9999, 5001])
    wavs = 0.1 * noise(3, 16000)
    with torch.no_grad():
        states, lens = encoder(wavs, samples / 16000)
    for row, count in enumerate(samples.tolist()):
        alone = states_of(encoder, wavs[row : row + 1, :count])
        frames = alone[0].shape[1]
        assert round(float(lens[row]) * states[0].shape[1]) == frames
        for state, own in zip(states, alone):
            found = state[row : row + 1, :frames]
            torch.testing.assert_close(found, own, atol=2e-5, rtol=1e-4)


def test_recomputing_leaves_the_statistics_of_batchnorm_alone():
    sections = {"encoder": {"feat_in": 80, "n_layers": 1, "d_model": 8}}
    found = []
    for again in (False, True):
        encoder = randomise(
            NemoConformerEncoder(sections, gradient_checkpointing=again)
        )
        torch.manual_seed(0)
        states, _ = encoder.train()(0.1 * noise(2, 8000))
        states[-1].square().mean().backward()
        norm = encoder.layers[0].conv.batch_norm
        found.append(torch.stack([norm.running_mean, norm.running_var]))
        assert norm.momentum == 0.1
    assert torch.equal(*found)
    assert (found[0][0] != 0).all()


# -- head ------------------------------------------------------------------------------


def test_the_first_state_is_left_out():
    head = randomise(ConformerMFA(4, 3, 5, 6)).eval()
    states = list(noise(3, 2, 7, 4))
    expected = head(states)
    states[0] = states[0] * float("nan")
    assert torch.equal(head(states), expected)


def test_a_layer_without_parts_is_its_norm():
    settings = NemoConformerEncoder(config_with("encoder")).settings
    layer = ConformerLayer(
        settings, settings.full_width._replace(heads=0, ffn1=0, ffn2=0, conv=0)
    )
    x = noise(1, 5, 16)
    assert torch.equal(layer(x, None), layer.norm_out(x))
    assert layer.prunable_groups(settings)[0].units == 0
