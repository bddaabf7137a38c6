"""The files of table 1's SSL rows: sizes of the full models, published settings."""

import pytest
import torch
from hparams_files import FILES, TABLE1, data_of
from recipe_scripts import HPARAMS

from speechbrain_ext.losses import ArcFace
from speechbrain_ext.profiling import profile_recipe

ECAPA = 8_410_841
# of Whisper large-v2: attention with three biases, feed-forward, two LayerNorms
WHISPER_LAYER = 4 * 1280**2 + 3 * 1280 + 2 * 1280 * 5120 + 5120 + 1280 + 4 * 1280
WHISPER_CONVOLUTIONS = (80 * 3 + 1) * 1280 + (1280 * 3 + 1) * 1280
# file → (configuration of its encoder, parameters of encoder and head). The encoder's
# are transformers' less masked_spec_embed; with its last state raw, less its last
# LayerNorm; of Whisper the first 24 of 32 layers.
SIZES = {
    "hubert_ecapa": ("hubert_large", 315_438_720 - 1024, ECAPA),
    "xlsr_ecapa": ("wav2vec2_xlsr53", 315_438_720 - 1024, ECAPA),
    "unispeech_sat_ecapa": ("unispeech_sat_large", 315_435_136 - 1024, ECAPA),
    "wavlm_ecapa": ("wavlm_large", 315_453_120 - 1024, ECAPA),
    "wavlm_mhfa": ("wavlm_large", 315_453_120 - 1024 - 2048, 2_368_114),
    "wavlm_camhfa": ("wavlm_large", 315_453_120 - 1024 - 2048, 2_384_434),
    "wavlm_lap": ("wavlm_large", 315_453_120 - 1024, 2_312_464),
    "nemo_mfa": ("nemo_conformer_large", 121_435_136, 9_502_336),
    "whisper_pmfa": (
        "whisper_large_v2",
        24 * WHISPER_LAYER + WHISPER_CONVOLUTIONS,
        None,
    ),
}
# SGD with wespeaker's rates is counted for 64 utterances a step.
RATES = {
    "stage1_hubert_ecapa": (torch.optim.SGD, 0.64, 4e-4, 20),
    "stage1_xlsr_ecapa": (torch.optim.SGD, 0.64, 4e-4, 20),
    "stage1_unispeech_sat_ecapa": (torch.optim.SGD, 0.64, 4e-4, 20),
    "stage1_wavlm_ecapa": (torch.optim.SGD, 0.64, 4e-4, 20),
    "stage2_ecapa": (torch.optim.SGD, 1e-3 * 512 / 64, 2.5e-4 * 512 / 64, 5),
    "stage3_ecapa": (torch.optim.SGD, 1e-4 * 256 / 64, 2.5e-5 * 256 / 64, 2),
    "stage1_wavlm_mhfa": (torch.optim.SGD, 0.1 * 128 / 64, 5e-3 * 128 / 64, 10),
    "stage1_wavlm_camhfa": (torch.optim.SGD, 0.1 * 128 / 64, 5e-3 * 128 / 64, 10),
    "stage2_mhfa": (torch.optim.AdamW, 5e-5, 1e-6, 5),
    "stage3_mhfa": (torch.optim.AdamW, 1e-5, 1e-7, 3),
    "stage1_wavlm_lap": (torch.optim.Adam, 1e-3, 1e-5, 40),
    "stage2_lap": (torch.optim.Adam, 5e-5, 5e-6, 20),
    "stage3_lap": (torch.optim.Adam, 5e-6, 5e-6, 3),
    "stage1_nemo_mfa": (torch.optim.AdamW, 1e-4, 1e-5, 15),
    "stage1_whisper_pmfa": (torch.optim.SGD, 2.5e-3 * 140 / 64, 1.13e-3 * 140 / 64, 4),
    "stage2_whisper_pmfa": (torch.optim.SGD, 2.5e-3 * 30 / 64, 7.3e-4 * 30 / 64, 8),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_the_full_models(name):
    config, encoder, head = SIZES[name]
    found = profile_recipe(
        FILES[f"table1/stage1_{name}"], HPARAMS / f"encoders/{config}.json"
    )
    assert found["encoder"] == encoder
    assert found["lora"] == 0
    if head is not None:
        assert found["head"] == head


def test_no_file_is_forgotten():
    assert {f"table1/{name}" for name in RATES} == set(TABLE1)
    stage1 = {name for name in RATES if name.startswith("stage1_")}
    assert stage1 == {f"stage1_{name}" for name in SIZES}


@pytest.mark.parametrize("name", RATES)
def test_published_settings(load, name):
    words = ["--layers=[1, 2]"] if name == "stage1_whisper_pmfa" else []
    hparams = load(f"table1/{name}", *words)
    kind, peak, final, epochs = RATES[name]
    made = hparams["opt_class"]([torch.nn.Parameter(torch.zeros(1))])
    assert type(made) is kind
    assert made.defaults["lr"] == pytest.approx(peak, rel=1e-6)
    assert hparams["epoch_counter"].limit == epochs
    rate = hparams["lr_schedule"]
    assert max(rate(n / 10) for n in range(10 * epochs)) <= peak * (1 + 1e-9)
    if name != "stage1_nemo_mfa":  # in steps, the last of which is before the end
        assert rate(epochs) == pytest.approx(final, rel=1e-3)
    assert hparams["global_batch"] % data_of(hparams)["batch_size"] == 0


@pytest.mark.parametrize("name", RATES)
def test_the_classifier_of_every_stage(load, name):
    words = ["--layers=[1, 2]"] if name == "stage1_whisper_pmfa" else []
    (term,) = load(f"table1/{name}", *words)["terms"]
    classifier = term.factory(embedding_size=4, n_classes=9)
    assert type(classifier) is ArcFace
    assert classifier.margin == (
        0.5 if "stage3" in name else 0.3 if "lap" in name else 0.2
    )
    assert classifier.scale == (30 if "lap" in name else 32)
    several = "mhfa" in name or "lap" in name
    assert classifier.n_centers == (3 if several else 1)
    penalised = several or "ecapa" in name
    if name in ("stage3_ecapa", "stage3_lap"):
        penalised = False
    assert classifier.inter_topk == (5 if penalised else 0)
    if penalised:
        assert classifier.inter_topk_margin == (0.06 if several else 0.1)
    # a later stage goes on with the rows of the one before
    assert (term.pretrained_folder is None) == name.startswith("stage1_")


def test_encoders_of_later_stages_train_and_of_stage_1_do_not(load):
    for name in RATES:
        words = ["--layers=[1, 2]"] if name == "stage1_whisper_pmfa" else []
        encoder = load(f"table1/{name}", *words)["modules"]["speaker_encoder"].encoder
        trains = any(p.requires_grad for p in encoder.parameters())
        assert trains == (not name.startswith("stage1_")), name
