"""Every YAML file of the recipes: it loads, says how to be used, and has the numbers
that were published (arXiv 2510.04213, section 3.2 and table 2)."""

import re

import pytest
import torch
from hparams_files import (
    DISTILLING,
    FILES,
    HEADS,
    LATER,
    PUBLISHED,
    SPOOFING,
    TRAINING,
    WITH_VOXBLINK2,
    body,
    data_of,
    header,
    optimiser,
    script_of,
    without,
)
from recipe_scripts import REPOSITORY

from speechbrain_ext.lobes.heads import AdapterMFA, WeightedSumECAPA
from speechbrain_ext.training.distillation import Distillation
from speechbrain_ext.training.terms import Budget, Classification
from speechbrain_ext.utils.run_options import RUN_OPTIONS


def test_no_file_is_forgotten_here():
    on_disk = {
        *REPOSITORY.glob("recipes/*/*/hparams/**/*.yaml"),
        FILES["own_corpus"],
    }
    assert on_disk == set(FILES.values())


# ---- form ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_it_loads(load, name):
    assert load(name)


@pytest.mark.parametrize("name", FILES)
def test_the_header_says_purpose_needs_command_and_one_override(name):
    text = header(name)
    assert all(line.startswith("#") or not line for line in text.splitlines())
    assert len(text.splitlines()[0]) > 40
    assert "\n# Needs: " in text
    assert "\n# One override: --" in text
    assert re.search(rf"\n#   .*{script_of(name)}\.py \S*{FILES[name].name} ", text)
    if name in (*PUBLISHED, *DISTILLING):
        assert "arXiv 2510.04213" in text


@pytest.mark.parametrize("name", FILES)
def test_the_command_of_the_header_fills_all_placeholders(load, name):
    words = set(re.findall(r"--(\w+)=", header(name))) - {"nproc_per_node"}
    assert words
    filled = set(re.findall(r"(\w+): !PLACEHOLDER", "\n".join(body(name))))
    assert filled <= words, "the command leaves a placeholder unfilled"
    own = set(re.findall(r"^ *(\w+):", "\n".join(body(name)), re.M))
    for word in words - own - RUN_OPTIONS:
        override = re.search(rf"--{word}=([\w./]+)", header(name))[0]
        load(name, override)  # a parameter that the file leaves at its default


@pytest.mark.parametrize("name", [*TRAINING, *SPOOFING])
def test_sections_come_in_order(name):
    sections = [line for line in body(name) if line.startswith("# ----")]
    assert sections == [
        *("# ---- run", "# ---- data", "# ---- model", "# ---- optimisation")
    ]


@pytest.mark.parametrize("name", FILES)
def test_results_go_to_a_folder_of_its_own_name(name):
    assert f"output_folder: results/{FILES[name].stem}" in body(name)


@pytest.mark.parametrize("name", HEADS)
def test_siblings_differ_in_head_and_lora_alone(name):
    keys = "head", "lora", "output_folder"
    assert without(name, *keys) == without("stage1_adapter_mfa", *keys)


@pytest.mark.parametrize("name", WITH_VOXBLINK2)
def test_files_with_voxblink2_differ_in_preparation_alone(load, name):
    keys = "voxblink2_folders", "voxceleb", "voxblink2", "prepare", "output_folder"
    assert without(name, *keys) == without(WITH_VOXBLINK2[name], *keys)
    parts = load(name)["prepare"].keywords
    assert parts["voxblink2"].keywords["save_folder"] == "results/voxblink2"
    mine, other = (
        {k: v for k, v in prepare.keywords.items() if "folder" not in k}
        for prepare in (parts["voxceleb"], load(WITH_VOXBLINK2[name])["prepare"])
    )
    assert mine == other


# ---- numbers -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PUBLISHED, *DISTILLING])
def test_what_all_published_files_share(load, name):
    hparams = load(name)
    data = data_of(hparams)
    assert hparams["global_batch"] == 8 * data["batch_size"]
    assert hparams["max_grad_norm"] == 1.0
    assert hparams["ckpt_interval_minutes"] == 30
    assert hparams.get("precision") == "fp32"  # bf16 on a GPU
    assert "draws_per_epoch" not in data
    rate = 2e-4 if name in DISTILLING else hparams["lr_schedule"].peak
    decay = 0.0 if name in DISTILLING else 1e-4
    assert optimiser(hparams) == (torch.optim.AdamW, rate, decay)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_classifier(load, name):
    (term,) = load(name)["terms"]
    assert type(term) is Classification
    margin = 0.5 if name == "stage3_lmft" else 0.2
    assert term.factory.keywords == {"margin": margin, "scale": 32}
    assert (term.pretrained_folder is None) == ("encoder_source:" in str(body(name)))


@pytest.mark.parametrize("name", [*HEADS, "stage2_joint", "stage1_pruned"])
def test_data_of_stages_1_and_2(load, name):
    data = data_of(load(name))
    assert data["crop_seconds"] == [2.0, 3.0]
    assert data["batch_size"] == 64
    assert data["speeds"] == [1.0, 0.9, 1.1]
    augmenter = data["augmenter"].keywords
    assert augmenter["chains"] == {"none": 1, "noise": 1, "reverb": 1}
    assert set(augmenter["effects"]) == {"noise", "reverb"}


@pytest.mark.parametrize("name", HEADS)
def test_stage_1(load, name):
    hparams = load(name)
    assert hparams["epoch_counter"].limit == 15
    rate = hparams["lr_schedule"]
    for progress, expected in (
        *((0, 0.0), (0.5, 1e-5), (2.5, 5e-5), (5, 1e-4), (9.99, 1e-4)),
        *((10, 1e-5), (14.99, 1e-5)),
    ):
        assert rate(progress) == pytest.approx(expected, rel=1e-9)
    model = hparams["modules"]["speaker_encoder"]
    assert type(model.head) is HEADS[name]
    assert model.encoder.frozen
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert model.embedding_size == 256
    lora = {"r": 64, "alpha": 128, "dropout": 0.0}
    assert hparams.get("lora") == (lora if "lora" in name else None)
    assert model.encoder.lora_targets == ("linear_q", "linear_v")
    arguments = model.head.arguments
    assert (arguments["input_size"], arguments["n_states"]) == (16, 2)
    if HEADS[name] is AdapterMFA:
        assert arguments["adapter_size"] == 128
        assert not arguments["normalise"]
    if HEADS[name] is WeightedSumECAPA:
        assert arguments["channels"] == [512, 512, 512, 512, 1536]
    source = "encoder_source: facebook/w2v-bert-2.0 "
    assert any(line.startswith(source) for line in body(name))


@pytest.mark.parametrize(
    ("name", "epochs", "decay"), [("stage2_joint", 4, 2), ("stage3_lmft", 2, 1)]
)
def test_stages_2_and_3(load, name, epochs, decay):
    hparams = load(name)
    assert hparams["epoch_counter"].limit == epochs
    schedule = hparams["lr_schedule"]
    for progress, rate in (
        *((0, 1e-5), (decay / 4, 7.5e-6 + 2.5e-6 * 2**-0.5), (decay / 2, 7.5e-6)),
        *((decay, 5e-6), (decay + 1.7, 5e-6)),
    ):
        assert schedule(progress) == pytest.approx(rate)
    model = hparams["modules"]["speaker_encoder"]
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_data_of_stage_3(load):
    assert data_of(load("stage3_lmft")) == {
        "crop_seconds": [5.0, 6.0],
        "batch_size": 32,
        "speeds": [1.0],
    }


def test_stage_1_of_a_pruned_encoder(load):
    hparams = load("stage1_pruned")
    assert hparams["epoch_counter"].limit == 10
    rates = [hparams["lr_schedule"](p) for p in (0, 4.99, 5, 9.99)]
    assert rates == pytest.approx([1e-4] * 2 + [1e-5] * 2)
    model = hparams["modules"]["speaker_encoder"].train()
    assert not any(module.training for module in model.encoder.modules())
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for p in model.head.parameters())
    assert model.head.training


@pytest.mark.parametrize("name", DISTILLING)
def test_what_both_distillations_share(load, name):
    hparams = load(name)
    assert hparams["epoch_counter"].limit == 20
    assert data_of(hparams) == {"crop_seconds": [4.0, 4.0], "batch_size": 16}
    assert [hparams["lr_schedule"](p) for p in (0, 3.3, 20)] == [2e-4] * 3
    student, distillation = hparams["modules"]["speaker_encoder"], hparams["terms"][0]
    assert type(distillation) is Distillation
    assert not student.encoder.gradient_checkpointing
    assert student.training
    assert not distillation.teacher.training
    shared = {id(p) for p in distillation.teacher.parameters()}
    assert not any(id(p) in shared for p in student.parameters())


def test_pruning(load, tiny):
    hparams = load("prune1_distill")
    assert hparams["pretrained_folder"] == str(tiny / "final")
    pruning = hparams["terms"][1]
    assert type(pruning) is Budget
    assert pruning.gate_lr == pruning.multiplier_lr == 2e-2
    assert pruning.multiple == 8
    assert pruning.add_gates.keywords["kinds"] == ["heads", "ffn1", "ffn2", "conv"]

    def budget(*words):
        return load("prune1_distill", *words)["terms"][1].make_budget.keywords

    assert budget() == {"sparsity": 0.8, "warmup_steps": 10_000}
    changed = budget("--sparsity=0.5", "--warmup_steps=3")
    assert changed == {"sparsity": 0.5, "warmup_steps": 3}
    changed = budget("--budget.sparsity=null", "--budget.macs=6310000000")
    assert (changed["sparsity"], changed["macs"]) == (None, 6_310_000_000)
    floors = load("prune1_distill", "--gates.floors={heads: 1}")["terms"][1]
    assert floors.add_gates.keywords["floors"] == {"heads": 1}


def test_the_two_distillations_differ_in_student_and_budget_alone():
    keys = "output_folder", "student_folder", "gates", "budget", "pruning", "terms"
    one, two = (without(name, *keys) for name in DISTILLING)
    assert one == two


def test_a_small_encoder_trains_all_of_itself(load):
    hparams = load("small_from_scratch")
    model = hparams["modules"]["speaker_encoder"]
    assert all(p.requires_grad for p in model.parameters())
    assert model.head.arguments["normalise"] is True
    rate, margin = hparams["lr_schedule"], hparams["terms"][0].margin_schedule
    assert [rate(0), rate(4), rate(30)] == pytest.approx([0, 2e-3, 1e-5])
    assert [margin(0), margin(7.5), margin(30)] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("name", [*LATER, "own_corpus", *DISTILLING])
def test_gradient_checkpointing_is_an_override(load, name):
    for words, expected in ((), False), (("--gradient_checkpointing=True",), True):
        model = load(name, *words)["modules"]["speaker_encoder"]
        assert model.encoder.gradient_checkpointing is expected


def test_verification(load):
    hparams = load("verify")
    assert hparams["eval_precision"] == "fp32"
    assert hparams["window_seconds"] is None  # the model's own
    assert hparams["trials"].keywords["allow_duplicates"] is False
    assert hparams["trials"].keywords["enrolment"] == ["average"]
    assert hparams["backend"].top_n == 300
    calibration = hparams["calibration"]
    assert calibration.n_trials == 30000
    assert calibration.shortest == 2
    assert calibration.boundary == 6


@pytest.mark.parametrize("name", HEADS)
def test_a_reference_follows_its_number(load, name):
    words = "--embedding_size=32", "--lr=1e-3", "--margin=0.3", "--speeds=[1.0]"
    hparams = load(name, *words)
    assert hparams["modules"]["speaker_encoder"].embedding_size == 32
    assert hparams["terms"][0].factory.keywords["margin"] == 0.3
    assert hparams["lr_schedule"].peak == optimiser(hparams)[1] == 1e-3
    assert data_of(hparams)["speeds"] == [1.0]
