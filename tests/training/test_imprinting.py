"""A new classifier begins at the mean embeddings of its speakers."""

import numpy as np
import pytest
import torch
from tiny_training import manifest_of, tiny_config, write_voices

from speechbrain_ext.data.audio import read_audio
from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.training.build import first_of_each, imprint


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    write_voices(folder / "voices", n_speakers=3, n_utterances=3)
    return folder


def modules_of(n_classes):
    torch.manual_seed(0)
    model = SpeakerEncoder(W2VBertEncoder(tiny_config()), AdapterMFA(16, 2, 8, 16))
    return {"speaker_encoder": model.train(), "classifier": ArcFace(16, n_classes)}


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
    modules = modules_of(len(speakers))
    lengths = modules["classifier"].weight.detach().norm(dim=1)
    imprint(modules, manifest, n_speeds, "cpu", 1.5, None)
    weight = modules["classifier"].weight.detach()
    for row, speaker in enumerate(speakers):
        expected = mean_of(modules["speaker_encoder"], manifest, speaker)
        cosine = torch.dot(expected, weight[row] / weight[row].norm())
        assert cosine == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(weight.norm(dim=1), lengths)
    assert modules["classifier"].weight.requires_grad
    assert modules["speaker_encoder"].training


def test_training_has_the_random_numbers_it_had(voices):
    modules = modules_of(3)
    before = torch.get_rng_state()
    imprint(modules, manifest_of(voices, range(3), 3), 1, "cpu", 1.5, 0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_first_recordings_of_each_speaker():
    labels = np.array([2, 0, 2, 2, 1, 0, 2])
    assert first_of_each(labels, 2).tolist() == [0, 1, 2, 4, 5]
    assert first_of_each(labels, 9).tolist() == list(range(7))
    assert first_of_each(labels, 1).tolist() == [0, 1, 4]
