"""Sizes and multiply-adds: the published figures, sums by hand, the command line."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_encoder import tiny_config, tiny_encoder
from transformers import Wav2Vec2BertConfig

from speechbrain_ext.__main__ import main
from speechbrain_ext.adaptation import inject_lora
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.profiling import (
    count_macs,
    count_parameters,
    profile_model,
    seconds_per_second,
)
from speechbrain_ext.pruning import Budget, add_gates, harden, prune
from speechbrain_ext.utils.errors import InputError

ENCODER, LORA = 580_492_096, 6_291_456
HEADS = {
    "adapter_mfa": 6_160_640,
    "mfa": 65_564_928,
    "weighted_ecapa": 8_807_385,
}


def test_full_encoder_has_the_published_size():
    with torch.device("meta"):
        encoder = W2VBertEncoder(Wav2Vec2BertConfig())
    assert count_parameters(encoder) == (ENCODER, ENCODER)
    assert encoder.n_states == 25
    assert encoder.hidden_size == 1024
    with torch.device("meta"):
        encoder = W2VBertEncoder(Wav2Vec2BertConfig(), frozen=True)
    assert count_parameters(encoder) == (0, ENCODER)
    # r × (in + out) for two projections in 24 layers
    inject_lora(encoder, r=64, alpha=128)
    assert count_parameters(encoder) == (LORA, ENCODER + LORA)


@pytest.mark.parametrize("head", HEADS)
def test_profile_of_the_full_models(head):
    sizes = profile_model(head=head, lora_rank=64)
    assert sizes["encoder"] == ENCODER
    assert sizes["head"] == HEADS[head]
    assert sizes["lora"] == LORA
    if head == "adapter_mfa":
        assert sizes["macs"] == pytest.approx(28.75e9, rel=0.02)
    assert profile_model(head=head)["lora"] == 0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_multiply_adds_by_hand(device):
    """Every product of one layer and head, 50 input frames for 1.02 s."""
    config = tiny_config(
        num_hidden_layers=1,
        num_attention_heads_group=[3],
        intermediate_size_group=[[70, 0]],
        use_feed_forward=[[True, False]],
        conv_group=[[48, 20]],
    )
    with torch.device(device):
        encoder = W2VBertEncoder(config)
        model = SpeakerEncoder(encoder, AdapterMFA(48, 2, 5, 7)).train()
    frames, width, inner, dim = 50, 48, 36, 12
    projection = frames * 160 * width
    feed_forward = frames * 2 * width * 70
    attention = frames * 4 * width * inner  # q, k, v and out
    attention += 2 * frames * frames * inner  # scores and their sums
    attention += frames * 3 * dim * 73  # 3 heads × 73 positions
    convolution = frames * (width * 40 + 20 * 31 + 20 * width)
    head = 2 * frames * (width * 5 + 5 * 5)  # adapters of two states
    head += frames * (10 * 5 + 5 * 10)  # the attention of the pooling
    head += 20 * 7  # the last layer: once, not per frame
    parts = (projection, feed_forward, attention, convolution, head)
    assert count_macs(model, seconds=1.02) == sum(parts)
    assert model.training
    assert encoder.training


def test_counting_leaves_every_module_in_its_mode():
    """A model in training mode may hold an encoder that is not, or the reverse."""
    for whole in (True, False):
        encoder = W2VBertEncoder(tiny_config(num_hidden_layers=1))
        model = SpeakerEncoder(encoder, AdapterMFA(48, 2, 5, 7)).train(whole)
        encoder.train(not whole)
        count_macs(model)
        assert model.training is model.head.training is whole
        assert {module.training for module in encoder.modules()} == {not whole}


def test_longer_utterances_cost_more():
    short, long = (profile_model(tiny_config(), seconds=s)["macs"] for s in (2, 4))
    assert 2 * short < long < 4 * short


def test_shortest_utterance():
    with pytest.raises(InputError, match=r"seconds: 0.03, expected 0.035 or more"):
        profile_model(tiny_config(), seconds=0.03)
    assert profile_model(tiny_config(), seconds=0.035)["macs"] > 0


@pytest.mark.slow
def test_command_prints_the_published_sizes():
    """In a process of its own, as a user starts it; 10 s where nothing else runs."""
    result = subprocess.run(
        [sys.executable, "-m", "speechbrain_ext", "profile"],
        capture_output=True,
        text=True,
        timeout=300,  # a machine may be busy
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    for figure in (ENCODER, LORA, *HEADS.values()):
        assert f" {figure:,}" in result.stdout
    lines = result.stdout.splitlines()
    row = next(line for line in lines if line.startswith("adapter_mfa"))
    assert float(row.split()[-2]) == pytest.approx(28.75, rel=0.02)
    assert row.split()[-1] == "G"


def test_command_with_options(tmp_path, capsys):
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    options = ["--head=mfa", "--lora_rank=0", "--seconds=2", "--json"]
    main(["profile", "--config", str(path), *options])
    expected = profile_model(path, "mfa", lora_rank=0, seconds=2)
    assert json.loads(capsys.readouterr().out) == {"mfa": expected}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model and what is left of it at half its size, saved."""
    folder = tmp_path_factory.mktemp("saved")
    encoder = tiny_encoder()
    head = AdapterMFA(encoder.hidden_size, encoder.n_states, 8, 12)
    save_pretrained(folder / "dense", SpeakerEncoder(encoder, head))
    budget = Budget(add_gates(encoder), sparsity=0.5)
    cost = harden(budget)
    save_pretrained(folder / "pruned", SpeakerEncoder(prune(encoder), head))
    return folder, cost


def test_profile_of_saved_models(saved, capsys):
    folder, cost = saved
    folders = [str(folder / name) for name in ("dense", "pruned")]
    main(["profile", "--seconds=0.5", "--json", "--pretrained_folder", *folders])
    dense, pruned = json.loads(capsys.readouterr().out).values()
    assert pruned["encoder"] == cost
    assert pruned["encoder"] < 0.51 * dense["encoder"]
    assert pruned["head"] == dense["head"]
    assert pruned["macs"] < dense["macs"]
    assert dense["seconds_per_second"] > 0
    main(["profile", "--seconds=0.5", "--pretrained_folder", *folders])
    table = capsys.readouterr().out.splitlines()
    assert table[2].startswith(f"{cost:>13,}")
    assert table[2].endswith(folders[1])


def test_speed_is_the_median_over_the_length():
    class Slow(torch.nn.Module):
        calls = []
        encoder = SimpleNamespace(sample_rate=16000)

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, wavs):
            self.calls.append(wavs.shape)
            return self.weight

    speeds = seconds_per_second([Slow(), Slow()], seconds=2.0, repeats=3)
    assert Slow.calls == [(1, 32000)] * 8
    assert all(0 < speed < 1 for speed in speeds)


RECIPE = """
seed: 1
output_folder: !PLACEHOLDER
__effect: !apply:speechbrain_ext.losses.no_such_function [!ref <seed>]
prepare: !name:no_such_package.prepare {folder: !ref <output_folder>}
encoder_source: facebook/w2v-bert-2.0
embedding_size: 9
encoder: !new:speechbrain_ext.lobes.w2v_bert.W2VBertEncoder
    source: !ref <encoder_source>
    frozen: True
head: !new:speechbrain_ext.lobes.heads.AdapterMFA
    input_size: !ref <encoder.hidden_size>
    n_states: !ref <encoder.n_states>
    embedding_size: !ref <embedding_size>
    adapter_size: 5
lora: {r: 3, alpha: 6, target_modules: [linear_q]}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a tiny configuration and recipes, to work in."""
    monkeypatch.chdir(tmp_path)
    tiny_config().to_json_file("tiny.json")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "next.yaml").write_text("speaker_encoder: !PLACEHOLDER\n")
    (tmp_path / "odd.yaml").write_text("encoder: 3\nhead: 4\n")
    (tmp_path / "bad.yaml").write_text("encoder: [\n")
    return tmp_path


@pytest.mark.usefixtures("here")
def test_profile_of_a_recipe_builds_its_encoder_and_head_alone(capsys):
    """The rest is neither filled in nor imported, and no weights are read."""
    options = ["--hparams", "recipe.yaml", "--config", "tiny.json", "--json"]
    main(["profile", *options])
    (row,) = json.loads(capsys.readouterr().out).values()
    encoder = tiny_encoder()
    head = AdapterMFA(48, 4, adapter_size=5, embedding_size=9)
    assert row == {
        "encoder": count_parameters(encoder).total,
        "head": count_parameters(head).total,
        "macs": count_macs(SpeakerEncoder(encoder, head)),
        "lora": 3 * 3 * 2 * 48,
    }
    main(["profile", *options, "--lora_rank=2"])
    (row,) = json.loads(capsys.readouterr().out).values()
    assert row["lora"] == 3 * 2 * 2 * 2 * 48  # queries and values
    main(["profile", *options[:-1], "--layers", "--seconds=0.1"])
    assert "attention" in capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_every_head_is_known_by_its_class():
    sizes = profile_model("tiny.json", "MFA")
    assert sizes == profile_model("tiny.json", "mfa")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ("--pretrained_folder=missing", "missing: no such folder"),
        ("--config=missing.json", "missing.json: not a readable"),
        ("--seconds=0.01 --head=mfa", "seconds: 0.01, expected 0.035"),
        ("--seconds 1 2", "--seconds: 2 lengths"),
        ("--lora_rank=-1 --head=mfa", "inject_lora: r -1, expected 1"),
        ("--head=no_such", "head: no_such, expected adapter_mfa"),
        ("--head=Head2 --layers", "head: Head2, expected adapter_mfa"),
        ("--picture=a.png", "--picture: "),
        ("--pretrained_folder=x --config=y.json", "--pretrained_folder beside"),
        ("--layers --pretrained_folder x y", "--pretrained_folder: 2 folders"),
        ("--hparams=missing.yaml", "missing.yaml: No such file"),
        ("--hparams=next.yaml", "next.yaml: no key encoder"),
        ("--hparams=odd.yaml", "odd.yaml: encoder: a int"),
        ("--hparams=bad.yaml", "bad.yaml: not valid YAML"),
        ("--hparams=recipe.yaml --config=no.json", "no.json: not a readable"),
        ("--layers --pretrained_folder=missing", "missing: no such folder"),
        ("--layers --config=missing.json", "missing.json: not a readable"),
        ("--layers --config=tiny.json --seconds=0.01", "seconds: 0.01, expected"),
    ],
)
def test_command_with_bad_input_prints_one_line(arguments, culprit, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["profile", *arguments.split()])
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert culprit in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_saved_model_and_too_short_an_utterance(saved, capsys):
    folder = str(saved[0] / "dense")
    with pytest.raises(SystemExit) as stopped:
        main(["profile", "--seconds=0", "--pretrained_folder", folder])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("error: seconds: 0, expected 0.035")
