"""The YAML files of the recipes by name, their parts and what they are read with."""

import torch
from recipe_scripts import HPARAMS, REPOSITORY

from speechbrain_ext.lobes.heads import MFA, AdapterMFA, WeightedSumECAPA

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
HYBRID = ("hybrid_w2v_bert_lora", "hybrid_wavlm_mhfa")
TABLE1 = tuple(
    f"table1/{path.stem}" for path in sorted((HPARAMS / "table1").glob("*.yaml"))
)
FBANK = tuple(
    f"fbank/{path.stem}" for path in sorted((HPARAMS / "fbank").glob("*.yaml"))
)
SMALL_STUDENTS = ("small_svmixer", "small_transformer_student")
SVMIXER = tuple(
    f"svmixer/{path.stem}" for path in sorted((HPARAMS / "svmixer").glob("*.yaml"))
)
# What makes a network of features small, where its file is only loaded
SMALLER = {
    "fbank/resnet": ["--size=18"],
    "fbank/simam_resnet": ["--size=34"],
    "fbank/ecapa": ["--channels=[16, 16, 16, 16, 24]"],
    "fbank/redimnet": ["--size=B0"],
    "fbank/redimnet2": ["--size=B0"],
    **{name: ["--teacher=null"] for name in SMALL_STUDENTS},
    **{name: ["--encoder.source.num_hidden_layers=1"] for name in SVMIXER},
    "svmixer/svmixer_w2v_bert": [
        *("--encoder.source.num_hidden_layers=1", "--teacher=null")
    ],
}
PUBLISHED = (*HEADS, *LATER, "stage1_pruned", "stage1_lora_voxblink2")
SMALL = (
    *("small_from_scratch", "small_ecapa", "small_redimnet", "small_whisper"),
    *SMALL_STUDENTS,
)
TRAINING = (*PUBLISHED, *DISTILLING, *HYBRID, *SMALL, *TABLE1, *FBANK, *SVMIXER)
CNCELEB = REPOSITORY / "recipes/CNCeleb/SpeakerRec/hparams"
ASVSPOOF = REPOSITORY / "recipes/ASVspoof5/AntiSpoofing/hparams"
SPOOFING = tuple(
    f"asvspoof5/{path.stem}"
    for path in sorted(ASVSPOOF.glob("*.yaml"))
    if path.stem != "evaluate"
)
FILES = {
    **{f"asvspoof5/{path.stem}": path for path in ASVSPOOF.glob("*.yaml")},
    **{name: HPARAMS / f"{name}.yaml" for name in (*TRAINING, "verify")},
    **{f"cnceleb/{path.stem}": path for path in CNCELEB.glob("*.yaml")},
    "own_corpus": REPOSITORY / "hparams_templates/own_corpus.yaml",
}


def script_of(name):
    """Which script reads the file of that name."""
    for script in ("verify", "evaluate"):
        if script in name:
            return script
    return "distill_prune" if name in DISTILLING else "train"


def function_of(script):
    """The function of a script that a file is read for."""
    return script if script in ("verify", "evaluate") else "train"


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


def optimiser(hparams):
    made = hparams["opt_class"]([torch.nn.Parameter(torch.zeros(1))])
    assert made.defaults["fused"]
    return type(made), made.defaults["lr"], made.defaults["weight_decay"]
