"""Every YAML file of the recipes: it loads, says how to be used, and has the numbers
that were published (arXiv 2510.04213, section 3.2 and table 2)."""

import re
import shlex

import pytest
import torch
from recipe_scripts import HPARAMS, RECIPE, REPOSITORY, script
from tiny_training import tiny_config

from speechbrain_ext.lobes.heads import MFA, AdapterMFA, WeightedSumECAPA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.training.terms import Budget, Classification, Distillation
from speechbrain_ext.utils.config import (
    keywords_of,
    load_run,
    parse_overrides,
    read_tree,
    split_words,
)
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.run_options import RUN_OPTIONS

HEADS = {
    "stage1_adapter_mfa": AdapterMFA,
    "stage1_lora_adapter_mfa": AdapterMFA,
    "stage1_mfa": MFA,
    "stage1_weighted_ecapa": WeightedSumECAPA,
}
LATER = ("stage2_joint", "stage2_voxblink2", "stage3_lmft")
WITH_VOXBLINK2 = {
    "stage1_lora_voxblink2": "stage1_lora_adapter_mfa",
    "stage2_voxblink2": "stage2_joint",
}
DISTILLING = ("prune1_distill", "prune2_distill")
PUBLISHED = (*HEADS, *LATER, "stage1_pruned", "stage1_lora_voxblink2")
TRAINING = (*PUBLISHED, *DISTILLING, "small_from_scratch")
CNCELEB = REPOSITORY / "recipes/CNCeleb/SpeakerRec/hparams"
FILES = {
    **{name: HPARAMS / f"{name}.yaml" for name in (*TRAINING, "verify")},
    **{f"cnceleb/{path.stem}": path for path in CNCELEB.glob("*.yaml")},
    "own_corpus": REPOSITORY / "hparams_templates/own_corpus.yaml",
}


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

    def load(name, *words, change=("", "")):
        text = FILES[name].read_text()
        assert change[0] in text
        path = tmp_path / FILES[name].name if change[0] else FILES[name]
        if change[0]:
            path.write_text(text.replace(*change, 1))
        values = {"output_folder": tmp_path / "out"}
        for key in re.findall(r"(\w+): !PLACEHOLDER", text):
            is_model = key in ("pretrained_folder", "teacher_folder", "student_folder")
            values[key] = tiny / "final" if is_model else tmp_path
        if "encoder_source:" in text:
            values["encoder_source"] = tiny / "tiny.json"
        given = [f"--{key}={value}" for key, value in values.items()]
        module = script(script_of(name))
        function = getattr(module, "verify" if "verify" in name else "train")
        return load_run([str(path), *given, *words], function)[3]

    return load


def script_of(name):
    """Which script reads the file of that name."""
    if "verify" in name:
        return "verify"
    return "distill_prune" if name in DISTILLING else "train"


def body(name):
    """The lines of a file after its header."""
    lines = FILES[name].read_text().splitlines()
    return lines[lines.index("# ---- run") :]


def header(name):
    text = FILES[name].read_text()
    return text[: text.index("# ---- run")]


def data_of(hparams):
    """Arguments of TrainingData."""
    return hparams["train_data"].keywords


def test_no_file_is_forgotten_here():
    on_disk = {*REPOSITORY.glob("recipes/*/*/hparams/*.yaml"), FILES["own_corpus"]}
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


@pytest.mark.parametrize("name", TRAINING)
def test_sections_come_in_order(name):
    sections = [line for line in body(name) if line.startswith("# ----")]
    assert sections == [
        *("# ---- run", "# ---- data", "# ---- model", "# ---- optimisation")
    ]


@pytest.mark.parametrize("name", FILES)
def test_results_go_to_a_folder_of_its_own_name(name):
    assert f"output_folder: results/{FILES[name].stem}" in body(name)


def without(name, *keys):
    """The body without the sections of these keys."""
    kept, inside = [], False
    for line in body(name):
        inside = line.startswith(tuple(f"{key}:" for key in keys)) or (
            inside and line.startswith("    ")
        )
        if not inside:
            kept.append(line.replace("; VoxBlink2: 1.0 alone", ""))
    return kept


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


def optimiser(hparams):
    made = hparams["opt_class"]([torch.nn.Parameter(torch.zeros(1))])
    assert made.defaults["fused"]
    return type(made), made.defaults["lr"], made.defaults["weight_decay"]


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
    assert pruning.multiple == 1
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


# ---- wrong values --------------------------------------------------------------------

MFA_FILE, PRUNE = "stage1_adapter_mfa", "prune1_distill"
SPEEDS = "speeds: [1.0, 0.9, 1.1]"
CHAINS = "augment_chains: {none: 1, noise: 1, reverb: 1}"
EFFECTS = "effects: {noise: !ref <musan>, reverb: !ref <rirs>}"
COUNTER = (
    "!new:speechbrain.utils.epoch_loop.EpochCounter {limit: !ref <number_of_epochs>}"
)
CLASSIFIER = "!name:speechbrain_ext.losses.ArcFace"
HEAD = "    encoder: !ref <encoder>\n    head: !ref <head>"


@pytest.mark.parametrize(
    ("name", "word", "culprit"),
    [
        (MFA_FILE, "--scale=-1", "classifier.scale: -1, expected greater than 0"),
        (MFA_FILE, "--lr_schedule.warmup_epochs=-5", "lr_schedule: warmup_epochs=-5"),
        (MFA_FILE, "--every=0", "lr_schedule: every=0"),
        (MFA_FILE, "--lr_schedule.peak=", "lr_schedule.peak: None, expected a number"),
        (MFA_FILE, "--lr=1e500", "lr_schedule.peak: inf, expected a finite number"),
        (MFA_FILE, "--head.adapter_size=0", "head: adapter_size=0"),
        (MFA_FILE, "--embedding_size=0", "head: embedding_size=0"),
        (MFA_FILE, "--lora.r=2", "expected --lora={r: …}"),
        (MFA_FILE, "--batch_size=0", "train_data.batch_size: 0"),
        (PRUNE, "--warmup_steps=-3", "budget.warmup_steps: -3"),
        (PRUNE, "--gate_lr=-1", "pruning.gate_lr: -1"),
        (PRUNE, "--terms=[]", "terms: [], expected a value"),
        ("verify", "--max_seconds=0", "max_seconds: 0, expected greater than 0"),
        ("verify", "--cohort=3", "cohort: 3, expected a text"),
        ("verify", "--backend=3", "--backend=3: expected {key: value} or null"),
    ],
)
def test_a_wrong_override_is_named(load, name, word, culprit):
    with pytest.raises(InputError) as caught:
        load(name, word)
    assert culprit in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "culprit"),
    [
        (SPEEDS, "speeds: fast", "train_data.speeds: 'fast', expected a list"),
        (CHAINS, "augment_chains: hello", "train_data.augmenter.chains: 'hello'"),
        (EFFECTS, "effects: null", "train_data.augmenter.effects: None"),
        (
            "lr: 0.0001",
            "lr: 0.0001\nprecision: fp8",
            "precision: 'fp8', expected 'fp32'",
        ),
        ("lr: 0.0001", "lr: 0.0001\neval_precision: fp8", "eval_precision: 'fp8'"),
        ("lr: 0.0001", "lr: 0.0001\nnum_workers: many", "num_workers: 'many'"),
        ("lr: 0.0001", "lr: 0.0001\nmax_grad_norm: big", "max_grad_norm: 'big'"),
        (
            "lr: 0.0001",
            "lr: 0.0001\nckpt_interval_minutes: often",
            "ckpt_interval_minutes: 'often', expected a number",
        ),
        ("lr: 0.0001", "lr: 0.0001\nlora: hello", "lora: 'hello', expected {key: val"),
        ("lr: 0.0001", "lr: .nan", "lr_schedule.peak: nan, expected a finite number"),
        (COUNTER, "3", "epoch_counter: 3, expected an instance of EpochCounter"),
        (CLASSIFIER, "null #", "classification.classifier: None, expected an object"),
        (CLASSIFIER, CLASSIFIER.replace("name", "new"), "classifier: ArcFace: missing"),
        ("opt_class: !name:", "opt_class: !new:", "opt_class: AdamW: missing a req"),
        (HEAD, HEAD.replace("!ref <head>", "null"), "speaker_encoder.head: None"),
        (HEAD, HEAD.replace("!ref <encoder>", "null"), "speaker_encoder.encoder: None"),
        ("seed: 1986", "seed: hello", "__set_seed"),
        ("[!ref <classification>]", "[!ref <clasification>]", "key 'clasification'"),
        ("[!ref <classification>]", "[]", "terms: [], expected a value"),
        ("checkpointer: !new:", "other: !new:", "no key 'checkpointer'"),
    ],
)
def test_a_wrong_value_in_a_file_is_named(load, old, new, culprit):
    with pytest.raises(InputError) as caught:
        load(MFA_FILE, change=(old, new))
    assert f"{MFA_FILE}.yaml: " in str(caught.value)
    assert culprit in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "name", "key"),
    [("verify", "train", "train_data"), (MFA_FILE, "verify", "trials")],
)
def test_the_file_of_another_script(file, name, key):
    function = getattr(script(name), name)
    with pytest.raises(InputError, match=f"no key '{key}', expected a file for {name}"):
        load_run([str(FILES[file])], function)


# ---- what the documents say ----------------------------------------------------------

COMMAND = re.compile(r"(train|verify|distill_prune)\.py (\S+\.yaml)((?: [^|&;`]*)?)")


def documented_commands():
    """(document, script, YAML file, words) of every command in the documents."""
    folders = "docs", "recipes/VoxCeleb/SpeakerRec", "recipes/CNCeleb/SpeakerRec"
    for path in (
        REPOSITORY / "README.md",
        *(p for folder in folders for p in (REPOSITORY / folder).glob("*.md")),
    ):
        text = path.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            for script_name, yaml, words in COMMAND.findall(line):
                recipe = RECIPE if "CNCeleb" not in str(path) else CNCELEB.parent
                yield pytest.param(
                    *(script_name, recipe / yaml, words.split("#")[0]),
                    id=f"{path.parent.name}/{path.name}:{yaml}:{words.strip()[:40]}",
                )


@pytest.mark.parametrize(("script_name", "yaml", "words"), documented_commands())
def test_a_documented_command_is_understood(script_name, yaml, words):
    tree = read_tree(yaml)
    function = getattr(
        script(script_name), "verify" if script_name == "verify" else "train"
    )
    words = [w for w in shlex.split(words) if w != "…" and not w.startswith("$")]
    _, texts = split_words(words)
    texts = {k: v for k, v in texts.items() if "…" not in v and not v.isupper()}
    parse_overrides(yaml, tree, texts, keywords_of(function))
