"""An extraction that goes on from what an earlier one has left on the disk."""

import os
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from tiny_extraction import (
    OPTIONS,
    SECONDS,
    N,
    assert_whole,
    at_batch,
    begin,
    go_on,
    make_model,
    manifest,
    one_by_one,
    parts_of,
    path,
    recording,
    unbroken,
)
from tiny_training import start

from speechbrain_ext.inference.extraction import embed_to_file, extract_embeddings
from speechbrain_ext.inference.partial_results import PartialResults
from speechbrain_ext.scoring.embeddings import save_embeddings
from speechbrain_ext.utils.errors import InputError, command_line

__all__ = ["manifest", "path", "unbroken"]  # fixtures

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level("INFO", "speechbrain_ext")


# ---- going on ------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_in_one_go(manifest, path, unbroken, suffix, caplog):
    path = path.with_suffix(f".{suffix}")
    vectors, embedded = go_on(manifest, path)
    assert embedded == N
    assert caplog.messages == []
    np.testing.assert_array_equal(vectors, unbroken)
    assert_whole(path, manifest, unbroken)


def test_only_the_rest_is_embedded_and_all_is_as_if_unbroken(
    manifest, path, unbroken, caplog
):
    assert len(begin(manifest, path, 4)) == 4
    assert not path.exists()
    vectors, embedded = go_on(manifest, path)
    assert embedded == N - 4
    (message,) = caplog.messages
    assert message.endswith("4 of 10 recordings were embedded before, 6 remain")
    np.testing.assert_array_equal(vectors, unbroken)
    assert_whole(path, manifest, unbroken)


def test_stopped_many_times(manifest, path, unbroken):
    for times in range(1, 4):
        assert len(begin(manifest, path, 2)) == 2 * times
    vectors, embedded = go_on(manifest, path)
    assert embedded == N - 6
    np.testing.assert_array_equal(vectors, unbroken)


def test_an_error_saves_what_the_clock_has_not(manifest, path):
    assert len(begin(manifest, path, 4, save_every=1e9)) == 1
    assert go_on(manifest, path)[1] == N - 4


@pytest.mark.parametrize(("first", "then", "done"), [(0.5, 1.0, 8), (4.0, 0.1, 4)])
def test_batches_of_another_size_go_on(manifest, path, unbroken, first, then, done):
    """As after a batch too large for the memory."""
    batches = {0.5: 8, 4.0: 2}[first]  # 2.0 1.7 | 1.4 1.1
    begin(manifest, path, batches, max_batch_seconds=first)
    vectors, embedded = go_on(manifest, path, max_batch_seconds=then)
    assert embedded == N - done
    np.testing.assert_allclose(vectors, unbroken, atol=1e-5 * np.abs(unbroken).max())


def test_the_bar_begins_where_the_last_one_ended(manifest, path, capsys):
    begin(manifest, path, 4)
    go_on(manifest, path, progress=True)
    shown = re.findall(r"(\d+)/(\d+) s of audio", capsys.readouterr().err)
    done, total = sum(sorted(SECONDS)[-4:]), sum(SECONDS)
    assert shown[0] == (f"{done:.0f}", f"{total:.0f}")


def test_the_names_of_recordings_may_have_brackets(manifest, tmp_path, unbroken):
    path = tmp_path / "a [b]" / "e[1].npz"
    begin(manifest, path, 4)
    assert go_on(manifest, path)[1] == N - 4
    assert_whole(path, manifest, unbroken)


# ---- the finished file ---------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_finished_file_is_taken_as_it_is(manifest, path, unbroken, suffix, caplog):
    path = path.with_suffix(f".{suffix}")
    go_on(manifest, path)
    before = path.stat().st_mtime_ns
    vectors, embedded = go_on(manifest, path, max_batch_seconds=9.0)
    assert embedded == 0
    assert "was finished by another run" in caplog.text
    np.testing.assert_array_equal(vectors, unbroken)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_recording_replaced_by_another_of_its_size(
    manifest, path, unbroken, finished
):
    if finished:
        go_on(manifest, path)
    else:
        begin(manifest, path, 4)
    wav, _ = soundfile.read(manifest.paths[3])
    soundfile.write(manifest.paths[3], wav[::-1], 16000, subtype="FLOAT")
    os.utime(manifest.paths[3], ns=(0, 1))
    vectors, embedded = go_on(manifest, path)
    assert embedded == N if finished else embedded < N
    same = (vectors == unbroken).all(axis=1)
    assert same.tolist() == [row != 3 for row in range(N)]
    assert go_on(manifest, path)[1] == 0


def test_parts_left_by_a_run_killed_at_its_very_end_go(manifest, path, unbroken):
    begin(manifest, path, 4)
    folder = parts_of(path)[0].parent
    shutil.copytree(folder, path.parent / "kept")
    go_on(manifest, path)
    os.rename(path.parent / "kept", folder)
    old = path.parent / f".{folder.name}.0123.old"  # renamed, not yet deleted
    old.mkdir()
    assert go_on(manifest, path)[1] == 0
    assert_whole(path, manifest, unbroken)


@pytest.mark.parametrize("kind", ["truncated", "empty", "unsigned", "cut", "weights"])
def test_any_other_file_is_replaced(manifest, path, kind, caplog):
    go_on(manifest, path, max_seconds=0.5 if kind == "cut" else None)
    model = make_model()
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "unsigned":
        save_embeddings(path, manifest.ids, np.ones((N, 8), np.float32))
    elif kind == "weights":
        with torch.no_grad():
            model.head.bottleneck.bias[3] += 1
    expected = extract_embeddings(model, manifest, **OPTIONS)
    caplog.clear()
    vectors, embedded = go_on(manifest, path, model)
    assert embedded == N
    assert "is made anew" in caplog.text
    np.testing.assert_array_equal(vectors, expected)
    assert_whole(path, manifest, expected)


# ---- parts that are not taken --------------------------------------------------------


def spoil(part, kind):
    whole = part.read_bytes()
    if kind == "swapped bytes":  # of the vectors, last but the fingerprint
        with np.load(part) as arrays:
            bytes_ = arrays["vectors"].tobytes()
        assert whole.count(bytes_) == 1
        part.write_bytes(whole.replace(bytes_, bytes_[::-1]))
    elif kind == "foreign":
        np.savez(part, rows=np.arange(2), vectors=np.ones((2, 3), np.float32))
    elif kind == "two fingerprints":
        np.savez(part, fingerprint=["a", "b"], rows=np.arange(2), vectors=np.ones(2))
    elif kind == "of another run":
        one = np.ones((1, 8), np.float32)
        np.savez(part, fingerprint=["0" * 64], rows=np.arange(1), vectors=one)
    elif kind == "text":
        part.write_text("hello")
    else:
        part.write_bytes(whole[:kind])


@pytest.mark.parametrize(
    "kind",
    [
        *("swapped bytes", "foreign", "two fingerprints", "of another run", "text"),
        *(0, 1, 100, -1, -300),
    ],
)
def test_a_damaged_part_is_made_again(manifest, path, unbroken, kind, caplog):
    parts = begin(manifest, path, 4)
    spoil(parts[1], kind)
    caplog.clear()
    vectors, embedded = go_on(manifest, path)
    assert embedded == N - 3
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert str(parts[1]) in warnings[0]
    assert "left aside" in warnings[0]
    assert "3 of 10 recordings were embedded before, 7 remain" in caplog.text
    np.testing.assert_array_equal(vectors, unbroken)
    assert_whole(path, manifest, unbroken)


def test_no_wrong_byte_is_fatal(manifest, path, caplog):
    caplog.set_level("ERROR", "speechbrain_ext")  # a thousand warnings take seconds
    vectors = np.ones((N, 8), np.float32)
    parts = PartialResults(path, "0" * 64, manifest.ids)
    parts.add(np.arange(N), vectors)
    parts.save()
    (part,) = parts_of(path)
    whole = part.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        part.write_bytes(damaged)
        parts = PartialResults(path, "0" * 64, manifest.ids)
        assert parts.done.all() or not parts.done.any()
        if parts.done.all():  # a date, say, is of no importance
            assert np.array_equal(parts.collect(), vectors)


def test_half_a_part_from_a_killed_process_is_no_part(manifest, path, unbroken, caplog):
    parts = begin(manifest, path, 4)
    parts[0].rename(parts[0].with_name(f".{parts[0].name}.0123abcd.tmp"))
    assert go_on(manifest, path)[1] == N - 3
    assert "left aside" not in caplog.text
    assert_whole(path, manifest, unbroken)


def test_parts_of_another_run_are_left_aside(manifest, path, unbroken, caplog):
    cut = begin(manifest, path, 2, max_seconds=0.5)  # two recordings a batch
    assert len(begin(manifest, path, 4)) == 2 + 4
    caplog.clear()
    vectors, embedded = go_on(manifest, path)
    assert embedded == N - 4
    np.testing.assert_array_equal(vectors, unbroken)
    assert "of another model, setting or list: left aside" in caplog.text
    assert parts_of(path) == cut
    # they are still good for what they were made for
    assert go_on(manifest, path, max_seconds=0.5)[1] == N - 4
    assert os.listdir(path.parent) == [path.name]


# ---- what goes wrong -----------------------------------------------------------------


def test_a_bad_recording_is_named_and_keeps_the_parts(manifest, path, unbroken):
    bad = recording(manifest, 5)
    whole = bad.read_bytes()
    bad.write_bytes(b"")
    with pytest.raises(InputError, match=re.escape(str(bad))) as caught:
        go_on(manifest, path, save_every=1e9)
    assert "\n" not in str(caught.value)
    bad.write_bytes(whole)
    assert go_on(manifest, path)[1] == N - 5
    assert_whole(path, manifest, unbroken)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("e.txt", {}, r"e\.txt: suffix '.txt', expected one of .npz"),
        ("e.npz", {"ids": [*"abcdefghi", "j k"]}, "ID 'j k' .*no white space"),
        ("e.npz", {"ids": [*"abcdefghi", "a"]}, "ID 'a' in rows 0 and 9"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(
    manifest, tmp_path, name, change, message
):
    columns = {n: getattr(manifest, n) for n in ("paths", "durations", "speakers")}
    listed = type(manifest)(**{"ids": manifest.ids, **columns, **change})
    model = at_batch(0, lambda: pytest.fail("embedded all the same"))
    with pytest.raises(InputError, match=message):
        embed_to_file(model, listed, tmp_path / "out" / name, **OPTIONS)
    assert not (tmp_path / "out").exists()


def fill_the_disk():
    """No file can have more than 700 bytes from now on: a part has more, stderr not."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))


def _meet_a_full_disk(manifest, path, batches):
    model = at_batch(batches, fill_the_disk)
    command_line(embed_to_file)(model, manifest, path, save_every=0, **OPTIONS)


def _finish_on_a_full_disk(manifest, path, _):
    def main():
        parts = PartialResults(path, "0" * 64, manifest.ids)
        parts.add(np.arange(N), np.ones((N, 8), np.float32))
        parts.save()
        fill_the_disk()
        parts.finish(parts.collect())

    command_line(main)()


@pytest.mark.parametrize(
    ("function", "batches", "file"),
    [
        (_meet_a_full_disk, 3, r"embeddings\.npz\.parts-\w{16}/\w{32}\.npz"),
        (_finish_on_a_full_disk, 1, r"embeddings\.npz"),
    ],
)
def test_a_full_disk_is_one_line_and_parts_stay(
    manifest, path, tmp_path, function, batches, file
):
    process = start(function, manifest, path, batches, stderr=tmp_path / "err")
    process.join(100)
    assert process.exitcode == 1
    folder = re.escape(str(path.parent))
    expected = rf"error: {folder}/{file}: File too large \(parts in {folder}/.*\)\n"
    assert re.fullmatch(expected, (tmp_path / "err").read_text())
    assert len(parts_of(path)) == batches
    left = [name for _, _, names in os.walk(path.parent) for name in names]
    assert len(left) == batches


def test_after_a_full_disk_it_goes_on(manifest, path, unbroken):
    process = start(_meet_a_full_disk, manifest, path, 3)
    process.join(100)
    assert process.exitcode == 1
    assert go_on(manifest, path)[1] == N - 3
    assert_whole(path, manifest, unbroken)


def test_all_but_the_last_file_is_there(manifest, path, unbroken):
    path.mkdir(parents=True)  # in the way of the file
    with pytest.raises(InputError, match=r"embeddings\.npz: Is a directory \(parts in"):
        go_on(manifest, path)
    path.rmdir()
    assert go_on(manifest, path)[1] == 0
    assert_whole(path, manifest, unbroken)


def test_parts_that_vanish_are_missed(manifest, path):
    parts = PartialResults(path, "0" * 64, manifest.ids)
    for row in range(N):
        parts.add(np.array([row]), np.ones((1, 8), np.float32))
        parts.save()
    with np.load(parts_of(path)[4]) as arrays:
        name = manifest.ids[arrays["rows"][0]]
    parts_of(path)[4].unlink()
    with pytest.raises(
        InputError, match=f"1 of 10 recordings are not .* first {name};"
    ):
        parts.collect()


def test_another_process_finishes_while_a_part_is_written(
    manifest, path, unbroken, monkeypatch
):
    real, calls = os.fsync, iter(range(1000))

    def fsync(descriptor):
        real(descriptor)
        if next(calls) == 2:  # what is being written has not got its name yet
            monkeypatch.setattr(os, "fsync", real)
            assert go_on(manifest, path)[1] == N - 2

    monkeypatch.setattr(os, "fsync", fsync)
    vectors, embedded = go_on(manifest, path, save_every=0)
    assert embedded == N
    np.testing.assert_array_equal(vectors, unbroken)
    assert_whole(path, manifest, unbroken)


def test_a_folder_taken_away_by_somebody_else_is_said(
    manifest, path, unbroken, monkeypatch
):
    real = os.fsync

    def fsync(descriptor):
        real(descriptor)
        monkeypatch.setattr(os, "fsync", real)
        (folder,) = path.parent.glob("*.parts-*")
        shutil.rmtree(folder)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(
        InputError, match=r"\.npz: No such file or directory \(parts in"
    ):
        go_on(manifest, path, save_every=0)
    assert go_on(manifest, path)[1] == N - 1
    assert_whole(path, manifest, unbroken)


def test_single_recordings_give_the_same(manifest, path):
    begin(manifest, path, 4)
    expected = one_by_one(make_model(), manifest)
    found, _ = go_on(manifest, path)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
