"""A few recordings and a tiny model, and extractions that stop: for several tests."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_training import tiny_config, voice

from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.inference.extraction import embed_to_file, extract_embeddings
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.scoring.embeddings import load_embeddings

SECONDS = (0.6, 1.4, 0.3, 2.0, 0.9, 0.30625, 1.1, 0.7, 0.5, 1.7)
# 1.0 s a batch: one recording each, the longest first, but the eighth batch has two
OPTIONS = {"max_batch_seconds": 1.0, "progress": False}
N = len(SECONDS)


def make_model(head=AdapterMFA, **options):
    torch.manual_seed(0)
    encoder = W2VBertEncoder(tiny_config())
    return SpeakerEncoder(encoder, head(16, 2, embedding_size=8, **options))


def write_recordings(folder, wavs):
    """Manifest of recordings given as arrays, by name."""
    for name, wav in wavs.items():
        soundfile.write(folder / f"{name}.wav", wav, 16000, subtype="FLOAT")
    return Manifest(
        list(wavs),
        [str(folder / f"{name}.wav") for name in wavs],
        [len(wav) / 16000 for wav in wavs.values()],
        ["x"] * len(wavs),
    )


def some_recordings(folder):
    """Manifest of recordings of ``SECONDS``."""
    generator = np.random.default_rng(0)
    return write_recordings(
        folder, {f"r{i}": voice(i, s, generator) for i, s in enumerate(SECONDS)}
    )


def one_by_one(model, manifest, cut=None):
    """[N, E]: each recording read whole and embedded alone, in double checked order."""
    model.eval()
    rows = []
    for path in manifest.paths:
        wav = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        if cut is not None and len(wav) > cut:
            first = (len(wav) - cut) // 2
            wav = wav[first : first + cut]
        with torch.no_grad():
            rows.append(model(wav[None])[0, 0])
    return torch.stack(rows).numpy()


# ---- extractions that stop -----------------------------------------------------------


class Stopped(Exception):
    """What ends an extraction in the middle."""


@pytest.fixture
def manifest(tmp_path):
    (tmp_path / "wav").mkdir()
    return some_recordings(tmp_path / "wav")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "embeddings.npz"


@pytest.fixture
def unbroken(manifest):
    return extract_embeddings(make_model(), manifest, **OPTIONS)


def at_batch(number, action, model=None):
    """A model that does something before batch ``number`` (from 0)."""
    model = model or make_model()
    calls = iter(range(1000))

    def hook(module, inputs):
        if next(calls) == number:
            action()

    model.register_forward_pre_hook(hook)
    return model


def stop():
    raise Stopped


def begin(manifest, path, batches, **options):
    """Embed some batches, each into a part of its own, and stop → the parts."""
    options = {"save_every": 0, **OPTIONS, **options}
    with pytest.raises(Stopped):
        embed_to_file(at_batch(batches, stop), manifest, path, **options)
    return parts_of(path)


def parts_of(path):
    return sorted(path.parent.glob(f"{path.name}.parts-*/*.npz"))


def go_on(manifest, path, model=None, **options):
    """(vectors, number of recordings embedded for them)."""
    model, counts = model or make_model(), []
    model.register_forward_hook(lambda m, i, o: counts.append(len(o)))
    return embed_to_file(model, manifest, path, **{**OPTIONS, **options}), sum(counts)


def assert_whole(path, manifest, vectors):
    """The file holds these vectors, and nothing lies beside it."""
    found = load_embeddings(path)
    assert found.ids.tolist() == manifest.ids.tolist()
    np.testing.assert_array_equal(found.vectors, vectors)
    assert os.listdir(path.parent) == [path.name]


def recording(manifest, batch):
    """The sound file that batch number ``batch`` begins with."""
    return Path(manifest.paths[np.argsort(-manifest.durations)[batch]])
