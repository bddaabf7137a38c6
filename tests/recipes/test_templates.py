"""Templates: that for one's own corpus is complete, and goes on as stage 2 does; those
of a shared model are what recipes and exports write."""

import re
from pathlib import Path

import pytest
import torch
from recipe_scripts import script
from tiny_training import tiny_config
from transformers import Wav2Vec2BertConfig

from speechbrain_ext.adaptation import inject_lora
from speechbrain_ext.data.augment import Musan, RoomResponses
from speechbrain_ext.export import card
from speechbrain_ext.export.card import SECTIONS
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.pretrained import save_pretrained, write_model
from speechbrain_ext.utils.config import load_run
from speechbrain_ext.utils.errors import InputError

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/VoxCeleb/SpeakerRec"
OWN = ROOT / "hparams_templates/own_corpus.yaml"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load the template for one's own corpus from the recipe's folder, as users do."""
    model = SpeakerEncoder(W2VBertEncoder(tiny_config()), AdapterMFA(16, 2, 8, 16))
    save_pretrained(tmp_path / "model", model)
    monkeypatch.chdir(RECIPE)

    def load(*words, model=tmp_path / "model", path=OWN):
        words = [f"--pretrained_folder={model}", f"--output_folder={tmp_path}", *words]
        return load_run([str(path), *words], script("train").train)[3]

    return load


@pytest.mark.parametrize("missing", ["manifest", "pretrained_folder"])
def test_a_placeholder_that_is_left_is_named(missing, tmp_path):
    given = {"manifest": "mine.csv", "pretrained_folder": tmp_path}
    words = [f"--{key}={value}" for key, value in given.items() if key != missing]
    expected = rf"own_corpus\.yaml: {missing} must be given: --{missing}="
    with pytest.raises(InputError, match=expected):
        load_run([str(OWN), *words], script("train").train)


def test_ones_own_corpus_trains_all_of_a_model_for_new_speakers(load):
    own = load("--manifest=mine.csv")
    data = own["train_data"].keywords
    assert data["speeds"] == [1.0, 0.9, 1.1]
    assert data["crop_seconds"] == [2.0, 3.0]
    assert "augmenter" not in data
    assert own["prepare"].keywords["manifest"] == "mine.csv"
    (term,) = own["terms"]
    assert term.new_classifier is True
    assert term.pretrained_folder == own["pretrained_folder"]
    model = own["modules"]["speaker_encoder"]
    assert all(p.requires_grad for p in model.parameters())


def test_a_frozen_encoder_trains_the_head_alone(load):
    own = load("--manifest=mine.csv", "--frozen_encoder=True")
    model = own["modules"]["speaker_encoder"]
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for p in model.head.parameters())


def test_the_settings_in_comments_are_settings(load, tmp_path):
    """What the template tells its reader to put in, put in."""
    text = OWN.read_text()
    begin, end = text.index("    # augmenter:"), text.index("    speeds:")
    noise = re.sub("^    # ", "    ", text[begin:end], flags=re.M)
    path = tmp_path / "mine.yaml"
    path.write_text(text[:begin] + noise + text[end:])
    augmenter = load("--manifest=mine.csv", path=path)["train_data"].keywords
    effects = augmenter["augmenter"].keywords["effects"]
    assert effects["noise"].func is Musan
    assert effects["reverb"].func is RoomResponses
    lora = re.search(r"lora: null # .*({r: .*})", text)[1]
    own = load("--manifest=mine.csv", f"--lora={lora}", "--frozen_encoder=True")
    inject_lora(own["modules"]["speaker_encoder"].encoder, **own["lora"])


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


def test_the_card_template_says_what_the_package_s_says():
    template = ROOT / "hparams_templates/model_card.md"
    sizes = {"encoder": 3, "head": 2, "macs": 7e9, "embedding": 5}
    facts = card.CardFacts("me/voice", sizes, licence="mit", files=["README.md"])
    assert card.make_card(facts, template) == card.make_card(facts)
    named = set(re.findall(r"\$(\w+)", template.read_text()))
    assert named == {"front_matter", *SECTIONS}


def test_every_template_and_section_is_documented():
    folder = ROOT / "hparams_templates"
    text = (folder / "README.md").read_text()
    names = {path.name for path in folder.iterdir()} - {"README.md"}
    assert set(re.findall(r"^\| `([\w.]+)/?` \|", text, re.MULTILINE)) == names
    assert set(re.findall(r"`\$(\w+)`", text)) == {"front_matter", *SECTIONS}
