"""Two corpora in one manifest: classes, speeds and labels of each."""

import numpy as np
import pytest

from speechbrain_ext.data.arrow_manifest import mix_manifests
from speechbrain_ext.data.dataset import TrainingSet
from speechbrain_ext.data.labels import Classes
from speechbrain_ext.data.manifest import Manifest, read_manifest, write_manifest
from speechbrain_ext.data.sampler import CropBatchSampler, Draw
from speechbrain_ext.utils.errors import InputError


def corpus(prefix, n_speakers, n_rows, seed):
    random = np.random.default_rng(seed)
    numbers = [*range(n_speakers), *random.integers(n_speakers, size=n_rows)]
    speakers = [f"{prefix}{n:03d}" for n in numbers]
    ids = [f"{speaker}/v/{row:05d}" for row, speaker in enumerate(speakers)]
    return Manifest(ids, [f"/d/{i}.wav" for i in ids], [3.0] * len(ids), speakers)


@pytest.fixture
def mixed(tmp_path):
    """12 speakers that are perturbed, named behind the 30 others; all in one file."""
    write_manifest(tmp_path / "vox.csv", corpus("z", 12, 200, 0))
    write_manifest(tmp_path / "vb2.arrow", corpus("a", 30, 500, 1))
    return mix_manifests(
        tmp_path / "vox.csv", tmp_path / "vb2.arrow", tmp_path / "save"
    )


def test_the_published_number_of_classes():
    assert Classes(5994, 3).count == 17_982
    assert Classes(5994 + 111_284, 3, 5994).count == 129_266
    assert Classes(10, 1, 4).count == 10
    assert Classes(10, 3, 0).count == 10


@pytest.mark.parametrize("classes", [Classes(5, 3), Classes(7, 3, 2), Classes(3, 1, 1)])
def test_each_class_is_that_of_one_speaker_and_speed(classes):
    pairs = list(classes.speakers_and_speeds())
    assert [classes.class_of(*pair) for pair in pairs] == list(range(classes.count))
    assert len(set(pairs)) == classes.count


@pytest.mark.parametrize("perturbed", [-1, 4])
def test_no_more_perturbed_speakers_than_there_are(perturbed):
    with pytest.raises(InputError, match=f"n_perturbed: {perturbed}, expected 0 to 3"):
        _ = Classes(3, 2, perturbed).count


def test_perturbed_speakers_come_first(mixed):
    manifest = read_manifest(mixed)
    names = manifest.speaker_names.tolist()
    assert names == [f"z{n:03d}" for n in range(12)] + [f"a{n:03d}" for n in range(30)]
    assert manifest.n_perturbed == 12
    assert len(manifest) == 212 + 530
    assert np.array_equal(manifest.speaker_names[manifest.labels], manifest.speakers)
    for name, path in zip(manifest.ids.tolist(), manifest.paths.tolist()):
        assert path == f"/d/{name}.wav"


@pytest.mark.parametrize("draws", [None, 420])
def test_only_perturbed_speakers_change_their_speed(mixed, draws):
    manifest = read_manifest(mixed)
    settings = {"batch_size": 7, "n_speeds": 3, "draws_per_epoch": draws}
    sampler = CropBatchSampler(
        manifest.labels, **settings, n_perturbed=manifest.n_perturbed
    )
    sampler.set_epoch(1)
    drawn = [draw for batch in sampler for draw in batch]
    seen = {0: set(), 1: set()}
    for draw in drawn:
        seen[int(manifest.labels[draw.row] >= 12)].add(draw.speed_index)
    assert seen == {0: {0, 1, 2}, 1: {0}}
    # The perturbed draw as where all are: one corpus more changes no other's speed.
    everyone = CropBatchSampler(manifest.labels, **settings)
    everyone.set_epoch(1)
    for draw, other in zip(drawn, (d for batch in everyone for d in batch)):
        plain = manifest.labels[draw.row] >= 12
        assert draw == (other._replace(speed_index=0) if plain else other)


def test_labels_are_the_classes(mixed, monkeypatch):
    manifest = read_manifest(mixed)
    dataset = TrainingSet(manifest, seed=0, speeds=(1.0, 0.9, 1.1))
    assert dataset.n_classes == 3 * 12 + 30
    monkeypatch.setattr(
        "speechbrain_ext.data.dataset.read_crop",
        lambda path, frames, n, generator: np.zeros(n, np.float32),
    )
    first, last = (np.flatnonzero(manifest.labels == n)[0] for n in (4, 41))
    label = {
        (row, speed): dataset[Draw(int(row), 0, 1, 800, speed)]["label"]
        for row, speed in ((first, 0), (first, 1), (first, 2), (last, 0))
    }
    assert list(label.values()) == [4, 4 + 12, 4 + 24, 41 + 24]


def test_mixing_again_is_immediate_unless_a_manifest_changed(mixed, tmp_path):
    def again():
        mix_manifests(tmp_path / "vox.csv", tmp_path / "vb2.arrow", tmp_path / "save")
        return mixed.stat().st_mtime_ns

    before = mixed.stat().st_mtime_ns
    assert again() == before
    write_manifest(tmp_path / "vox.csv", corpus("z", 12, 201, 0))
    assert again() != before
    assert len(read_manifest(mixed)) == 213 + 530


def test_a_speaker_of_both_is_refused(tmp_path):
    write_manifest(tmp_path / "a.csv", corpus("x", 4, 10, 0))
    write_manifest(tmp_path / "b.csv", corpus("x", 3, 10, 0))
    with pytest.raises(InputError, match=r"b.csv: speaker 'x000' is also in .*a.csv"):
        mix_manifests(tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "save")
    assert not (tmp_path / "save/train.arrow").exists()
