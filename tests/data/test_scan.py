"""Which files count as recordings, and under which ID."""

import os
from pathlib import Path

import pytest

from speechbrain_ext.data.prepare.folders import Layout, check_outside, scan_corpus
from speechbrain_ext.utils.errors import InputError

LAYOUT = Layout(("wav", "flac", "aac", "m4a"), levels=2)


def touch(*paths):
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    "below", ["", "wav", "flac", "aac", "m4a", "WAV", "dev/wav", "vox1_dev_wav/wav"]
)
def test_every_layout(tmp_path, below):
    folder = tmp_path / "root" / below
    touch(folder / "id1/s/00001.wav", folder / "id2/s.x/00.2.flac")
    paths, folders, ignored = scan_corpus([tmp_path / "root"], LAYOUT)
    assert paths == {
        "id1/s/00001": str(folder / "id1/s/00001.wav"),
        "id2/s.x/00.2": str(folder / "id2/s.x/00.2.flac"),
    }
    assert ignored == 0
    assert folders == [folder]


def test_root_may_be_the_wav_folder_and_several_lie_below_one_root(tmp_path):
    touch(tmp_path / "dev/wav/id1/s/1.wav", tmp_path / "test/aac/id2/s/1.m4a")
    assert list(scan_corpus([tmp_path / "dev/wav"], LAYOUT)[0]) == ["id1/s/1"]
    assert list(scan_corpus([tmp_path], LAYOUT)[0]) == ["id1/s/1", "id2/s/1"]


def test_one_folder_level_for_corpora_without_sessions(tmp_path):
    touch(tmp_path / "data/id1/a.flac", tmp_path / "data/id1/s/b.flac")
    paths, _, ignored = scan_corpus([tmp_path], Layout(("data",), levels=1))
    assert list(paths) == ["id1/a"]
    assert ignored == 1


def test_what_is_no_recording_of_a_speaker_is_ignored_and_counted(tmp_path):
    touch(
        tmp_path / "wav/id1/s/1.wav",
        # Beside: three entries, whatever they hold.
        tmp_path / "musan/noise/a/1.wav",
        tmp_path / "RIRS_NOISES/pointsource_noises/1.wav",
        tmp_path / "README.md",
        # Within: five.
        tmp_path / "wav/LICENSE",
        tmp_path / "wav/id1/notes.wav",
        tmp_path / "wav/id1/s/._1.wav",
        tmp_path / "wav/id1/s/1.txt",
        tmp_path / "wav/id1/s/deep/2.wav",
    )
    paths, _, ignored = scan_corpus([tmp_path], LAYOUT)
    assert list(paths) == ["id1/s/1"]
    assert ignored == 8


def test_noise_beside_speakers_is_no_speaker(tmp_path):
    """Without a wav folder, RIRS_NOISES/pointsource_noises/x.wav looks like speech."""
    touch(
        tmp_path / "id1/s/1.wav",
        tmp_path / "RIRS_NOISES/pointsource_noises/x.wav",
        tmp_path / "musan/noise/x.wav",
        tmp_path / ".trash/s/1.wav",
    )
    paths, _, ignored = scan_corpus([tmp_path], LAYOUT)
    assert list(paths) == ["id1/s/1"]
    assert ignored == 3


@pytest.mark.parametrize("make", ["absent", "empty", "too flat"])
def test_root_without_recordings(tmp_path, make):
    root = tmp_path / "root"
    if make != "absent":
        root.mkdir()
    if make == "too flat":
        touch(root / "wav/id1/1.wav")
    with pytest.raises(InputError, match=r"root: no .*SPEAKER/SESSION/FILE") as error:
        scan_corpus([root], LAYOUT)
    assert "wav|flac|aac|m4a" in str(error.value)
    assert "*.m4a" in str(error.value)


def test_one_id_in_two_files_is_an_error_naming_both(tmp_path):
    first, second = tmp_path / "a/wav/id1/s/1.wav", tmp_path / "b/flac/id1/s/1.flac"
    touch(first, second)
    with pytest.raises(InputError) as error:
        scan_corpus([tmp_path / "a", tmp_path / "b"], LAYOUT)
    assert str(first) in str(error.value)
    assert str(second) in str(error.value)
    touch(first.with_suffix(".m4a"))
    with pytest.raises(InputError, match="same utterance ID"):
        scan_corpus([tmp_path / "a"], LAYOUT)


def test_one_file_reached_twice_counts_once(tmp_path):
    touch(tmp_path / "wav/id1/s/1.wav")
    (tmp_path / "links/id1/s").mkdir(parents=True)
    (tmp_path / "links/id1/s/1.wav").symlink_to(tmp_path / "wav/id1/s/1.wav")
    roots = [tmp_path / "wav", tmp_path / "wav", tmp_path / "links"]
    paths, *_ = scan_corpus([*roots, tmp_path], LAYOUT)
    assert paths == {"id1/s/1": str(tmp_path / "wav/id1/s/1.wav")}


def test_converted_copies_below_a_root_are_left_out(tmp_path):
    touch(tmp_path / "aac/id1/s/1.m4a", tmp_path / "flac/id1/s/1.flac")
    paths, *_ = scan_corpus([tmp_path], LAYOUT, leave_out=[tmp_path / "flac"])
    assert list(paths.values()) == [str(tmp_path / "aac/id1/s/1.m4a")]


@pytest.mark.parametrize("name", ["a b.wav", "a\nb.wav", "a\tb.wav", b"\xff.wav"])
def test_names_that_break_lists(tmp_path, name):
    touch(tmp_path / "wav/id1/s/1.wav")
    (tmp_path / "wav/id1/s" / os.fsdecode(name)).touch()
    with pytest.raises(InputError, match="white space or unprintable") as error:
        scan_corpus([tmp_path], LAYOUT)
    str(error.value).encode("utf-8")  # can be printed


def test_spaces_above_the_speakers_do_no_harm(tmp_path):
    touch(tmp_path / "my data/wav/id1/s/1.wav")
    assert len(scan_corpus([tmp_path / "my data"], LAYOUT)[0]) == 1


def test_order_and_result_do_not_depend_on_threads(tmp_path):
    names = [f"id{s}/v{v}/{u}" for s in range(40) for v in "ab" for u in range(3)]
    touch(*(tmp_path / "wav" / f"{name}.wav" for name in reversed(names)))
    scans = [scan_corpus([tmp_path], LAYOUT, num_workers=n)[0] for n in (1, 8)]
    assert list(scans[0]) == sorted(names)
    assert list(scans[0].items()) == list(scans[1].items())


def test_output_folders_stay_outside(tmp_path):
    audio = [tmp_path / "wav"]
    check_outside(tmp_path / "save", audio, "save_folder")
    check_outside(tmp_path, audio, "save_folder")
    check_outside(tmp_path / "wav2", audio, "save_folder")
    for folder in (tmp_path / "wav", tmp_path / "wav/id1/deep"):
        with pytest.raises(InputError, match=r"save_folder .* expected a folder out"):
            check_outside(folder, audio, "save_folder")
