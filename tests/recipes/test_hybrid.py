"""Hybrid pruning as a user runs it: a model is pruned while it learns its speakers."""

import json
import signal

import pytest
import torch
from recipe_scripts import (
    SMALL,
    data_words,
    run,
    run_on_two,
    run_until,
    write_recipe_corpus,
)
from tiny_encoder import waveform_config
from tiny_training import start, tiny_config

from speechbrain_ext.__main__ import main
from speechbrain_ext.lobes.campplus import CAMPPlus
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
from speechbrain_ext.profiling import count_macs
from speechbrain_ext.training.brain import read_steps

W2V_BERT, WAVLM = "hybrid_w2v_bert_lora", "hybrid_wavlm_mhfa"
PRODUCTS = ("final/speaker_encoder.safetensors", "final/classifier.safetensors")
PRODUCTS += ("pruning.json", "steps.csv")
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
        *("--gate_lr=0.5", "--multiplier_lr=1.0", "--multiple=1", *words, *more),
    ]


def check(words, tmp_path, name="train"):
    code, lines = run(name, words, tmp_path / "stderr")
    assert code == 0, lines


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    """The folder that an unbroken run of w2v-BERT leaves."""
    folder = tmp_path_factory.mktemp("unbroken")
    check(hybrid_words(corpus, "w2v_bert", folder / "out"), folder)
    return folder / "out"


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
    assert f"left: {left} of {full} parameters, " in log


def test_killed_in_mid_epoch_it_ends_as_if_unbroken(corpus, unbroken, tmp_path):
    """With λ, the ramp and the gates as they were."""
    out, stderr = tmp_path / "out", tmp_path / "stderr"
    words = hybrid_words(corpus, "w2v_bert", out, "--ckpt_interval_steps=2")
    for place, ending in (((1, 4), signal.SIGTERM), ((2, 6), signal.SIGKILL)):
        process = start(run_until, "train", place, ending, *words, stderr=stderr)
        process.join(100)
        code = 143 if ending is signal.SIGTERM else -signal.SIGKILL
        assert process.exitcode == code, stderr.read_text()
    check(words, tmp_path)
    for name in PRODUCTS:
        assert (out / name).read_bytes() == (unbroken / name).read_bytes(), name


def test_two_processes_end_with_one_model_of_the_size(corpus, tmp_path):
    out = tmp_path / "out"
    more = "--batch_size=2", "--device=cpu", "--gates.whole=[heads, ffn1, ffn2]"
    words = hybrid_words(corpus, "w2v_bert", out, *more)
    codes, errors = run_on_two("train", words, tmp_path)
    assert codes == [0, 0], errors
    left = json.loads((out / "pruning.json").read_text())["parameters"]
    assert count_parameters(load_pretrained(out / "final").encoder).total == left
    assert read_steps(out / "steps.csv")["step"] == list(range(1, 2 * STEPS + 1))


def test_a_point_of_no_sparsity_and_the_table_of_a_sweep(
    corpus, unbroken, tmp_path, capsys
):
    dense = tmp_path / "dense"
    check(hybrid_words(corpus, "w2v_bert", dense, "--sparsity=0"), tmp_path)
    sizes = [
        count_parameters(load_pretrained(folder).encoder).total
        for folder in (corpus / "w2v_bert", dense / "final", unbroken / "final")
    ]
    assert sizes[0] == sizes[1] > sizes[2]
    results = []
    for name, folder in (("dense", dense), ("pruned", unbroken)):
        results.append(tmp_path / f"verified {name}")
        words = [
            *("hparams/verify.yaml", f"--pretrained_folder={folder}/final"),
            *(*data_words(corpus)[1:3], f"--output_folder={results[-1]}"),
            *("--num_workers=0", "--noprogressbar", "--n_resamples=4"),
        ]
        check(words, tmp_path, "verify")
    output = tmp_path / "sweep"
    main(["sizes", *map(str, results), "--output", str(output)])
    found = json.loads((output / "sizes.json").read_text())
    assert found["system"] == "cosine"
    assert [row["encoder"] for row in found["models"]] == sizes[:0:-1]
    models = [load_pretrained(folder / "final") for folder in (unbroken, dense)]
    assert [row["macs"] for row in found["models"]] == [count_macs(m) for m in models]
    for row, folder in zip(found["models"], results[::-1]):
        figures = json.loads((folder / "results.json").read_text())
        expected = figures["lists"][0]["systems"][0]["eer_percent"]
        # two speakers have no interval; test_sizes has some
        assert row["eer"]["trials"] == {"percent": expected}
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 4
    assert table.strip() in (output / "sizes.md").read_text()
    assert (output / "sizes.png").read_bytes().startswith(b"\x89PNG")
    for words, expected in (
        ([str(tmp_path / "none")], f"{tmp_path}/none/results.json: "),
        ([str(results[0]), "--system=llr"], "system 'llr', expected one of cosine"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["sizes", *words, "--output", str(output)])
        assert stopped.value.code == 1
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("--sparsity=1.2", "Budget: sparsity 1.2, expected 0 to 0."),
        (
            "--budget.ramp=log",
            "ramp: 'log', expected 'linear', 'cosine', ",
        ),
        ("--gates.kinds=[ears]", "add_gates: unknown kind 'ears'"),
        ("--pretrained_folder={c}/camplus", "CAMPPlus has no units left to prune"),
    ],
)
def test_what_cannot_work_is_one_line_before_training(corpus, tmp_path, more, expected):
    if "camplus" in more and not (corpus / "camplus").exists():
        model = of_features(CAMPPlus(), TSTP)
        training = {"speakers": [f"id{s:02d}" for s in range(6)], "n_speeds": 3}
        save_pretrained(corpus / "camplus", model, ArcFace(16, 18), training)
    words = hybrid_words(corpus, "w2v_bert", tmp_path / "out", more.format(c=corpus))
    if "camplus" in more:
        words.append("--gates.kinds=null")
    code, lines = run("train", words, tmp_path / "stderr")
    assert code == 1, lines
    assert lines[-1].startswith("error: ")
    assert expected in lines[-1]
    assert not list((tmp_path / "out").glob("save/*"))
