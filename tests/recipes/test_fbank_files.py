"""The files of networks of features: sizes of the full models, published settings."""

import pytest
import torch
from hparams_files import FBANK, FILES, data_of

from speechbrain_ext.losses import ArcFace, SphereFace2
from speechbrain_ext.profiling import profile_recipe

SIZES = {
    "resnet": 23_792_224,
    "simam_resnet": 98_937_408,
    "ecapa": 14_660_416,
    "campplus": 7_176_224,
    "eres2netv2": 17_859_632,
    "redimnet": 15_015_473,
    "redimnet2": 12_394_784 + 7 * 2 * 4608,  # a GroupNorm before each of the sums
}
# first and last rate, epochs, margin and when it grows, crops in seconds, mean of so
# many epochs; wespeaker's rates are for 64 utterances a step
WESPEAKER = (0.1 * 256 / 64, 5e-5 * 256 / 64, 150, (0.2, 20, 40), 2.0, 10)
SETTINGS = {
    "resnet": WESPEAKER,
    "simam_resnet": WESPEAKER,
    "ecapa": WESPEAKER,
    "campplus": (0.1, 1e-4, 60, (0.2, 15, 25), 3.0, 1),
    "eres2netv2": (0.2, 5e-5, 70, (0.3, 20, 50), 3.0, 1),
    "redimnet": (0.1 * 8, 5e-5 * 8, 120, (0.2, 20, 40), 2.0, 10),
    "redimnet2": (0.1, 6e-5, 120, (0.2, 20, 40), 2.0, 1),
    "large_margin": (1e-4, 2.5e-5, 5, (0.5, 0, 0), 6.0, 3),
}


def test_no_file_is_forgotten():
    assert {f"fbank/{name}" for name in SETTINGS} == set(FBANK)
    assert set(SETTINGS) == {*SIZES, "large_margin"}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_the_full_models(name):
    found = profile_recipe(FILES[f"fbank/{name}"])
    assert found["encoder"] + found["head"] == SIZES[name]
    assert found["lora"] == 0


@pytest.mark.parametrize("name", SETTINGS)
def test_published_settings(load, name):
    first, last, epochs, (margin, begin, end), crop, average = SETTINGS[name]
    hparams = load(f"fbank/{name}")
    made = hparams["opt_class"]([torch.nn.Parameter(torch.zeros(1))])
    assert type(made) is torch.optim.SGD
    assert made.defaults["lr"] == pytest.approx(first)
    assert made.defaults["nesterov"]
    assert hparams["epoch_counter"].limit == epochs
    assert hparams["average_epochs"] == average
    rate = hparams["lr_schedule"]
    assert rate(epochs) == pytest.approx(last, rel=1e-3)
    assert max(rate(n / 10) for n in range(10 * epochs)) <= first * (1 + 1e-9)
    data = data_of(hparams)
    assert data["crop_seconds"] == [crop, crop]
    assert hparams["global_batch"] % data["batch_size"] == 0
    (term,) = hparams["terms"]
    classifier = term.factory(embedding_size=4, n_classes=9)
    assert type(classifier) is (SphereFace2 if name == "redimnet2" else ArcFace)
    assert (classifier.margin, classifier.scale) == (margin, 32)
    if name == "large_margin":
        assert term.pretrained_folder is not None
        assert data["speeds"] == [1.0]
    else:
        grows = term.margin_schedule
        found = [grows(e) for e in (0, begin, (begin + end) / 2, end, epochs)]
        assert found == pytest.approx([0, 0, margin / 2, margin, margin])
        assert data["speeds"] == [1.0, 0.9, 1.1]
