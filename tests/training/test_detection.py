"""The term of a detection, and its validation."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from tiny_detector import make_detector_model
from tiny_encoder import noise
from tiny_extraction import make_model
from tiny_training import voice

from speechbrain_ext.data.manifest import Manifest, write_manifest
from speechbrain_ext.scoring.detection import min_dcf_of
from speechbrain_ext.training.data import TrainingData
from speechbrain_ext.training.detection import Detection, DetectionErrors
from speechbrain_ext.utils.errors import InputError

KEYS = ["bonafide", "spoof", "spoof", "spoof", "bonafide", "spoof", "spoof", "spoof"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Path of eight recordings, two of them bona fide."""
    return write(tmp_path_factory.mktemp("corpus"), KEYS)


def write(folder, keys):
    generator = np.random.default_rng(0)
    paths = [str(folder / f"r{n}.wav") for n in range(len(keys))]
    for number, path in enumerate(paths):
        soundfile.write(path, voice(number, 0.4 + 0.1 * number, generator), 16000)
    seconds = [0.4 + 0.1 * n for n in range(len(keys))]
    none = ["-"] * len(keys)
    speakers = [f"s{n % 2}" for n in range(len(keys))]
    ids = [f"r{n}" for n in range(len(keys))]
    extra = {"key": keys, "attack": none, "codec": none}
    path = folder / "list.csv"
    write_manifest(path, Manifest(ids, paths, seconds, speakers, extra=extra))
    return path


def data_of(path, **options):
    options = {"crop_seconds": (0.5, 0.5), "batch_size": 4, "label": "key", **options}
    return TrainingData(path, 1, **options)


def term_of(path, weights=None, **options):
    model, term = make_detector_model(), Detection(weights)
    term.setup(model, data_of(path, **options))
    return term, model


def test_crops_are_labelled_by_their_key(manifest):
    data = data_of(manifest)
    assert data.speakers == ["bonafide", "spoof"]
    batch = next(iter(data.loader()))
    keys = dict(zip((f"r{n}" for n in range(8)), KEYS))
    assert [data.speakers[label] for label in batch.labels.tolist()] == [
        keys[name] for name in batch.ids
    ]
    assert batch.wavs.shape == (4, 8000)  # also of those of 0.4 s, repeated


@pytest.mark.parametrize(
    ("weights", "options", "expected"),
    [
        (None, {}, (0.75, 0.25)),
        ("balanced", {}, (0.5, 0.5)),
        ({"spoof": 0.1, "bonafide": 0.9}, {}, (0.25, 0.75)),  # 0.1·6 : 0.9·2
        (None, {"draws_per_epoch": 4}, (0.5, 0.5)),
        ({"spoof": 1.0, "bonafide": 3.0}, {"draws_per_epoch": 4}, (0.25, 0.75)),
    ],
)
def test_priors_are_those_that_the_loss_sees(manifest, weights, options, expected):
    _, model = term_of(manifest, weights, **options)
    prior = model.head.log_prior.exp().tolist()
    assert prior == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_weighted_cross_entropy(manifest):
    term, _ = term_of(manifest, {"spoof": 0.1, "bonafide": 0.9})
    logits = noise(4, 1, 2)
    labels = torch.tensor([0, 1, 1, 0])  # of the manifest: bona fide, spoof
    outputs = SimpleNamespace(embeddings=logits, labels=labels)
    log_p = logits.squeeze(1).double().log_softmax(-1)
    classes, weights = [1, 0, 0, 1], [0.9, 0.1, 0.1, 0.9]
    terms = [-w * log_p[n, c] for n, (c, w) in enumerate(zip(classes, weights))]
    mean_weight = 0.9 * 2 / 8 + 0.1 * 6 / 8  # of the training set, not of this batch
    expected = sum(terms) / 4 / mean_weight
    assert term.loss(outputs, {}, 0).item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "spk_id"}, "classes s0, s1, expected spoof and bonafide"),
        ({"label": "keys"}, "no column 'keys' to train on, expected spk_id, key"),
        ({"speeds": [1.0, 0.9]}, r"speeds: \[1.0, 0.9\], expected \[1.0\]"),
    ],
)
def test_data_that_do_not_fit(manifest, change, message):
    with pytest.raises(InputError, match=message):
        term_of(manifest, **change)


def test_one_class_alone_is_not_trained_on(tmp_path):
    path = write(tmp_path, ["spoof"] * 4)
    with pytest.raises(InputError, match="classes spoof, expected spoof and bonafide"):
        term_of(path)
    with pytest.raises(InputError, match="0 bona fide recordings and 4 spoofs"):
        DetectionErrors.of(SimpleNamespace(dev=path))


def test_a_head_of_embeddings_does_not_detect(manifest):
    with pytest.raises(InputError, match="head: AdapterMFA, expected Detection"):
        Detection().setup(make_model(), data_of(manifest))


def test_weights_of_other_classes():
    with pytest.raises(InputError, match="weights of fake, expected of spoof and bon"):
        Detection({"fake": 1.0})


def test_validation_scores_every_recording_whole(manifest):
    model = make_detector_model()
    validation = DetectionErrors.of(SimpleNamespace(dev=manifest), 2.0)
    found = validation(model, "cpu", progress=False)
    scores = []
    for path in validation.manifest.paths:
        wav = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        with torch.no_grad():
            logits = model(wav[None])[0, 0].double()
        scores.append(float(logits[1] - logits[0]))
    labels = np.array(KEYS) == "bonafide"
    assert found["minDCF"] == pytest.approx(min_dcf_of(scores, labels))
    assert 0 <= found["EER"] <= 100
    assert validation.standard_error(found["minDCF"]) == 0  # the lowest counts


def test_validation_on_some_of_each_class(manifest):
    prepared = SimpleNamespace(dev=manifest)
    few = DetectionErrors.of(prepared, 2.0, n_recordings=4)
    again = DetectionErrors.of(prepared, 2.0, n_recordings=4)
    assert few.is_bonafide.sum() == 1
    assert len(few.manifest) == 4
    assert few.manifest.ids.tolist() == again.manifest.ids.tolist()
    assert DetectionErrors.of(SimpleNamespace(dev=None)) is None
