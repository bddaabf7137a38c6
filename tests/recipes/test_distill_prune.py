"""distill_prune.py as a user runs it: stage 2's model pruned, distilled, trained on,
verified. Stopped or killed it ends as if unbroken."""

import json
import os
import shutil
import signal

import pytest
import torch
from recipe_scripts import (
    SMALL,
    data_words,
    run,
    run_on_two,
    run_script,
    run_until,
    script,
    write_recipe_corpus,
)
from tiny_training import start, tiny_config

from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.pretrained import load_pretrained, save_pretrained
from speechbrain_ext.pruning.groups import gated_groups
from speechbrain_ext.training.brain import read_steps
from speechbrain_ext.utils.weights import read_weights

PRUNE1, PRUNE2 = "hparams/prune1_distill.yaml", "hparams/prune2_distill.yaml"
PRODUCTS = ("final/speaker_encoder.safetensors", "final/classifier.safetensors")
PRODUCTS += ("final/training.json", "pruning.json", "steps.csv")
WITHOUT_CLASSIFIER = [word for word in SMALL if "embedding_size" not in word]
EPOCHS = 3  # of 7 steps
SPARSITY = 0.4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """With the end state of a stage 2, whose encoder drops out a tenth everywhere."""
    folder = write_recipe_corpus(tmp_path_factory.mktemp("corpus"))
    torch.manual_seed(0)
    model = SpeakerEncoder(
        W2VBertEncoder(tiny_config(layers=2)), AdapterMFA(16, 3, 8, 16)
    )
    training = {"speakers": [f"id{s:02d}" for s in range(6)], "n_speeds": 3}
    save_pretrained(folder / "stage2", model, ArcFace(16, 18), training)
    return folder


def prune1_words(corpus, out, *more):
    """Three epochs, gates that move fast enough to get somewhere in them."""
    return [
        *(PRUNE1, *data_words(corpus)[:3], *WITHOUT_CLASSIFIER),
        *(f"--teacher_folder={corpus}/stage2", f"--output_folder={out}"),
        *(f"--number_of_epochs={EPOCHS}", f"--sparsity={SPARSITY}"),
        *("--warmup_steps=10", "--lr=0.01", "--gate_lr=0.5", "--multiplier_lr=1.0"),
        "--multiple=1",  # tiny widths
        *more,
    ]


def prune2_words(corpus, student, out, *more):
    return [
        *(PRUNE2, *data_words(corpus)[:3], *WITHOUT_CLASSIFIER),
        *(f"--teacher_folder={corpus}/stage2", f"--student_folder={student}"),
        *(f"--output_folder={out}", "--number_of_epochs=1", "--lr=0.01", *more),
    ]


def products(out):
    return {name: (out / name).read_bytes() for name in PRODUCTS}


def check(name, words, tmp_path):
    code, lines = run(name, words, tmp_path / "stderr")
    assert code == 0, lines


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    """The folder that an unbroken run leaves."""
    folder = tmp_path_factory.mktemp("unbroken")
    check("distill_prune", prune1_words(corpus, folder / "out"), folder)
    return folder / "out"


# ---- the whole way -------------------------------------------------------------------


def test_the_smaller_model_has_the_size_that_was_asked_for(corpus, unbroken):
    dense = load_pretrained(corpus / "stage2")
    small = load_pretrained(unbroken / "final")
    full = count_parameters(dense.encoder).total
    left = count_parameters(small.encoder).total
    assert 0.98 * (1 - SPARSITY) < left / full <= 1 - SPARSITY
    found = json.loads((unbroken / "pruning.json").read_text())
    assert found["parameters"] == left
    assert {group["kind"] for group in found["groups"]} == {
        *("ffn1", "ffn2", "heads", "conv")
    }
    assert any(0 < group["kept"] < group["full"] for group in found["groups"])
    training = json.loads((unbroken / "final/training.json").read_text())
    assert (training["stage"], training["epoch"]) == ("prune1_distill", EPOCHS)
    assert training["trained_parameters"] == left
    assert training["total_parameters"] == count_parameters(small).total
    assert 0 <= training["validation_eer_percent"] <= 100


def test_head_and_classifier_are_kept(corpus, unbroken):
    before, after = (
        read_weights(folder / "speaker_encoder.safetensors")
        for folder in (corpus / "stage2", unbroken / "final")
    )
    heads = [name for name in before if name.startswith("head.")]
    assert heads
    assert all(torch.equal(before[name], after[name]) for name in heads)
    assert not any(
        torch.equal(before[name], value)
        for name, value in after.items()
        if name.endswith("output_dense.weight")
    )
    before, after = (
        (folder / "classifier.safetensors").read_bytes()
        for folder in (corpus / "stage2", unbroken / "final")
    )
    assert before == after


def test_every_step_is_in_the_table_and_in_a_picture(unbroken):
    steps = read_steps(unbroken / "steps.csv")
    assert steps["step"] == list(range(1, 7 * EPOCHS + 1))
    assert steps["epoch"] == [1 + n // 7 for n in range(7 * EPOCHS)]
    assert steps["target"][10:] == pytest.approx([SPARSITY] * (7 * EPOCHS - 10))
    assert steps["sparsity"][-1] > steps["sparsity"][0] + 0.1
    for name in ("steps.png", "structure.png"):
        assert (unbroken / name).read_bytes().startswith(b"\x89PNG")


def test_distilled_further_trained_on_and_verified(corpus, unbroken, tmp_path):
    check(
        "distill_prune",
        prune2_words(corpus, unbroken / "final", tmp_path / "2"),
        tmp_path,
    )
    structures = [folder / "pruning.json" for folder in (unbroken, tmp_path / "2")]
    assert structures[0].read_bytes() == structures[1].read_bytes()
    assert set(read_steps(tmp_path / "2/steps.csv")) == {
        *("step", "epoch", "loss", "l1", "cosine")
    }
    assert not (tmp_path / "2/steps.png").exists()
    folders, stages = [tmp_path / "2"], ["stage1_pruned", "stage2_joint"]
    for stage in [*stages, "stage3_lmft"]:
        words = [
            *(f"hparams/{stage}.yaml", *data_words(corpus), *WITHOUT_CLASSIFIER),
            *(f"--pretrained_folder={folders[-1]}/final", "--number_of_epochs=1"),
            f"--output_folder={tmp_path / stage}",
        ]
        words = [w for w in words if stage != "stage3_lmft" or "musan" not in w]
        words = [w for w in words if stage != "stage3_lmft" or "rirs" not in w]
        check("train", words, tmp_path)
        folders.append(tmp_path / stage)
    weights = [read_weights(f / "final/speaker_encoder.safetensors") for f in folders]
    for name in weights[0]:
        if name.startswith("encoder."):
            assert torch.equal(weights[0][name], weights[1][name])  # frozen in stage 1
            assert not torch.equal(weights[1][name], weights[2][name]) or (
                "linear_k.bias" in name  # no gradient: softmax does not see it
            )
    assert not torch.equal(
        *(w["head.bottleneck.weight"] for w in weights[:2])
    )  # but its head trained
    for folder in (unbroken, folders[-1]):
        words = [
            *("hparams/verify.yaml", f"--pretrained_folder={folder}/final"),
            *(*data_words(corpus)[1:3], f"--output_folder={tmp_path}/v{folder.name}"),
            *("--num_workers=0", "--noprogressbar", "--n_resamples=0"),
        ]
        check("verify", words, tmp_path)


# ---- stops ---------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_broken_off_and_continued(corpus, unbroken, tmp_path, ending):
    out, stderr = tmp_path / "out", tmp_path / "stderr"
    words = prune1_words(corpus, out, "--ckpt_interval_steps=3")
    for place in ((1, 5), (2, 2), (3, 7)):
        process = start(
            *(run_until, "distill_prune", place, ending, *words), stderr=stderr
        )
        process.join(100)
        code = 143 if ending is signal.SIGTERM else -signal.SIGKILL
        assert process.exitcode == code, stderr.read_text()
        assert not (out / "final").exists()
    check("distill_prune", words, tmp_path)
    assert products(out) == products(unbroken)
    assert (out / "log.txt").read_text().count("resuming from CKPT+") == 3


def test_a_finished_run_has_nothing_to_do_but_its_export(corpus, unbroken, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    shutil.rmtree(out / "final")
    (out / "pruning.json").unlink()
    check("distill_prune", prune1_words(corpus, out), tmp_path)
    assert products(out) == products(unbroken)


# ---- bad input -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("--sparsity=0.99", "Budget: sparsity 0.99, expected 0 to 0."),
        ("--gates.floors={{ffn1: 32, ffn2: 32, conv: 16}}", "Budget: sparsity 0.4,"),
        ("--gates.kinds=[ears]", "add_gates: unknown kind 'ears'"),
        ("--budget.macs=1000", "Budget: 2 targets, expected one of"),
        ("--teacher_folder={c}/nowhere", "{c}/nowhere: no such folder"),
    ],
)
def test_what_cannot_work_is_one_line_before_training(corpus, tmp_path, more, expected):
    out = tmp_path / "out"
    words = prune1_words(corpus, out, more.format(c=corpus))
    code, lines = run("distill_prune", words, tmp_path / "stderr")
    assert code == 1, lines
    assert lines[-1].startswith("error: ")
    assert expected.format(c=corpus) in lines[-1]
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert "Traceback" not in "\n".join(lines)
    assert not list(out.glob("save/*"))
    assert not (out / "final").exists()


def test_a_student_of_another_width_is_refused(corpus, tmp_path):
    encoder = W2VBertEncoder(tiny_config(hidden=8, layers=2))
    model = SpeakerEncoder(encoder, AdapterMFA(8, 3, 8, 16))
    save_pretrained(tmp_path / "narrow", model)
    words = prune2_words(corpus, tmp_path / "narrow", tmp_path / "out")
    code, lines = run("distill_prune", words, tmp_path / "stderr")
    assert code == 1
    assert "distillation: student of width 8, teacher of 16, expected" in lines[-1]


# ---- several processes ---------------------------------------------------------------


def _run_keeping_noise(name, *words):
    """Run, and leave the draws of one gate in a file of this rank."""
    module = script(name)
    draws = []

    class Watched(module.SpeakerBrain):
        def on_fit_start(self):
            super().on_fit_start()
            _, gate = gated_groups(self.embedder().encoder)[0]
            gate.register_forward_hook(lambda gate, _, out: self.keep(gate, out))

        def keep(self, gate, values):
            if gate.training:
                draws.append(values.units.detach())

    module.SpeakerBrain = Watched
    run_script(name, *words)
    folder = next(word for word in words if "output_folder" in word).split("=")[1]
    torch.save(draws, f"{folder}/noise{os.environ['RANK']}")


def test_two_processes_prune_with_noise_of_their_own_and_export_once(corpus, tmp_path):
    out = tmp_path / "out"
    words = prune1_words(corpus, out, "--batch_size=2", "--device=cpu")
    codes, errors = run_on_two("distill_prune", words, tmp_path, _run_keeping_noise)
    assert codes == [0, 0], errors
    draws = [torch.load(out / f"noise{rank}") for rank in range(2)]
    assert len(draws[0]) == len(draws[1]) == 7 * EPOCHS
    assert not any(torch.equal(one, two) for one, two in zip(*draws))
    log = (out / "log.txt").read_text()
    assert log.count(f"steps: 7 per epoch, {7 * EPOCHS} in {EPOCHS} epoch(s)") == 1
    assert log.count("; model in") == 1
    assert read_steps(out / "steps.csv")["step"] == list(range(1, 7 * EPOCHS + 1))
    left = json.loads((out / "pruning.json").read_text())["parameters"]
    model = load_pretrained(out / "final")
    assert count_parameters(model.encoder).total == left
