"""Every YAML file of the recipe: it loads, says how to be used, and has the numbers
that were published (arXiv 2510.04213, section 3.2 and table 2)."""

import inspect
import re

import pytest
import torch
from recipe_scripts import HPARAMS, RECIPE, script
from tiny_training import tiny_config

from speechbrain_ext.data.corpora.voxblink2 import prepare_voxblink2
from speechbrain_ext.lobes.heads import MFA, AdapterMFA, WeightedSumECAPA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.utils.config import RUN_OPTIONS, load_run

HEADS = {
    "stage1_adapter_mfa": AdapterMFA,
    "stage1_lora_adapter_mfa": AdapterMFA,
    "stage1_mfa": MFA,
    "stage1_weighted_ecapa": WeightedSumECAPA,
}
LATER = ("stage2_joint", "stage2_voxblink2", "stage3_lmft")
FROM_A_MODEL = (*LATER, "stage1_pruned")
WITH_VOXBLINK2 = {
    "stage1_lora_voxblink2": "stage1_lora_adapter_mfa",
    "stage2_voxblink2": "stage2_joint",
}
DISTILLING = ("prune1_distill", "prune2_distill")
PUBLISHED = (*HEADS, *FROM_A_MODEL, "stage1_lora_voxblink2")
TRAINING = (*PUBLISHED, *DISTILLING, "small_from_scratch")
EVERY = (*TRAINING, "verify")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny encoder's configuration file and a pretrained folder of it."""
    folder = tmp_path_factory.mktemp("tiny")
    config = tiny_config()
    config.to_json_file(folder / "tiny.json", use_diff=False)
    model = SpeakerEncoder(W2VBertEncoder(config), AdapterMFA(16, 2, 8, 256))
    save_pretrained(folder / "final", model, ArcFace(256, 3), {})
    return folder


@pytest.fixture
def load(tiny, tmp_path, monkeypatch):
    """Load a YAML file as its script would, with a tiny encoder."""
    monkeypatch.chdir(RECIPE)

    def load(name, *words):
        text = (HPARAMS / f"{name}.yaml").read_text()
        given = {"encoder_source": tiny / "tiny.json"}
        for key in re.findall(r"^(\w+): !PLACEHOLDER", text, re.M):
            given[key] = tmp_path
        given |= dict.fromkeys(
            ("pretrained_folder", "teacher_folder", "student_folder"), tiny / "final"
        )
        given["output_folder"] = tmp_path / "out"
        words = [
            *(f"--{k}={v}" for k, v in given.items() if f"\n{k}: " in text),
            *words,
        ]
        if name not in (*FROM_A_MODEL, "verify"):
            words = [word for word in words if "pretrained_folder" not in word]
        if name == "prune1_distill":
            words = [word for word in words if "student_folder" not in word]
        keys = script(script_of(name)).KEYS
        return load_run([f"hparams/{name}.yaml", *words], keys)[3]

    return load


def script_of(name):
    """Which script reads the file of that name."""
    if name == "verify":
        return "verify"
    return "distill_prune" if name in DISTILLING else "train"


def body(name):
    """The lines of a file after its header."""
    lines = (HPARAMS / f"{name}.yaml").read_text().splitlines()
    return lines[lines.index("# ---- run") :]


def header(name):
    text = (HPARAMS / f"{name}.yaml").read_text()
    return text[: text.index("# ---- run")]


def test_no_file_is_forgotten_here():
    assert {path.stem for path in HPARAMS.glob("*.yaml")} == set(EVERY)


# ---- form ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_it_loads(load, name):
    assert load(name)


@pytest.mark.parametrize("name", EVERY)
def test_the_header_says_purpose_needs_command_and_one_override(name):
    lines = header(name).splitlines()
    assert all(line.startswith("#") or not line for line in lines)
    assert len(lines[0]) > 40
    text = header(name)
    assert "\n# Needs: " in text
    assert "\n# One override: --" in text
    assert re.search(rf"\n#   .*{script_of(name)}\.py hparams/{name}\.yaml ", text)
    if name in (*PUBLISHED, *DISTILLING):
        assert "arXiv 2510.04213" in text


@pytest.mark.parametrize("name", EVERY)
def test_the_command_of_the_header_has_keys_that_exist(name):
    own = {line.split(":")[0] for line in body(name) if re.match(r"\w+:", line)}
    words = set(re.findall(r"--(\w+)=", header(name))) - {"nproc_per_node"}
    assert words
    assert words <= own | RUN_OPTIONS
    filled = re.findall(r"^(\w+): !PLACEHOLDER", "\n".join(body(name)), re.M)
    assert set(filled) <= words, "the command leaves a placeholder unfilled"


@pytest.mark.parametrize("name", TRAINING)
def test_sections_come_in_order(name):
    sections = [line for line in body(name) if line.startswith("# ----")]
    assert sections == ["# ---- run", "# ---- data", "# ---- model"] + [
        "# ---- optimisation"
    ]


@pytest.mark.parametrize("name", EVERY)
def test_results_go_to_a_folder_of_its_own_name(name):
    assert f"output_folder: results/{name}" in body(name)


def without_head(name):
    """The body without what the four models of stage 1 differ in."""
    kept, inside = [], False
    for line in body(name):
        inside = line.startswith("head:") or (inside and line.startswith("    "))
        if not (inside or line.startswith(("lora:", "output_folder:"))):
            kept.append(line)
    return kept


@pytest.mark.parametrize("name", HEADS)
def test_siblings_differ_in_head_and_lora_alone(name):
    assert without_head(name) == without_head("stage1_adapter_mfa")


@pytest.mark.parametrize("name", WITH_VOXBLINK2)
def test_files_with_voxblink2_differ_in_its_section_alone(load, name):
    lines, inside = [], False
    for line in body(name):
        inside = line.startswith("voxblink2:") or (inside and line.startswith("    "))
        if not (inside or line.startswith(("voxblink2", "spk2videos", "output_f"))):
            lines.append(line.replace("; VoxBlink2: 1.0 alone", ""))
    other = body(WITH_VOXBLINK2[name])
    assert lines == [line for line in other if not line.startswith("output_folder")]
    hparams = load(name)
    options = inspect.signature(prepare_voxblink2)
    options.bind(**hparams["voxblink2"])
    assert hparams["voxblink2"]["save_folder"] == "results/voxblink2"


# ---- numbers -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PUBLISHED, *DISTILLING])
def test_the_global_batch_is_that_of_eight_processes(load, name):
    hparams = load(name)
    assert hparams["global_batch"] == 8 * hparams["batch_size"]


def optimiser(hparams):
    made = hparams["opt_class"]([torch.nn.Parameter(torch.zeros(1))])
    assert made.defaults["fused"]
    return type(made), made.defaults["lr"], made.defaults["weight_decay"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_all_published_stages_share(load, name):
    hparams = load(name)
    assert hparams["classifier"].keywords["scale"] == 32
    assert hparams["embedding_size"] == 256
    assert hparams["max_grad_norm"] == 1.0
    assert hparams["grad_accumulation_factor"] == 1
    kind, rate, decay = optimiser(hparams)
    assert kind is torch.optim.AdamW
    assert decay == 1e-4
    assert rate == hparams["lr"]
    assert hparams["draws_per_epoch"] is None
    assert hparams["prepare"]["max_bad_files"] == 0
    assert hparams["lr_schedule"].peak == hparams["lr"]
    assert "precision: bf16" in "\n".join(body(name))


@pytest.mark.parametrize("name", [*HEADS, "stage2_joint", "stage1_pruned"])
def test_data_of_stages_1_and_2(load, name):
    hparams = load(name)
    assert hparams["crop_seconds"] == [2.0, 3.0]
    assert hparams["batch_size"] == 64
    assert hparams["speeds"] == [1.0, 0.9, 1.1]
    assert hparams["augment_chains"] == {"none": 1, "noise": 1, "reverb": 1}
    assert hparams["musan"]["snr_db"] == {
        "noise": [5, 20],
        "music": [5, 20],
        "babble": [15, 25],
    }
    assert hparams["musan"]["babble_speakers"] == [3, 8]
    assert hparams["classifier"].keywords["margin"] == 0.2
    assert [hparams["margin_schedule"](p) for p in (0, 3.5, 14)] == [0.2] * 3


@pytest.mark.parametrize("name", HEADS)
def test_stage_1(load, name):
    hparams = load(name)
    assert hparams["number_of_epochs"] == hparams["epoch_counter"].limit == 15
    rate = hparams["lr_schedule"]
    for progress, expected in (
        *((0, 0.0), (0.5, 1e-5), (2.5, 5e-5), (5, 1e-4), (9.99, 1e-4)),
        *((10, 1e-5), (14.99, 1e-5)),
    ):
        assert rate(progress) == pytest.approx(expected, rel=1e-9)
    model = hparams["speaker_encoder"]
    assert type(model.head) is HEADS[name]
    assert model.encoder.frozen
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert model.embedding_size == 256
    lora = {"r": 64, "alpha": 128, "dropout": 0.0}
    lora["target_modules"] = ["linear_q", "linear_v"]
    assert hparams["lora"] == (lora if "lora" in name else None)
    arguments = model.head.arguments
    assert arguments["input_size"] == 16
    assert arguments["n_states"] == 2
    if HEADS[name] is AdapterMFA:
        assert arguments["adapter_size"] == 128
        assert not arguments["normalise"]
    if HEADS[name] is WeightedSumECAPA:
        assert arguments["channels"] == [512, 512, 512, 512, 1536]
    source = "encoder_source: facebook/w2v-bert-2.0 "
    assert any(line.startswith(source) for line in body(name))


def test_stage_2(load):
    hparams = load("stage2_joint")
    assert hparams["epoch_counter"].limit == 4
    check_cosine(hparams["lr_schedule"], 2)
    check_trainable(hparams)


def test_stage_3(load):
    hparams = load("stage3_lmft")
    assert hparams["epoch_counter"].limit == 2
    check_cosine(hparams["lr_schedule"], 1)
    check_trainable(hparams)
    assert hparams["crop_seconds"] == [5.0, 6.0]
    assert hparams["batch_size"] == 32
    assert hparams["speeds"] == [1.0]
    assert hparams["augment_chains"] is None
    assert hparams["classifier"].keywords["margin"] == 0.5
    assert hparams["margin_schedule"](0.3) == 0.5


def test_stage_1_of_a_pruned_encoder(load):
    hparams = load("stage1_pruned")
    assert hparams["epoch_counter"].limit == 10
    rate = hparams["lr_schedule"]
    assert [rate(p) for p in (0, 4.99, 5, 9.99)] == pytest.approx(
        [1e-4] * 2 + [1e-5] * 2
    )
    model = hparams["speaker_encoder"].train()
    assert model.encoder.frozen
    assert not any(module.training for module in model.encoder.modules())
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for p in model.head.parameters())
    assert model.head.training
    assert hparams["lora"] is None
    assert hparams["classifier"].keywords["embedding_size"] == 256


@pytest.mark.parametrize("name", DISTILLING)
def test_what_both_distillations_share(load, name):
    hparams = load(name)
    assert hparams["epoch_counter"].limit == 20
    assert hparams["crop_seconds"] == [4.0, 4.0]
    assert hparams["batch_size"] == 16
    assert optimiser(hparams) == (torch.optim.AdamW, 2e-4, 0.0)
    assert [hparams["lr_schedule"](p) for p in (0, 3.3, 20)] == [2e-4] * 3
    assert hparams["max_grad_norm"] == 1.0
    assert hparams["grad_accumulation_factor"] == 1
    assert hparams["draws_per_epoch"] is None
    assert hparams["multiple"] == 1
    assert "precision: bf16" in "\n".join(body(name))
    assert not hparams["student"].encoder.gradient_checkpointing
    assert hparams["student"].training
    assert not hparams["teacher"].training
    shared = {id(p) for p in hparams["teacher"].parameters()}
    assert not any(id(p) in shared for p in hparams["student"].parameters())


def test_pruning(load, tiny):
    hparams = load("prune1_distill")
    assert hparams["student_folder"] == hparams["teacher_folder"] == str(tiny / "final")
    assert hparams["gate_lr"] == hparams["multiplier_lr"] == 2e-2
    assert hparams["gates"]["kinds"] == ["heads", "ffn1", "ffn2", "conv"]
    given = {k: v for k, v in hparams["budget"].items() if v is not None}
    assert given == {"sparsity": 0.8, "warmup_steps": 10_000}
    given = load("prune1_distill", "--sparsity=0.5", "--warmup_steps=3")["budget"]
    assert (given["sparsity"], given["warmup_steps"]) == (0.5, 3)
    words = ["--budget.sparsity=null", "--budget.macs=6310000000"]
    given = load("prune1_distill", *words)["budget"]
    assert (given["sparsity"], given["macs"]) == (None, 6_310_000_000)


def test_distillation_alone(load):
    hparams = load("prune2_distill")
    assert hparams["gates"] is None
    assert hparams["budget"] is None


def test_the_two_distillations_differ_in_gates_and_budget_alone(load):
    one, two = ({**load(name)} for name in DISTILLING)
    for values in (one, two):
        for key, value in list(values.items()):
            plain = isinstance(value, (int, float, str, list, type(None)))
            if not plain or "folder" in key:
                del values[key]
    left_out = {"sparsity", "warmup_steps", "gate_lr", "multiplier_lr"}
    assert {k: v for k, v in one.items() if k not in left_out} == {
        k: v for k, v in two.items() if k not in ("gates", "budget")
    }


def check_cosine(schedule, epochs):
    """1e-5 → 5e-6 in half a cosine over so many epochs, then constant."""
    assert schedule(0) == pytest.approx(1e-5)
    assert schedule(epochs / 2) == pytest.approx(7.5e-6)
    assert schedule(epochs / 4) == pytest.approx(7.5e-6 + 2.5e-6 * 2**-0.5)
    assert schedule(epochs) == pytest.approx(5e-6)
    assert schedule(epochs + 1.7) == pytest.approx(5e-6)


def check_trainable(hparams):
    assert hparams["lora"] is None
    assert hparams["speaker_encoder"].training
    assert all(p.requires_grad for p in hparams["speaker_encoder"].parameters())
    assert hparams["classifier"].keywords["embedding_size"] == 256


def test_a_small_encoder_trains_all_of_itself(load):
    hparams = load("small_from_scratch")
    model = hparams["speaker_encoder"]
    assert all(p.requires_grad for p in model.parameters())
    assert model.head.arguments["normalise"] is True
    rate, margin = hparams["lr_schedule"], hparams["margin_schedule"]
    assert [rate(0), rate(4), rate(30)] == pytest.approx([0, 2e-3, 1e-5])
    assert [margin(0), margin(7.5), margin(30)] == pytest.approx([0, 0.1, 0.2])


def test_gradient_checkpointing_is_the_one_override_of_later_stages(load):
    for name in LATER:
        assert not load(name)["speaker_encoder"].encoder.gradient_checkpointing
        hparams = load(name, "--gradient_checkpointing=True")
        assert hparams["speaker_encoder"].encoder.gradient_checkpointing


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
    hparams = load(name, "--embedding_size=32", "--lr=1e-3", "--margin=0.3")
    assert hparams["speaker_encoder"].embedding_size == 32
    assert hparams["classifier"].keywords["embedding_size"] == 32
    assert hparams["lr_schedule"].peak == optimiser(hparams)[1] == 1e-3
    assert hparams["margin_schedule"](0) == 0.3
