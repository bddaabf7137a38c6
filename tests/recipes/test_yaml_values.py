"""Wrong values in the YAML files of the recipes; the commands in the documents."""

import re
import shlex

import pytest
from hparams_files import CNCELEB, FILES, function_of
from recipe_scripts import ANTISPOOFING, RECIPE, REPOSITORY, script

from speechbrain_ext.utils.config import (
    keywords_of,
    load_run,
    parse_overrides,
    read_tree,
    split_words,
)
from speechbrain_ext.utils.errors import InputError

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

COMMAND = re.compile(
    r"(train|verify|evaluate|distill_prune)\.py (\S+\.yaml)((?: [^|&;`]*)?)"
)


def documented_commands():
    """(document, script, YAML file, words) of every command in the documents."""
    recipes = {
        "recipes/VoxCeleb/SpeakerRec": RECIPE,
        "recipes/CNCeleb/SpeakerRec": CNCELEB.parent,
        "recipes/ASVspoof5/AntiSpoofing": ANTISPOOFING,
    }
    folders = "docs", *recipes
    for path in (
        REPOSITORY / "README.md",
        *(p for folder in folders for p in (REPOSITORY / folder).glob("*.md")),
    ):
        text = path.read_text().replace("\\\n", " ")
        recipe = recipes.get(path.parent.relative_to(REPOSITORY).as_posix(), RECIPE)
        for line in text.splitlines():
            if line.startswith("cd "):
                recipe = recipes.get(line.removeprefix("cd ").strip(), recipe)
            for script_name, yaml, words in COMMAND.findall(line):
                yield pytest.param(
                    *(script_name, recipe / yaml, words.split("#")[0]),
                    id=f"{path.parent.name}/{path.name}:{yaml}:{words.strip()[:40]}",
                )


@pytest.mark.parametrize(("script_name", "yaml", "words"), documented_commands())
def test_a_documented_command_is_understood(script_name, yaml, words):
    tree = read_tree(yaml)
    function = getattr(script(script_name), function_of(script_name))
    words = [w for w in shlex.split(words) if w != "…" and not w.startswith("$")]
    _, texts = split_words(words)
    texts = {k: v for k, v in texts.items() if "…" not in v and not v.isupper()}
    parse_overrides(yaml, tree, texts, keywords_of(function))
