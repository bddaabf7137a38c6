"""Hybrid pruning as a user runs it: a model is pruned while it learns its speakers."""

import json

import pytest
import torch
from recipe_scripts import SMALL, data_words, run, write_recipe_corpus
from tiny_encoder import waveform_config
from tiny_training import tiny_config

from speechbrain_ext.lobes.ecapa import ECAPA
from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.lobes.heads import MHFA, TSTP, AdapterMFA, ECAPAPooling
from speechbrain_ext.lobes.resnet import ResNet
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.lobes.wavlm import WavLMEncoder
from speechbrain_ext.lobes.whisper import WhisperEncoder
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.pretrained import load_pretrained, save_pretrained
from speechbrain_ext.profiling import profile_folder
from speechbrain_ext.training.brain import read_steps

W2V_BERT, WAVLM = "hybrid_w2v_bert_lora", "hybrid_wavlm_mhfa"
STEPS = 7  # of an epoch
SPARSITY = 0.4


def whisper():
    config = {
        "model_type": "whisper",
        "d_model": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
    }
    encoder = WhisperEncoder(config)
    return SpeakerEncoder(encoder, AdapterMFA(16, encoder.n_states, 8, 16))


def wavlm():
    encoder = WavLMEncoder(waveform_config("wavlm"))
    return SpeakerEncoder(encoder, MHFA(48, encoder.n_states, 16, 4, 8))


def of_features(encoder, head):
    return SpeakerEncoder(encoder, head(encoder.hidden_size, encoder.n_states, 16))


# Name → builder, YAML file, words that it takes
MODELS = {
    "w2v_bert": (
        lambda: SpeakerEncoder(
            W2VBertEncoder(tiny_config(layers=2)), AdapterMFA(16, 3, 8, 16)
        ),
        W2V_BERT,
        [],
    ),
    "wavlm": (wavlm, WAVLM, ["--classifier.inter_topk=2"]),
    "whisper": (whisper, W2V_BERT, ["--gates.kinds=null"]),
    "resnet": (
        lambda: of_features(
            ResNet(blocks=[1, 1, 1, 1], bottleneck=False, width=16), TSTP
        ),
        W2V_BERT,
        ["--gates.kinds=null", "--sparsity=0.3"],
    ),
    "ecapa": (
        lambda: of_features(ECAPA([16, 16, 16, 16, 24]), ECAPAPooling),
        W2V_BERT,
        ["--gates.kinds=null", "--sparsity=0.1"],
    ),
}
# What a file says of its loss, in the model that it starts from
CENTERS = {W2V_BERT: 1, WAVLM: 3}
SPEEDS = {W2V_BERT: 3, WAVLM: 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """With the end state of a stage 1 of every model."""
    folder = write_recipe_corpus(tmp_path_factory.mktemp("corpus"))
    for name, (build, file, _) in MODELS.items():
        torch.manual_seed(0)
        speeds = SPEEDS[file]
        training = {"speakers": [f"id{s:02d}" for s in range(6)], "n_speeds": speeds}
        classifier = ArcFace(16, 6 * speeds, n_centers=CENTERS[file])
        save_pretrained(folder / name, build(), classifier, training)
    return folder


def hybrid_words(corpus, name, out, *more):
    """Two epochs, gates that move fast enough to get somewhere in them."""
    _, file, words = MODELS[name]
    small = [word for word in SMALL if "embedding_size" not in word]
    return [
        *(f"hparams/{file}.yaml", *data_words(corpus), *small),
        *(f"--pretrained_folder={corpus}/{name}", f"--output_folder={out}"),
        *(f"--sparsity={SPARSITY}", "--warmup_steps=8", "--lr=0.001"),
        *("--gate_lr=0.5", "--multiplier_lr=1.0", *words, *more),
    ]


def check(words, tmp_path, name="train"):
    code, lines = run(name, words, tmp_path / "stderr")
    assert code == 0, lines


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_encoder_ends_with_the_size_asked_for(corpus, tmp_path, name):
    out = tmp_path / "out"
    words = hybrid_words(corpus, name, out)
    check(words, tmp_path)
    sparsity = float([w for w in words if "--sparsity" in w][-1].split("=")[1])
    small = load_pretrained(out / "final")
    left = count_parameters(small.encoder).total
    full = count_parameters(load_pretrained(corpus / name).encoder).total
    assert 0.9 * (1 - sparsity) < left / full <= 1 - sparsity
    found = json.loads((out / "pruning.json").read_text())
    assert found["parameters"] == left
    # the head and the classifier trained on
    before, after = load_pretrained(corpus / name).head, small.head
    assert not all(
        torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters())
    )
    assert (out / "final/classifier.safetensors").is_file()
    # log and pictures
    steps = read_steps(out / "steps.csv")
    assert steps["step"] == list(range(1, 2 * STEPS + 1))
    assert steps["target"][8:] == pytest.approx([sparsity] * (2 * STEPS - 8))
    assert {"sparsity", "lambda1", "lambda2", "lagrangian", "loss"} < set(steps)
    for picture in ("steps.png", "structure.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    lines = (out / "train_log.txt").read_text().splitlines()
    assert len(lines) == 2
    for figure in ("sparsity: ", "lambda1: ", "parameters: ", "macs: "):
        assert all(figure in line for line in lines)
    log = (out / "log.txt").read_text()
    macs = profile_folder(out / "final", 1.0)["macs"]
    assert f"left: {left} of {full} parameters, " in log
    assert macs > 0
