"""Training batches: content, labels, workers, errors, the time spent waiting."""

import os
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ext.data import dataset as dataset_module
from speechbrain_ext.data.audio import read_audio
from speechbrain_ext.data.augment import Augmenter, Musan
from speechbrain_ext.data.dataset import (
    Batch,
    TrainingSet,
    length_batches,
    make_loader,
)
from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.data.sampler import CropBatchSampler, Draw
from speechbrain_ext.utils.errors import InputError

SPEEDS = (1.0, 0.9, 1.1)


@pytest.fixture(scope="module")
def manifest(tone_corpus):
    files = sorted(tone_corpus.rglob("*.wav"))
    return Manifest(
        [str(file.relative_to(tone_corpus).with_suffix("")) for file in files],
        [str(file) for file in files],
        [soundfile.info(str(file)).duration for file in files],
        [file.parts[-3] for file in files],
    )


def peak_hertz(wav):
    return np.argmax(np.abs(np.fft.rfft(wav))) * 16000 / len(wav)


def sampler_of(manifest, batch_size=4, **settings):
    settings = {"n_speeds": 3, "crop_seconds": (0.5, 3.0), "seed": 3, **settings}
    return CropBatchSampler(manifest.labels, batch_size, **settings)


def assert_equal(batches, expected):
    assert len(batches) == len(expected) > 0
    for found, wanted in zip(batches, expected):
        assert torch.equal(found.wavs, wanted.wavs)
        assert torch.equal(found.labels, wanted.labels)
        assert found.ids == wanted.ids


def test_speeds_are_further_speakers(manifest):
    dataset = TrainingSet(manifest, seed=0, speeds=SPEEDS)
    assert dataset.n_classes == 12
    assert len(dataset) == 12
    for speed_index, speed in enumerate(SPEEDS):
        for row in range(12):
            item = dataset[Draw(row, row, 1, 16000, speed_index)]
            speaker = row // 3
            assert item["label"] == speaker + 4 * speed_index
            assert item["id"] == manifest.ids[row]
            assert item["wav"].shape == (16000,)
            assert item["wav"].dtype == torch.float32
            expected = (300 + 100 * speaker) * speed
            assert abs(peak_hertz(item["wav"].numpy()) - expected) <= 1


def test_crops_are_parts_of_the_recording(manifest):
    dataset = TrainingSet(manifest, seed=0)
    whole, _ = soundfile.read(manifest.paths[2], dtype="float32")
    windows = np.lib.stride_tricks.sliding_window_view(whole, 50000)
    starts = []
    for position in range(5):
        wav = dataset[Draw(2, position, 1, 50000, 0)]["wav"].numpy()
        starts.append(int(np.argmin(np.abs(windows[:, 0] - wav[0]))))
        matches = np.flatnonzero(windows[:, 0] == wav[0])
        assert any(np.array_equal(windows[m], wav) for m in matches)
    assert len(set(starts)) > 1


def test_short_recordings_are_repeated(manifest):
    whole, _ = soundfile.read(manifest.paths[0], dtype="float32")
    assert len(whole) == 16000
    wav = TrainingSet(manifest, seed=0)[Draw(0, 0, 1, 40000, 0)]["wav"].numpy()
    assert np.array_equal(wav[16000:], wav[:-16000])
    doubled = np.concatenate([whole, whole])
    windows = np.lib.stride_tricks.sliding_window_view(doubled, 16000)
    matches = np.flatnonzero(windows[:, 0] == wav[0])
    assert any(np.array_equal(windows[m], wav[:16000]) for m in matches)


def test_items_differ_by_seed_epoch_and_position_alone(manifest):
    draw = Draw(2, 5, 1, 16000, 1)
    dataset = TrainingSet(manifest, seed=0, speeds=SPEEDS)
    first = dataset[draw]["wav"]
    dataset[draw._replace(position=6)]
    assert torch.equal(dataset[draw]["wav"], first)
    assert not torch.equal(dataset[draw._replace(position=6)]["wav"], first)
    assert not torch.equal(dataset[draw._replace(epoch=2)]["wav"], first)
    other = TrainingSet(manifest, seed=1, speeds=SPEEDS)
    assert not torch.equal(other[draw]["wav"], first)


@pytest.fixture(scope="module")
def augmenter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noises")
    (folder / "noise").mkdir()
    wav = np.random.default_rng(0).standard_normal(20000) * 0.1
    soundfile.write(folder / "noise" / "a.wav", wav, 16000)
    noise = Musan(folder, {"noise": (0, 5)})
    return Augmenter({"none": 1, "noise": 1}, {"noise": noise}, noise_cache_mib=0)


def test_workers_change_nothing_in_two_epochs(manifest, augmenter):
    dataset = TrainingSet(manifest, 3, augmenter, SPEEDS)
    runs = []
    for num_workers in (0, 2):
        sampler = sampler_of(manifest)
        loader = make_loader(dataset, sampler, num_workers)
        assert len(loader) == 3
        batches = []
        for epoch in (1, 2):
            sampler.set_epoch(epoch)
            batches += list(loader)
        runs.append(batches)
    assert_equal(runs[0], runs[1])
    assert len({batch.wavs.shape[1] for batch in runs[0]}) > 1


def test_an_interrupted_epoch_goes_on_with_the_same_batches(manifest, augmenter):
    dataset = TrainingSet(manifest, 3, augmenter, SPEEDS)
    sampler = sampler_of(manifest, draws_per_epoch=18)
    sampler.set_epoch(2)
    whole = list(make_loader(dataset, sampler))
    loader = make_loader(dataset, sampler, 2)
    for step, _ in enumerate(loader, start=1):
        sampler.step_done = step
        if step == 2:
            break
    resumed = sampler_of(manifest, draws_per_epoch=18)
    resumed.load_state_dict(sampler.state_dict())
    resumed.set_epoch(2)
    assert_equal(list(make_loader(dataset, resumed)), whole[2:])


def test_ranks_share_an_epoch(manifest):
    dataset = TrainingSet(manifest, 3, None, SPEEDS)
    alone = list(make_loader(dataset, sampler_of(manifest, 4)))
    ranks = [
        list(make_loader(dataset, sampler_of(manifest, 2, rank=r, world_size=2)))
        for r in (0, 1)
    ]
    for whole, first, second in zip(alone, *ranks):
        assert torch.equal(whole.wavs[0::2], first.wavs)
        assert torch.equal(whole.wavs[1::2], second.wavs)


def test_loading_leaves_the_random_state_of_torch_alone(manifest):
    loader = make_loader(TrainingSet(manifest, 0, None, SPEEDS), sampler_of(manifest))
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("damage", ["text", "missing", "short"])
def test_a_damaged_recording_is_named_in_one_line(tmp_path, damage, num_workers):
    path = tmp_path / "broken.wav"
    if damage == "text":
        path.write_text("this is no sound")
    elif damage == "short":
        soundfile.write(path, np.full(8000, 0.1), 16000)
    manifest = Manifest(["a"] * 4, [str(path)] * 4, [1.0] * 4, ["s"] * 4)
    sampler = CropBatchSampler(manifest.labels, 2, crop_seconds=(1, 1))
    with pytest.raises(InputError) as caught:
        list(make_loader(TrainingSet(manifest, 0), sampler, num_workers))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "Traceback" not in message


# ---- bad recordings ------------------------------------------------------------------


@pytest.fixture
def few(tmp_path):
    """Eight recordings of 0.5 s of two speakers, which a test may damage."""
    generator = np.random.default_rng(1)
    paths = [str(tmp_path / f"u{number}.flac") for number in range(8)]
    for path in paths:
        soundfile.write(path, 0.1 * generator.standard_normal(8000), 16000)
    ids = [f"u{number}" for number in range(8)]
    return Manifest(ids, paths, [0.5] * 8, ["s0", "s1"] * 4)


def two_epochs(dataset, num_workers):
    sampler = CropBatchSampler(dataset.labels, 2, (0.2, 0.4), n_speeds=2, seed=4)
    loader, batches = make_loader(dataset, sampler, num_workers), []
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        batches += list(loader)
    loader.close()
    return batches


def test_a_stated_number_may_be_bad_while_training(few, caplog):
    whole = two_epochs(TrainingSet(few, 4, None, (1.0, 0.9)), 0)
    with open(few.paths[5], "wb") as file:
        file.write(bytes(3000))
    runs = []
    for num_workers in (0, 2):
        dataset = TrainingSet(few, 4, None, (1.0, 0.9), max_bad_recordings=1)
        runs.append(two_epochs(dataset, num_workers))
        assert len(dataset.bad) == 1
    assert caplog.text.count("u5.flac") == 1  # the workers' own lines go to stderr
    assert "another is drawn in its place (1 of at most 1)" in caplog.text
    assert_equal(*runs)
    for batch, found in zip(whole, runs[0]):
        assert "u5" not in found.ids
        for row, name in enumerate(batch.ids):
            if name != "u5":
                assert (found.wavs[row] == batch.wavs[row]).all()
                assert found.labels[row] == batch.labels[row]
    with pytest.raises(InputError, match=r"u5\.flac"):
        two_epochs(TrainingSet(few, 4, None, (1.0, 0.9)), 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_too_many_ends_the_training(few, num_workers):
    for path in few.paths[:3]:
        os.unlink(path)
    dataset = TrainingSet(few, 4, None, (1.0, 0.9), max_bad_recordings=2)
    with pytest.raises(InputError, match=r"3 bad recordings, .* max_bad_recordings=2"):
        two_epochs(dataset, num_workers)
    with pytest.raises(InputError, match="max_bad_recordings: -1"):
        TrainingSet(few, 4, max_bad_recordings=-1)


def test_a_replacement_of_true_speed_only_is_not_perturbed(few):
    os.unlink(few.paths[0])
    # the speakers s1 keep their true speed
    few = replace(few, n_perturbed=1)
    dataset = TrainingSet(few, 0, None, (1.0, 0.5), max_bad_recordings=1)
    seen = set()
    for position in range(40):
        item = dataset[Draw(0, position, 1, 2000, 1)]
        row = int(item["id"][1:])
        speaker = int(few.labels[row])
        assert item["label"] == (1 if speaker == 0 else 2)
        windows = np.lib.stride_tricks.sliding_window_view(
            read_audio(few.paths[row]), 2000
        )
        plain = bool((windows == item["wav"].numpy()).all(axis=1).any())
        assert plain == (speaker == 1)
        seen.add(speaker)
    assert seen == {0, 1}


def test_other_errors_of_a_worker_are_not_hidden(manifest):
    def broken(wav, generator):
        raise ZeroDivisionError("a mistake of ours")

    dataset = TrainingSet(manifest, 0, broken, SPEEDS)
    with pytest.raises(ZeroDivisionError, match="a mistake of ours"):
        list(make_loader(dataset, sampler_of(manifest), 1))


def test_a_batch_moves_as_a_whole():
    batch = Batch(torch.zeros(2, 8), torch.tensor([1, 0]), ["a", "b"])
    moved = batch.to("meta")
    assert len(moved) == 2
    assert moved.wavs.device.type == moved.labels.device.type == "meta"
    assert moved.ids == ["a", "b"]


def test_length_batches_hold_every_row_within_the_budget():
    durations = np.random.default_rng(0).uniform(1, 20, 1000)
    durations[7] = 100.0
    batches = length_batches(durations, max_batch_seconds=60, max_batch_size=16)
    assert sorted(np.concatenate(batches)) == list(range(1000))
    assert batches[0].tolist() == [7]  # longer than the budget: alone, and first
    for batch in batches[1:]:
        assert len(batch) * durations[batch].max() <= 60
        assert len(batch) <= 16
    padded = sum(len(b) * durations[b].max() for b in batches)
    assert padded < 1.02 * durations.sum()
    # No batch could have taken the next recording too.
    for batch in batches[1:-1]:
        full = (len(batch) + 1) * durations[batch].max() > 60
        assert full or len(batch) == 16
    assert length_batches([], 60) == []
    with pytest.raises(InputError, match="batches of 0 s"):
        length_batches(durations, 0)


def test_real_speech(shared, augmenter):
    files = sorted((shared / "data" / "dev" / "wav").glob("id9000*/*/*.wav"))
    durations = [soundfile.info(str(file)).duration for file in files]
    names = [file.parts[-3] for file in files]
    paths = [str(file) for file in files]
    manifest = Manifest(paths, paths, durations, names)
    sampler = CropBatchSampler(manifest.labels, 8, (2, 3), n_speeds=3)
    dataset = TrainingSet(manifest, 0, augmenter, SPEEDS)
    for batch in make_loader(dataset, sampler):
        assert torch.isfinite(batch.wavs).all()
        assert (batch.wavs.std(dim=1) > 0).all()
        assert batch.labels.max() < dataset.n_classes


# ---- how long training waits ---------------------------------------------------------


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
    monkeypatch.setattr(dataset_module, "time", clock)
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
