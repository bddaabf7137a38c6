"""The template for one's own corpus: it loads, and differs from the recipe's only
where it says so."""

from pathlib import Path

import pytest
import torch

from speechbrain_ext.hyper import load_yaml

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/VoxCeleb/SpeakerRec"
FILES = {
    "template": ROOT / "hparams_templates/own_corpus.yaml",
    "recipe": RECIPE / "hparams/small_from_scratch.yaml",
}


@pytest.fixture
def hparams(tmp_path, monkeypatch):
    """Both files, loaded from the recipe's folder as a user would."""
    monkeypatch.chdir(RECIPE)
    folders = {"train_folders": str(tmp_path), "output_folder": str(tmp_path)}
    noises = {"musan_folder": str(tmp_path), "rirs_folder": str(tmp_path)}
    return {
        "template": load_yaml(FILES["template"], folders),
        "recipe": load_yaml(FILES["recipe"], {**folders, **noises}),
    }


def test_the_template_trains_without_noise_and_as_the_recipe_otherwise(hparams):
    template, recipe = hparams["template"], hparams["recipe"]
    assert template["augment_chains"] is None
    assert set(recipe) - set(template) == {"musan_folder", "rirs_folder"}
    for key, value in template.items():
        if isinstance(value, (int, float, str, list)) and key != "encoder_source":
            assert value == recipe[key], key


def test_both_build_the_same_small_model(hparams):
    models = [hparams[name]["speaker_encoder"].eval() for name in FILES]
    models[1].load_state_dict(models[0].state_dict())
    wavs = torch.randn(2, 16000) * 0.1
    with torch.no_grad():
        assert torch.equal(models[0](wavs), models[1](wavs))
    assert not models[0].encoder.features.normalise_variance
    assert models[0](wavs).shape == (2, 1, 192)
