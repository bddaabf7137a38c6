"""Templates: that for one's own corpus loads, and differs from the recipe's only where
it says so; those of a shared model are what recipes and exports write."""

import re
from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2BertConfig

from speechbrain_ext.hyper import load_yaml
from speechbrain_ext.inference import card
from speechbrain_ext.inference.card_sections import SECTIONS
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.pretrained import write_model

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


def test_the_inference_template_is_what_the_full_size_recipe_writes(tmp_path):
    with torch.device("meta"):
        encoder = W2VBertEncoder(Wav2Vec2BertConfig())
        head = AdapterMFA(encoder.hidden_size, encoder.n_states)
        write_model(tmp_path, SpeakerEncoder(encoder, head), {}, {})
    written = (tmp_path / "hyperparams.yaml").read_text()
    template = (ROOT / "hparams_templates/inference.yaml").read_text()
    begin = "pretrained_path: .\n"
    assert begin + template.partition(begin)[2] == begin + written.partition(begin)[2]
    header = template.partition(begin)[0]
    assert all(line.startswith("#") for line in header.strip().splitlines())
    for name in ("encoder_config.json", "speaker_encoder.safetensors"):
        assert name in header


def test_the_card_template_is_that_of_the_package():
    template = ROOT / "hparams_templates/model_card.md"
    assert template.read_text() == card.TEMPLATE.read_text()
    named = set(re.findall(r"\$(\w+)", template.read_text()))
    assert named == {"front_matter", *SECTIONS}


def test_every_template_and_section_is_documented():
    folder = ROOT / "hparams_templates"
    text = (folder / "README.md").read_text()
    names = {path.name for path in folder.iterdir()} - {"README.md"}
    assert set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE)) == names
    assert set(re.findall(r"`\$(\w+)`", text)) == {"front_matter", *SECTIONS}
