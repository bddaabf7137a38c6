"""Manifests of real-shaped names, without recordings: what benchmarks of size share."""

import csv
import warnings

import numpy as np

from speechbrain_ext.data.corpora.voxblink2 import Recordings
from speechbrain_ext.data.manifest import COLUMNS, Manifest, write_manifest

ALPHABET = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"))


class NamesOnly:
    """VoxBlink2's shape without a disk: what ``Corpus`` would say of it."""

    holders = ()

    def __init__(self, n_speakers):
        self.n_speakers = n_speakers

    def speakers(self):
        return [f"id{number:06d}" for number in range(self.n_speakers)]

    def read(self, speaker, videos=None):
        random = np.random.default_rng(int(speaker[2:]))
        n_videos = int(random.integers(12, 27))
        letters = random.choice(ALPHABET, (n_videos, 11))
        names = [
            f"{''.join(video)}/{crop:05d}"
            for video, n_crops in zip(letters, random.integers(1, 10, n_videos))
            for crop in range(n_crops)
        ]
        frames = 640 * random.integers(50, 375, len(names))
        paths = [f"/data/VoxBlink2/audio/{speaker}/{name}.wav" for name in names]
        return Recordings(names, paths, frames.tolist(), [1] * len(names), [])


def voxceleb2(n_speakers, n_rows):
    """Names of VoxCeleb2's shape."""
    speakers = [f"id{10000 + row % n_speakers:05d}" for row in range(n_rows)]
    ids = [f"{s}/{row // 60:011x}/{row % 60:05d}" for row, s in enumerate(speakers)]
    paths = [f"/data/VoxCeleb2/wav/{name}.wav" for name in ids]
    return Manifest(ids, paths, np.full(n_rows, 7.84), speakers)


def write_both(stem, corpus, speakers):
    """The same rows as Arrow and as CSV → how many."""
    columns = [], [], [], []
    for speaker in speakers:
        names, paths, frames, *_ = corpus.read(speaker)
        columns[0].extend(f"{speaker}/{name}" for name in names)
        columns[1].extend(paths)
        columns[2].extend(length / 16000 for length in frames)
        columns[3].extend([speaker] * len(names))
    write_manifest(stem.with_suffix(".arrow"), Manifest(*columns))
    ids, paths, seconds, names = columns
    with open(stem.with_suffix(".csv"), "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(zip(ids, seconds, paths, names))
    return len(ids)


def silent_loader(manifest, sampler, num_workers, **options):
    """A loader whose crops are silence."""
    from speechbrain_ext.data import dataset

    warnings.filterwarnings("ignore", message=".*worker processes in total")
    dataset.read_crop = silence
    return dataset.make_loader(
        dataset.TrainingSet(manifest, 0, **options), sampler, num_workers
    )


def silence(path, frames, n, generator):
    """In the place of ``read_crop``: the name is looked up, nothing is opened."""
    assert path.endswith(".wav")
    assert frames > 0
    return np.zeros(n, np.float32)
