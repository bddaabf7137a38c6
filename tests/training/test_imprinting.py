"""A new classifier begins at the mean embeddings of its speakers."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_training import manifest_of, tiny_config, write_voices

from speechbrain_ext.data.audio import read_audio
from speechbrain_ext.data.dataset import TrainingSet
from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.training.terms import Classification, first_of_each


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    write_voices(folder / "voices", n_speakers=3, n_utterances=3)
    return folder


def imprint(manifest, n_speeds, seconds, classifier=ArcFace):
    """A new classifier of a run that begins → (its rows before, it, the model)."""
    torch.manual_seed(0)
    model = SpeakerEncoder(W2VBertEncoder(tiny_config()), AdapterMFA(16, 2, 8, 16))
    data = SimpleNamespace(
        manifest=manifest,
        speakers=manifest.speaker_names.tolist(),
        n_speeds=n_speeds,
        n_perturbed=manifest.n_perturbed,
        dataset=TrainingSet(manifest, 0, speeds=(1.0, 0.9, 1.1)[:n_speeds]),
        crop_seconds=(seconds, seconds),
        valid_batch_seconds=1.5,
    )
    term = Classification(classifier, new_classifier=True)
    term.setup(model.train(), data)
    before = term.classifier.weight.detach().clone()
    term.begin(SimpleNamespace(embedder=lambda: model, device="cpu"), data)
    return before, term.classifier, model


def mean_of(model, manifest, speaker):
    """The formula, recording by recording."""
    model.eval()
    total = 0
    for path in manifest.paths[manifest.labels == speaker].tolist():
        with torch.no_grad():
            vector = model(torch.from_numpy(read_audio(path))[None]).flatten()
        total = total + vector / vector.norm()
    model.train()
    return total / total.norm()


@pytest.mark.parametrize(("n_speeds", "n_perturbed"), [(1, None), (3, None), (3, 1)])
def test_rows_are_the_means_of_their_speakers(voices, n_speeds, n_perturbed):
    manifest = manifest_of(voices, range(3), 3)
    columns = manifest.ids, manifest.paths, manifest.durations, manifest.speakers
    manifest = Manifest(*columns, n_perturbed)
    speakers = {(1, None): [0, 1, 2], (3, None): [0, 1, 2] * 3, (3, 1): [0, 0, 0, 1, 2]}
    speakers = speakers[n_speeds, n_perturbed]
    before, classifier, model = imprint(manifest, n_speeds, None)
    weight = classifier.weight.detach()
    assert len(weight) == len(speakers)
    for row, speaker in enumerate(speakers):
        expected = mean_of(model, manifest, speaker)
        cosine = torch.dot(expected, weight[row] / weight[row].norm())
        assert cosine == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(weight.norm(dim=1), before.norm(dim=1))
    assert classifier.weight.requires_grad
    assert model.training


def test_several_centres_begin_about_the_mean_of_their_speaker(voices):
    """None equals another: of equal ones only the first would ever train."""
    manifest = manifest_of(voices, range(3), 3)
    several = functools.partial(ArcFace, n_centers=2)
    before, classifier, model = imprint(manifest, 1, None, several)
    weight = classifier.weight.detach()
    for speaker, centres in enumerate(weight):
        expected = mean_of(model, manifest, speaker)
        cosines = centres @ expected / centres.norm(dim=-1)
        assert cosines.min() > 0.99
        assert not torch.allclose(*centres / centres.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(weight.norm(dim=-1), before.norm(dim=-1))


def test_training_has_the_random_numbers_it_had(voices):
    manifest = manifest_of(voices, range(3), 3)
    imprint(manifest, 1, 0.5)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    SpeakerEncoder(W2VBertEncoder(tiny_config()), AdapterMFA(16, 2, 8, 16))
    ArcFace(16, 3)
    assert torch.equal(torch.get_rng_state(), after)


def test_the_first_recordings_of_each_speaker():
    labels = np.array([2, 0, 2, 2, 1, 0, 2])
    assert first_of_each(labels, 2).tolist() == [0, 1, 2, 4, 5]
    assert first_of_each(labels, 9).tolist() == list(range(7))
    assert first_of_each(labels, 1).tolist() == [0, 1, 4]
