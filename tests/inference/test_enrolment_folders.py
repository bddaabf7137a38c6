"""Folders of people: whose recordings they are, however names are written."""

import logging
import unicodedata

import pytest

from speechbrain_ext.inference.voices.enrolment import recordings_of_speakers
from speechbrain_ext.utils.errors import InputError


def make(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("x")
    return root


def test_speakers_are_the_first_folders(tmp_path, caplog):
    apart = unicodedata.normalize("NFD", "Zoë")
    root = make(
        tmp_path,
        *("Bo Li/1.wav", "Bo Li/day/1.wav", "Bo Li/day/2.mp3", "Bo Li/.hidden.wav"),
        *("Zoë/1.wav", f"{apart}/1.wav", "Zoë/2.ogg", "loose.wav", "Cy/notes.txt"),
        *("Bo Li/day/2.flac", ".trash/1.wav"),
    )
    with caplog.at_level(logging.WARNING, "speechbrain_ext"):
        found = recordings_of_speakers(root)
    names = {
        who: [path.removeprefix(f"{root}/") for path in paths]
        for who, paths in found.items()
    }
    assert names == {
        "Bo Li": ["Bo Li/1.wav", "Bo Li/day/1.wav", "Bo Li/day/2.flac"],
        "Zoë": [f"{apart}/1.wav", "Zoë/1.wav", "Zoë/2.ogg"],
    }
    assert "1 recordings beside the speakers' folders are left out" in caplog.text
    assert (
        f"{root}/Bo Li/day/2.flac is taken, not {root}/Bo Li/day/2.mp3" in caplog.text
    )


def test_no_folder_of_a_speaker(tmp_path):
    with pytest.raises(InputError, match="1 recordings and no folder of a speaker"):
        recordings_of_speakers(make(tmp_path, "1.wav", "Cy/notes.txt"))
    with pytest.raises(OSError, match="No such file"):
        recordings_of_speakers(tmp_path / "gone")
