"""Stages 1 and 2 on VoxCeleb2 and VoxBlink2, stage 3 on VoxCeleb2 alone."""

import json
import shutil

import pytest
import torch
from recipe_scripts import SMALL, data_words, run, write_recipe_corpus

from speechbrain_ext.utils.weights import read_weights

N_OTHERS = 5  # speakers of VoxBlink2; of VoxCeleb2 four train
OURS = ["id00", "id01", "id02", "id03", "id04", "id05"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The recipe's, and VoxBlink2 below ``vb2``: the same voices by other names."""
    folder = write_recipe_corpus(tmp_path_factory.mktemp("corpus"))
    for number in range(N_OTHERS):
        shutil.copytree(
            folder / f"voices/wav/id{number:02d}", folder / f"vb2/id{number:06d}"
        )
    return folder


def trained(out):
    """training.json and the classifier's weight."""
    training = json.loads((out / "final/training.json").read_text())
    return training, read_weights(out / "final/classifier.safetensors")["weight"]


def test_three_stages(corpus, tmp_path):
    small = [w for w in SMALL if "embedding_size" not in w] + ["--number_of_epochs=1"]
    both = [
        *(*data_words(corpus), *small, f"--voxblink2_folders={corpus}/vb2"),
        f"--voxblink2.save_folder={tmp_path}/vb2",
    ]
    stages = {
        "stage1_lora_voxblink2": [
            *(*both, f"--encoder_source={corpus}/tiny.json", "--embedding_size=16"),
            *("--lora.r=2", "--crop_seconds=[0.4, 0.4]"),
        ],
        "stage2_voxblink2": both,
        # Nothing learnt: what the classifier then has is what was handed over.
        "stage3_lmft": [
            *(*data_words(corpus)[:3], *small),
            *("--lr=1e-30", "--lr_schedule.final=1e-30"),
        ],
    }
    found, before = {}, None
    for name, words in stages.items():
        more = [f"--pretrained_folder={before}/final"] if before else []
        before = tmp_path / name
        words = [f"hparams/{name}.yaml", *words, *more, f"--output_folder={before}"]
        code, lines = run("train", words, tmp_path / "stderr")
        assert code == 0, lines
        found[name] = trained(before)

    for name in list(stages)[:2]:
        training, weight = found[name]
        assert training["n_perturbed"] == 4
        ours, others = training["speakers"][:4], training["speakers"][4:]
        assert ours == sorted(ours)
        assert set(ours) < set(OURS)
        assert others == [f"voxblink2-id{n:06d}" for n in range(N_OTHERS)]
        assert len(weight) == 3 * 4 + N_OTHERS
    assert not torch.equal(found["stage1_lora_voxblink2"][1], weight)
    last, kept = found["stage3_lmft"]
    assert last["speakers"] == ours
    assert last["n_perturbed"] is None
    assert torch.allclose(kept, weight[:4], atol=1e-6)
    # prepared once for both stages
    assert (tmp_path / "vb2/train.arrow").is_file()
