"""A new encoder and a new head: one file and one YAML, from training to the profile.

Both live in this file alone. Nothing in the package, the recipes or other tests knows
of them.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from recipe_scripts import RECIPE, REPOSITORY, data_words, run, write_recipe_corpus
from torch import nn

from speechbrain_ext.inference import SpeakerVerifier
from speechbrain_ext.lobes.encoder import Encoder, Head, PrunableGroup, padding_mask
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.scoring.embeddings import load_embeddings


class FrameEncoder(Encoder):
    """Waveform → log energy of 20 pieces of each frame → Linear → a bottleneck."""

    min_samples = 400
    lora_targets = ("down", "up")

    def __init__(self, width=8, inner=12, frozen=False):
        super().__init__(frozen)
        self.hidden_size, self.n_states, self.inner = width, 2, inner
        self.projection = nn.Linear(20, width)
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)

    def front_end(self, wavs, wav_lens=None):
        if wav_lens is None:
            wav_lens = torch.ones(len(wavs), device=wavs.device)
        pieces = wavs.unfold(1, 400, 200).unflatten(2, (20, 20))
        samples = torch.round(wav_lens.double() * wavs.shape[1])
        frames = ((samples - 400) // 200 + 1).clamp(min=1)
        return (pieces.square().mean(3) + 1e-6).log(), frames / pieces.shape[1]

    def encode(self, x, lens=None):
        first = self.projection(x)
        return [first, first + self.up(self.down(first).relu())]

    def prunable_groups(self):
        return [
            PrunableGroup(
                name="up",
                kind="inner",
                units=self.inner,
                full=12,
                input_weights=("down.weight", "down.bias"),
                output_weight="up.weight",
            )
        ]

    def resized(self, widths):
        return type(self)(self.hidden_size, widths["up"], frozen=self.frozen)


class MeanHead(Head):
    """Mean over time of the sum of the states → Linear."""

    def __init__(self, input_size, n_states, embedding_size=16):
        super().__init__()
        self.linear = nn.Linear(input_size, embedding_size)

    def forward(self, states, lens=None):
        x = sum(states)
        padding = padding_mask(x.shape[1], lens)
        if padding is None:
            return self.linear(x.mean(1, keepdim=True))
        kept = (~padding).unsqueeze(-1).to(x.dtype)
        return self.linear((x * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True))


STAGE = """\
seed: 1986
__set_seed: !apply:speechbrain.utils.seed_everything [!ref <seed>]
output_folder: !PLACEHOLDER
checkpointer: !new:speechbrain_ext.training.checkpoints.AtomicCheckpointer
    checkpoints_dir: !ref <output_folder>/save
prepare: !name:speechbrain_ext.data.corpora.voxceleb.prepare_voxceleb
    train_folders: !PLACEHOLDER
    test_folders: null
    trial_lists: []
    save_folder: !ref <output_folder>/prepared
    n_valid_speakers: 2
train_data: !name:speechbrain_ext.training.data.TrainingData
    crop_seconds: [0.4, 0.6]
    batch_size: 4
num_workers: 0
{model}
number_of_epochs: 2
epoch_counter: !new:speechbrain.utils.epoch_loop.EpochCounter
    limit: !ref <number_of_epochs>
classification: !new:speechbrain_ext.training.terms.Classification
    classifier: !name:speechbrain_ext.losses.ArcFace {{margin: 0.2, scale: 32}}
{terms}
lr_schedule: !new:speechbrain_ext.schedules.Constant {{value: 0.01}}
opt_class: !name:torch.optim.AdamW {{lr: 0.01}}
"""
NEW = """\
encoder: !new:test_toy_model.FrameEncoder {{frozen: {frozen}}}
head: !new:test_toy_model.MeanHead
    input_size: !ref <encoder.hidden_size>
    n_states: !ref <encoder.n_states>
modules:
    speaker_encoder: !new:speechbrain_ext.lobes.speaker_encoder.SpeakerEncoder
        encoder: !ref <encoder>
        head: !ref <head>
"""
AS_THEY_ARE = ("--no_speech_detection",)  # tones are no speech
LORA = NEW.format(frozen=True) + "lora: {r: 2, alpha: 4}"
FORMER = """\
modules:
    speaker_encoder: !apply:speechbrain_ext.pretrained.load_trainable
        folder: !PLACEHOLDER
"""
PRUNE = """\
pruning: !new:speechbrain_ext.training.terms.Budget
    budget: !name:speechbrain_ext.pruning.Budget {sparsity: 0.3, warmup_steps: 4}
    gate_lr: 0.5
    multiplier_lr: 1.0
terms: [!ref <classification>, !ref <pruning>]
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_recipe_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """Output folders of stage 1 (LoRA), hybrid pruning and verification."""
    folder = tmp_path_factory.mktemp("toy")
    data = data_words(corpus)[:3]

    def stage(name, model, terms, *words):
        yaml = folder / f"{name}.yaml"
        yaml.write_text(STAGE.format(model=model, terms=terms))
        out = folder / name
        words = [yaml, f"--output_folder={out}", *data, *words, "--noprogressbar"]
        code, stderr = run("train", words, folder / f"{name}.txt")
        assert code == 0, stderr
        return out

    stages = {
        "lora": stage("lora", LORA, "terms: [!ref <classification>]"),
    }
    former = f"--modules.speaker_encoder.folder={stages['lora']}/final"
    stages["pruned"] = stage("pruned", FORMER, PRUNE, former)
    words = [
        RECIPE / "hparams/verify.yaml",
        f"--output_folder={folder}/verify",
        f"--pretrained_folder={stages['pruned']}/final",
        f"--test_folders={corpus}/test",
        f"--trial_lists={corpus}/trials.txt",
        *("--num_workers=0", "--n_resamples=0", "--noprogressbar"),
    ]
    code, stderr = run("verify", words, folder / "verify.txt")
    assert code == 0, stderr
    return {**stages, "verify": folder / "verify"}


def command(*words):
    """``python -m speechbrain_ext`` where this file can be imported."""
    here = Path(__file__).parent
    folders = [str(folder) for folder in (REPOSITORY, here.parent, here)]
    path = f"import sys; sys.path[:0] = {folders}"
    main = f"from speechbrain_ext.cli import main; main({list(map(str, words))})"
    done = subprocess.run(
        [sys.executable, "-c", f"{path}; {main}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lora_is_merged_and_units_are_gone(runs):
    trained, pruned = (load_pretrained(runs[n] / "final") for n in ("lora", "pruned"))
    assert trained.encoder.inner == 12
    assert pruned.encoder.inner < 12
    assert type(pruned.head) is type(trained.head)
    report = json.loads((runs["pruned"] / "pruning.json").read_text())
    assert report["parameters"] == sum(p.numel() for p in pruned.encoder.parameters())
    training = json.loads((runs["pruned"] / "final/training.json").read_text())
    assert len(training["speakers"]) == 4


def test_verification_and_the_verifier_agree(runs, corpus):
    results = json.loads((runs["verify"] / "results.json").read_text())
    assert results
    verifier = SpeakerVerifier.from_hparams(source=str(runs["pruned"] / "final"))
    path = next((corpus / "test").rglob("*.wav"))
    wav, _ = soundfile.read(path, dtype="float32")
    saved = load_embeddings(runs["verify"] / "embeddings.npz")
    name = "/".join(path.with_suffix("").parts[-3:])
    expected = saved.vectors[list(saved.ids).index(name)]
    embedding = verifier.encode_batch(torch.from_numpy(wav)[None]).flatten().numpy()
    np.testing.assert_allclose(embedding, expected, atol=1e-5)


def test_export_and_profile_need_no_edit(runs, corpus, tmp_path):
    folder = tmp_path / "shared"
    command(
        *("export", "--pretrained_folder", runs["pruned"] / "final"),
        *("--output", folder),
    )
    paths = sorted((corpus / "test").rglob("*.wav"))[:2]
    answer = json.loads(command("verify", *paths, "--source", folder, *AS_THEY_ARE))
    assert -1 <= answer["score"] <= 1
    (row,) = json.loads(
        command("profile", "--json", "--pretrained_folder", folder)
    ).values()
    encoder = load_pretrained(folder).encoder
    assert row["encoder"] == sum(p.numel() for p in encoder.parameters())
    assert row["macs"] > 0
