"""Every YAML file of the recipe: it loads, says how to be used, and has the numbers
that were published (arXiv 2510.04213, section 3.2 and table 2)."""

import re

import pytest
import torch
from recipe_scripts import HPARAMS, RECIPE, script
from tiny_training import tiny_config

from speechbrain_ext.hyper import load_run
from speechbrain_ext.lobes.heads import MFA, AdapterMFA, WeightedSumECAPA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.overrides import RUN_OPTIONS
from speechbrain_ext.pretrained import save_pretrained

HEADS = {
    "stage1_adapter_mfa": AdapterMFA,
    "stage1_lora_adapter_mfa": AdapterMFA,
    "stage1_mfa": MFA,
    "stage1_weighted_ecapa": WeightedSumECAPA,
}
LATER = ("stage2_joint", "stage3_lmft")
PUBLISHED = (*HEADS, *LATER)
TRAINING = (*PUBLISHED, "small_from_scratch")
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
        given["pretrained_folder"] = tiny / "final"
        given["output_folder"] = tmp_path / "out"
        words = [
            *(f"--{k}={v}" for k, v in given.items() if f"\n{k}: " in text),
            *words,
        ]
        if name not in (*LATER, "verify"):
            words = [word for word in words if "pretrained_folder" not in word]
        keys = script("verify" if name == "verify" else "train").KEYS
        return load_run([f"hparams/{name}.yaml", *words], keys)[3]

    return load


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
    script_name = "verify" if name == "verify" else "train"
    assert re.search(rf"\n#   .*{script_name}\.py hparams/{name}\.yaml ", text)
    if name in PUBLISHED:
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


# ---- numbers -------------------------------------------------------------------------


def optimiser(hparams):
    made = hparams["opt_class"]([torch.nn.Parameter(torch.zeros(1))])
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


@pytest.mark.parametrize("name", [*HEADS, "stage2_joint"])
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
    assert hparams["allow_duplicates"] is False
    assert hparams["backend"]["top_n"] == 300
    assert hparams["enrolment"] == ["average"]
    calibration = hparams["calibration"]
    assert calibration["n_trials"] == 30000
    assert calibration["shortest"] == 2
    assert calibration["boundary"] == 6


@pytest.mark.parametrize("name", HEADS)
def test_a_reference_follows_its_number(load, name):
    hparams = load(name, "--embedding_size=32", "--lr=1e-3", "--margin=0.3")
    assert hparams["speaker_encoder"].embedding_size == 32
    assert hparams["classifier"].keywords["embedding_size"] == 32
    assert hparams["lr_schedule"].peak == optimiser(hparams)[1] == 1e-3
    assert hparams["margin_schedule"](0) == 0.3
