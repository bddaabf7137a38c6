"""Weights load strictly, offline and never as code; messages name what is wrong."""

import json
import pickle
import shutil
import socket
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoder import noise, randomise, stock_model, tiny_config
from transformers import (
    Wav2Vec2BertForCTC,
    Wav2Vec2BertForSequenceClassification,
    Wav2Vec2BertForXVector,
)

from speechbrain_ext.lobes.w2v_bert import UNUSED, W2VBertEncoder
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.weights import is_hub_id, load_strictly, read_weights


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any attempt to reach out is an error of its own kind."""

    def refuse(*arguments, **options):
        raise AssertionError("a network call")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def model():
    return stock_model()


@pytest.fixture
def folder(model, tmp_path):
    """A folder that transformers saved; its files are to be spoilt by the tests."""
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def assert_same_outputs(source, model, tolerance=1e-4):
    """The encoder from ``source`` gives the hidden states of ``model``."""
    encoder = W2VBertEncoder(source).eval()
    features = noise(1, 30, 160)
    with torch.no_grad():
        expected = model(features, output_hidden_states=True).hidden_states
        states = encoder.encode(features)
    for state, peer in zip(states, expected):
        assert state.dtype == torch.float32
        torch.testing.assert_close(state, peer.float(), atol=tolerance, rtol=0)


# -- what loads ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_saved_folder(folder, model, kind):
    assert_same_outputs(kind(folder), model)


def test_home_folder(folder, model, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert_same_outputs("~/saved", model)


def test_sharded_folder(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_outputs(tmp_path, model)


def test_bf16_file_becomes_float32(model, tmp_path):
    model.bfloat16().save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    assert_same_outputs(tmp_path, model.float())


@pytest.mark.parametrize("sharded", [False, True])
def test_torch_files(model, tmp_path, sharded):
    model.config.save_pretrained(tmp_path)
    state = model.state_dict()
    if sharded:
        names = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
        where = {key: names[n % 2] for n, key in enumerate(state)}
        for name in names:
            part = {key: v for key, v in state.items() if where[key] == name}
            torch.save(part, tmp_path / name)
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same_outputs(tmp_path, model)


@pytest.mark.parametrize(
    "kind",
    [
        Wav2Vec2BertForCTC,
        Wav2Vec2BertForSequenceClassification,
        Wav2Vec2BertForXVector,
    ],
)
def test_backbone_of_a_fine_tuned_model(kind, tmp_path):
    """Its head's weights are left aside, the prefix is taken off."""
    tuned = randomise(kind(tiny_config())).eval()
    tuned.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert any(not name.startswith("wav2vec2_bert.") for name in names)
    assert_same_outputs(tmp_path, tuned.wav2vec2_bert)


def test_configuration_alone_gives_random_weights(folder):
    """As an object, as JSON, as JSON that lacks what has a default."""
    json_file = folder / "config.json"
    encoders = [
        W2VBertEncoder(source) for source in (tiny_config(), json_file, str(json_file))
    ]
    shapes = [
        {name: value.shape for name, value in encoder.state_dict().items()}
        for encoder in encoders
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    weights = [encoder.feature_projection.projection.weight for encoder in encoders]
    assert not torch.equal(weights[1], weights[2])
    json_file.write_text('{"num_hidden_layers": 1, "hidden_size": 16}')
    assert W2VBertEncoder(json_file).n_states == 2


# -- what is refused, and how ----------------------------------------------------------


class Bomb:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_inside_a_pickle_is_refused_and_not_run(folder, tmp_path, writer):
    (folder / "model.safetensors").unlink()
    path, mark = folder / "pytorch_model.bin", tmp_path / "executed"
    if writer == "torch":
        torch.save({"weight": torch.ones(2), "bomb": Bomb(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(InputError, match="refused as weights") as refused:
        W2VBertEncoder(folder)
    assert not mark.exists()
    assert "weights_only" not in str(refused.value)  # no advice to try without
    if writer == "torch":
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert mark.exists()  # it would have gone off


def spoil(folder, change):
    """Apply ``change`` to the dictionary of tensors in the folder's file."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file({name: value.contiguous() for name, value in weights.items()}, path)


LAYER = "encoder.layers.1.ffn1.output_dense."


def rename(weights):
    weights["other"] = weights.pop(LAYER + "bias")


def set_nan(weights):
    weights[LAYER + "weight"][3, 5] = float("nan")


def set_infinity(weights):
    weights[LAYER + "bias"][0] = -float("inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(LAYER + "weight"), f"1 missing: {LAYER}weight$"),
        (lambda w: w.update(other=torch.ones(2)), "1 unexpected: other$"),
        (rename, f"1 missing: {LAYER}bias; 1 unexpected: other$"),
        (
            lambda w: w.update({LAYER + "weight": torch.ones(48, 79)}),
            rf"1 of the wrong shape: {LAYER}weight \(48, 79\) instead of \(48, 80\)$",
        ),
        (
            lambda w: [w.pop(name) for name in list(w) if "layers.0" in name],
            r"32 missing: (encoder.layers.0.\S+, ){4}…$",
        ),
        (set_nan, f"NaN or infinite weights in {LAYER}weight$"),
        (set_infinity, f"NaN or infinite weights in {LAYER}bias$"),
    ],
)
def test_mismatch_is_named(folder, change, message):
    spoil(folder, change)
    with pytest.raises(InputError, match=message) as caught:
        W2VBertEncoder(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def index_without_map(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")


def index_to_nowhere(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "part.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def nested(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"model": {"a": torch.ones(1)}}, folder / "pytorch_model.bin")


def empty_file(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model.safetensors: (refused|cannot be read) as weights"),
        (lambda f: (f / "config.json").unlink(), "saved: no config.json in this"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors or pyt"),
        (index_without_map, r"index.json: not an index of weights"),
        (index_to_nowhere, r"part.safetensors: no such weights file"),
        (nested, "pytorch_model.bin: expected a flat dictionary of tensors"),
        (empty_file, "pytorch_model.bin: cannot be read as weights"),
    ],
)
def test_damaged_folder_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message):
        W2VBertEncoder(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json: not a readable Wav2Vec2Bert configuration"),
        ("[1]", "config.json: not a readable Wav2Vec2Bert configuration"),
        ('{"hidden_size": "64"}', "config.json: not a readable Wav2Vec2Bert conf"),
        ('{"model_type": "wavlm"}', "model_type 'wavlm', expected 'wav2vec2-bert'"),
        (
            '{"position_embeddings_type": "rotary"}',
            "config.json: position_embeddings_type 'rotary', expected 'relative_key'",
        ),
        ('{"hidden_act": "gelu"}', "config.json: hidden_act 'gelu', expected 'swish'"),
        (
            '{"hidden_size": 50, "num_attention_heads": 4}',
            "hidden_size 50 is no multiple of num_attention_heads 4",
        ),
        (
            '{"num_hidden_layers": 2, "use_attention": [true]}',
            "use_attention has 1 entries, expected num_hidden_layers = 2",
        ),
    ],
)
def test_bad_configuration_is_named(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        W2VBertEncoder(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.json", "missing.json: not a readable .*No such file"),
        ("./no/such/folder", "./no/such/folder: no such folder, and not a hub id"),
        ("nothing", "nothing: no such folder, and not a hub id"),
        ("owner/name.bin", "owner/name.bin: no such folder, and not a hub id"),
        ("owner/name", "owner/name: no such folder, and the hub gave nothing"),
    ],
)
def test_source_that_is_not_there(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=message):
        W2VBertEncoder(source, savedir=tmp_path / "cache")


def test_names_that_may_be_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = ["owner/name", "facebook/w2v-bert-2.0", "a/b", "0-x.y_z/name_", "JSON/json"]
    assert all(map(is_hub_id, ids))
    (tmp_path / "results").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    paths = [
        "results/final",
        "link",
        "a/b/",
        "/a",
        "~a/b",
        "a/b.PT",
        "é/b",
        "a/b\n",
        None,
    ]
    assert not any(map(is_hub_id, paths))


# -- the functions themselves ----------------------------------------------------------


def test_read_weights_of_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"a\.bin: no such weights file"):
        read_weights(tmp_path / "a.bin")


def test_module_is_untouched_after_a_failure():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 3))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    good = {name: torch.zeros_like(value) for name, value in before.items()}
    nan = {**good, "1.bias": torch.full((3,), float("nan"))}
    for bad in (
        {name: value for name, value in good.items() if name != "1.bias"},
        {**good, "2.bias": torch.zeros(3)},
        {**good, "1.bias": torch.zeros(4)},
        nan,
    ):
        with pytest.raises(InputError, match=r"^the file: "):
            load_strictly(module, bad, "the file")
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name]), name
    load_strictly(module, good, "the file")
    assert all((value == 0).all() for value in module.state_dict().values())


def test_every_mismatch_is_in_one_message():
    weights = {"weight": torch.ones(2, 3), "extra": torch.ones(1)}
    expected = (
        "file: weights do not fit: 1 missing: bias; 1 unexpected: extra; "
        "1 of the wrong shape: weight (2, 3) instead of (2, 2)"
    )
    with pytest.raises(InputError) as caught:
        load_strictly(torch.nn.Linear(2, 2), weights, "file")
    assert str(caught.value) == expected


def test_names_given_beforehand_are_let_off():
    module = torch.nn.Linear(2, 2)
    bias = module.bias.detach().clone()
    weights = {"weight": torch.ones(2, 2), "head.a": torch.ones(1)}
    load_strictly(module, weights, "file", ignore=["head."], allow_missing=["bias"])
    assert torch.equal(module.bias, bias)
    assert torch.equal(module.weight, torch.ones(2, 2))
    with pytest.raises(InputError, match="missing: bias"):
        load_strictly(module, weights, "file", ignore=["head."])


def test_large_finite_weights_are_no_infinity():
    """Their sum overflows float32, and yet each is finite."""
    module = torch.nn.Linear(2, 2, bias=False)
    large = torch.full((2, 2), 3e38)
    load_strictly(module, {"weight": large}, "file")
    assert torch.equal(module.weight, large)


def test_unused_tensors_are_the_pretraining_mask_alone(model):
    own = W2VBertEncoder(tiny_config()).state_dict()
    assert set(model.state_dict()) - set(own) == set(UNUSED)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "both"])
def test_hub_gives_torch_files_where_there_are_no_others(
    model, folder, tmp_path, monkeypatch, kind
):
    """A stand-in for the hub: what the patterns name is copied to the cache."""
    if kind != "safetensors":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    if kind == "bin":
        (folder / "model.safetensors").unlink()
    other = "model.fp32-00001-of-00002.safetensors"
    (folder / other).write_bytes(b"the same in another precision")
    cache = tmp_path / "cache"
    cache.mkdir()

    def download(name, allow_patterns, cache_dir):
        for pattern in allow_patterns:
            for path in folder.glob(pattern):
                shutil.copy(path, cache)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_same_outputs("owner/name", model)
    assert (cache / "pytorch_model.bin").exists() == (kind == "bin")
    assert not (cache / other).exists()
