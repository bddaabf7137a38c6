"""Time by stage: the parts make up the whole, the counts are the model's."""

import json

import pytest
import torch
from tiny_encoder import tiny_config

from speechbrain_ext.__main__ import main
from speechbrain_ext.adaptation import inject_lora
from speechbrain_ext.features.kaldi import filterbank
from speechbrain_ext.lobes.encoder import Encoder
from speechbrain_ext.lobes.heads import MFA, AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.profiling import count_macs, counted_operations
from speechbrain_ext.profiling.layers import (
    REST,
    layer_times,
    matrix_products,
    matrix_rate,
)
from speechbrain_ext.utils.errors import InputError


@pytest.fixture(scope="module")
def model():
    encoder = W2VBertEncoder(tiny_config(num_hidden_layers=2))
    head = AdapterMFA(encoder.hidden_size, encoder.n_states, 5, 7)
    return SpeakerEncoder(encoder, head).eval()


def test_every_stage_is_timed_and_counted(model):
    stages = layer_times(model, seconds=1.0, repeats=2)
    kinds = model.encoder.layer_kinds()
    assert [stage.name for stage in stages] == [*kinds, "head", REST]
    assert all(stage.seconds > 0 for stage in stages)
    by_name = {stage.name: stage.macs for stage in stages}
    frames, width = 49, model.encoder.hidden_size
    units = model.encoder.config.intermediate_size
    assert by_name["feed-forward"] == 2 * 2 * 2 * frames * width * units
    mel = by_name.pop("features")  # which profile does not count
    parts, *_ = filterbank(model.encoder.features.settings, torch.device("cpu"))
    # frames of 10 ms, of power spectrum to mel bins, of which a few hear its part
    assert mel == 98 * sum(filters.numel() for _, filters in parts) < 98 * 257 * 80
    assert sum(by_name.values()) == count_macs(model, 1.0)


def test_the_limit_is_that_of_the_rate(model):
    stages = layer_times(model, seconds=0.5, repeats=1)
    rates = {round(s.macs / s.limit) for s in stages if s.macs}
    assert len(rates) <= 2  # one rate, rounded
    assert matrix_rate(model, rows=10, repeats=1) > 0


def test_the_rate_is_that_of_all_feed_forward_matrices(model):
    config = model.encoder.config
    matrices = 2 * 4 * config.hidden_size * config.intermediate_size
    products, macs = matrix_products(model, rows=10)
    assert macs == 10 * matrices
    with counted_operations() as counter:
        products()
    assert counter.get_total_flops() == 2 * macs


def test_adapters_are_no_part_of_the_rate():
    encoder = W2VBertEncoder(tiny_config(num_hidden_layers=2))
    before = matrix_products(encoder, rows=10)[1]
    inject_lora(encoder, r=2, target_modules=["intermediate_dense", "output_dense"])
    assert matrix_products(encoder, rows=10)[1] == before


def test_without_feed_forward_modules_linear_layers_count():
    head = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU())
    assert matrix_products(head, rows=10)[1] == 10 * 3 * 5


def test_hooks_are_taken_off_again(model):
    layer_times(model, seconds=0.5, repeats=1)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_parts_that_were_pruned_away_take_nothing():
    config = tiny_config(
        num_hidden_layers=1,
        num_attention_heads_group=[0],
        use_attention=[False],
        intermediate_size_group=[[20, 0]],
        use_feed_forward=[[True, False]],
        conv_group=[[48, 10]],
    )
    encoder = W2VBertEncoder(config)
    model = SpeakerEncoder(encoder, AdapterMFA(48, 2, 5, 7)).eval()
    stages = {s.name: s for s in layer_times(model, seconds=0.5, repeats=1)}
    assert stages["attention"].seconds == stages["attention"].macs == 0
    assert stages["convolution"].macs > 0


def test_command_prints_draws_and_gives_json(tmp_path, capsys):
    tiny_config(num_hidden_layers=2).save_pretrained(tmp_path)
    picture = tmp_path / "stages.png"
    options = ["--config", str(tmp_path / "config.json"), "--seconds", "0.5", "1"]
    main(["stages", *options, "--picture", str(picture)])
    table = capsys.readouterr().out
    assert table.count("attention") == 2
    assert f"1 s, {torch.get_num_threads()} threads" in table
    assert picture.read_bytes().startswith(b"\x89PNG")
    main(["profile", "--layers", *options, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["0.5", "1.0"]
    assert [stage["name"] for stage in found["1.0"]][-1] == REST


class Bare(Encoder):
    """Declares no kinds of layers."""

    hidden_size, n_states = 5, 1

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv1d(1, 5, 400, 320)

    def encode(self, x, lens=None):
        return [self.convolution(x.unsqueeze(1)).transpose(1, 2)]


def test_an_encoder_without_kinds_is_named():
    model = SpeakerEncoder(Bare(), MFA(5, 1, 4, 3)).eval()
    with pytest.raises(InputError, match="Bare declares no kinds of layers"):
        layer_times(model, seconds=0.5, repeats=1)


def test_a_network_of_convolutions_has_a_rate_too():
    assert matrix_products(Bare(), rows=10)[1] == 10 * 5 * 400
