"""The loader's account of how long it was waited for."""

import pytest

from speechbrain_ext.data import dataset as loading
from speechbrain_ext.data.dataset import make_loader


class Clock:
    """Time that passes only where the test says so."""

    now = 100.0

    def perf_counter(self):
        return self.now


class Slow:
    """Items that take two seconds each."""

    def __init__(self, clock):
        self.clock = clock

    def __len__(self):
        return 6

    def __getitem__(self, key):
        self.clock.now += 2.0
        return key

    @staticmethod
    def collate(items):
        return items


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loading, "time", clock)
    return clock


def test_waiting_is_what_the_loader_took_of_an_epoch(clock):
    loader = make_loader(Slow(clock), [[0, 1], [2, 3], [4, 5]])
    for training in (12.0, 0.0, 4.0):
        for _ in loader:
            clock.now += training / 3
        assert loader.share_waited() == pytest.approx(12 / (12 + training))


def test_an_epoch_that_was_not_begun(clock):
    loader = make_loader(Slow(clock), [])
    assert list(loader) == []
    assert loader.share_waited() == 0.0
