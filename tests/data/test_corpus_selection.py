"""Lists of recordings to train on."""

import pytest

from speechbrain_ext.data.prepare.selection import read_speaker_lists
from speechbrain_ext.utils.errors import InputError

KNOWN = {"id1/s/1": "id1", "id1/s/2": "id1", "id2/s/1": "id2"}


def test_union_of_lists_whatever_the_extension(tmp_path):
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("id1 id1/s/1.wav\n\nid2 id2/s/1.m4a\n")
    second.write_text("id1 id1/s/1\n")
    listed = read_speaker_lists([first, second], KNOWN, "/data")
    assert listed == {"id1/s/1", "id2/s/1"}


def test_a_speaker_alone_stands_for_all_of_theirs(tmp_path):
    path = tmp_path / "dev.lst"
    path.write_text("id1\n\nid2 id2/s/1.wav\n")
    known = KNOWN | {"id2/s/2": "id2"}
    assert read_speaker_lists([path], known, "/data") == set(KNOWN)


def test_a_speaker_of_two_lists_is_refused(tmp_path):
    """Two corpora with one name for two people."""
    first, second = tmp_path / "dev.lst", tmp_path / "spk.lst"
    first.write_text("id2\nid1\n")
    second.write_text("id1\n")
    message = rf"spk.lst: line 1: speaker 'id1' again, .* \(listed in {first}: line 2\)"
    with pytest.raises(InputError, match=message):
        read_speaker_lists([first, second], KNOWN, "/data")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("id3", "speaker 'id3' has no recording, expected some below /data"),
        ("id1 id1/s/1.wav 3", "3 columns, expected 2: 'speaker path', or 1: 'speaker'"),
        ("id1 id2/s/1.wav", "speaker 'id1' with path 'id2/s/1.wav'"),
        ("id1 id1/s/9.wav", "utterance 'id1/s/9' not found, expected it below /data"),
    ],
)
def test_bad_lines_name_file_and_line(tmp_path, line, message):
    path = tmp_path / "list.txt"
    path.write_text(f"id1 id1/s/1.wav\n{line}\n")
    with pytest.raises(InputError) as error:
        read_speaker_lists([path], KNOWN, "/data")
    assert str(error.value).startswith(f"{path}: line 2: ")
    assert message in str(error.value)


def test_unreadable_lists(tmp_path):
    with pytest.raises(InputError, match=r"absent: No such file"):
        read_speaker_lists([tmp_path / "absent"], KNOWN, "/data")
    (tmp_path / "latin").write_bytes(b"id1 \xff\n")
    with pytest.raises(InputError, match="latin: byte 4: expected UTF-8"):
        read_speaker_lists([tmp_path / "latin"], KNOWN, "/data")
