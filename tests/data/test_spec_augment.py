"""SpecAugment on the waveform: what is covered, where, and nothing of it is left."""

import numpy as np
import pytest
import torch
from test_augment import generators, power

from speechbrain_ext.data.augment import SpecAugment
from speechbrain_ext.features import KaldiFbank
from speechbrain_ext.features.w2v_bert import W2VBertFeatures
from speechbrain_ext.utils.errors import InputError


def changed_bands(wav, heard):
    """Edges in mel of each run of bins that were covered, but for the narrowest."""
    window = np.hanning(len(wav))
    before, after = (np.abs(np.fft.rfft(window * x)) for x in (wav, heard))
    quiet = (after < 0.5 * before.mean()) & (before > 0)
    runs = np.flatnonzero(np.diff(np.pad(quiet, 1).astype(int))).reshape(-1, 2)
    runs = runs[np.ptp(runs, axis=1) > 30]
    return 2595 * np.log10(1 + runs * 16000 / len(wav) / 700)


def pulses(n):
    """A flat spectrum, level from bin to bin: one pulse in the middle."""
    wav = np.zeros(n, dtype="f4")
    wav[n // 2] = 1
    return wav


def test_bands_are_covered_anywhere_and_no_wider_than_allowed():
    wav, before = pulses(20001), pulses(20001)
    found, several = [], 0
    for generator in generators(200):
        heard = SpecAugment(bands=1, band_mel=300, moments=0)(wav, generator)
        assert (heard.dtype, heard.shape) == (np.float32, wav.shape)
        edges = changed_bands(wav, heard)
        assert len(edges) <= 1
        found.extend(edges)
        heard = SpecAugment(bands=3, band_mel=300, moments=0)(wav, generator)
        several += len(changed_bands(wav, heard)) > 1
    assert (wav == before).all()
    found = np.array(found)
    assert np.ptp(found, axis=1).max() < 310
    assert 130 < np.ptp(found, axis=1).mean() < 190  # uniform from 0
    assert found[:, 0].min() < 300
    assert found[:, 1].max() > 2500
    assert several > 100


def test_moments_are_covered_anywhere_and_the_rest_is_as_it_was():
    wav = np.random.default_rng(0).standard_normal(16000).astype("f4")
    lengths, starts = [], []
    for generator in generators(200):
        effect = SpecAugment(bands=0, moments=1, moment_seconds=0.15, below_db=20)
        heard = effect(wav, generator)
        places = np.flatnonzero(np.abs(heard - wav) > 1e-4)
        if len(places) < 100:
            continue
        start, stop = places[0], places[-1] + 1
        lengths.append(stop - start)
        starts.append(start)
        assert len(places) > 0.95 * lengths[-1]
        loss = power(wav[start:stop]) / power(heard[start:stop])
        assert 12 < 10 * np.log10(loss) < 28
    assert max(lengths) <= 2400
    assert 1000 < np.mean(lengths) < 1450
    assert min(starts) < 1500
    assert max(starts) > 13000
    short = SpecAugment(bands=0, moments=1)(wav[:1000], np.random.default_rng(1))
    assert 0 < (np.abs(short - wav[:1000]) > 1e-4).sum() <= 200


@pytest.mark.parametrize(
    "features",
    [KaldiFbank(window="hamming", scale=32768.0), W2VBertFeatures()],
    ids=["wespeaker", "w2v-BERT"],
)
def test_nothing_is_left_of_what_was_covered(features):
    """Noise whose level goes up and down: in a band's mel bins it no longer does."""
    time = np.arange(40000) / 16000
    level = 10 ** (np.sin(2 * np.pi * 3 * time))
    wav = 0.01 * level * np.random.default_rng(0).standard_normal(len(time))
    effect = SpecAugment(bands=1, band_mel=2800, moments=0)
    generator = FixedDraws([2000.0, 400.0])  # width and lower edge, mel
    heard = effect(wav.astype("f4"), generator)
    before, after = (
        features(torch.tensor(x[None], dtype=torch.float32))[0][0, :, 20:60].numpy()
        for x in (wav, heard)
    )
    alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(before.T, after.T, strict=True)]
    assert np.median(np.abs(alike)) < 0.2


class FixedDraws:
    """A generator whose uniform numbers are given."""

    def __init__(self, numbers):
        self.numbers = iter(numbers)
        self.random = np.random.default_rng(0).random

    def uniform(self, low, high):
        return next(self.numbers)


def test_the_default_covers_both_and_little_is_no_error():
    wav = np.sin(0.1 * np.arange(8000)).astype("f4")
    nothing = SpecAugment(bands=0, moments=0)(wav, np.random.default_rng(0))
    assert np.abs(nothing - wav).max() < 1e-5
    one, same = (SpecAugment()(wav, np.random.default_rng(3)) for _ in range(2))
    assert (one == same).all()
    for samples in range(5):
        assert len(SpecAugment()(wav[:samples], np.random.default_rng(0))) == samples
    assert (SpecAugment()(0 * wav, np.random.default_rng(3)) == 0).all()
    noise = np.random.default_rng(0).standard_normal(32000).astype("f4")
    changes = [
        np.abs(SpecAugment(**{left: 0})(noise, g) - noise) > 1e-3
        for left, g in zip(("bands", "moments"), generators(2), strict=True)
    ]
    assert changes[0].mean() < 0.5 < changes[1].mean()


@pytest.mark.parametrize(
    "arguments",
    [{"band_mel": 3000.0}, {"bands": -1}, {"moment_seconds": np.nan}, {"below_db": -1}],
)
def test_spec_augment_settings_out_of_range(arguments):
    with pytest.raises(InputError, match=r"expected numbers of 0 or more, .* 2840 at"):
        SpecAugment(**arguments)
