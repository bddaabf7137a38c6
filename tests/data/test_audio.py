"""Durations from headers, and bad recordings."""

import numpy as np
import pytest
import soundfile

from speechbrain_ext.data.audio import read_durations, report_bad_files
from speechbrain_ext.utils.errors import InputError


def test_durations_and_every_kind_of_bad_file(tmp_path):
    def write(name, samples, rate=16000):
        soundfile.write(tmp_path / name, samples, rate)
        return str(tmp_path / name)

    paths = [
        write("a.wav", np.zeros(8000)),
        write("b.flac", np.zeros(24000)),
        write("rate.wav", np.zeros(800), 8000),
        write("stereo.wav", np.zeros((800, 2))),
        write("empty.wav", np.zeros(0)),
        str(tmp_path / "absent.wav"),
        str(tmp_path / "text.wav"),
        write("c.wav", np.zeros(1)),
    ]
    (tmp_path / "text.wav").write_text("no sound at all")
    seconds, bad = read_durations(paths, num_workers=3)
    expected = [0.5, 1.5, *[np.nan] * 5, 1 / 16000]
    np.testing.assert_array_equal(seconds, expected)
    assert [path for path, _ in bad] == paths[2:7]
    reasons = [reason for _, reason in bad]
    assert reasons[0] == "8000 Hz with 1 channel(s), expected 16000 Hz mono"
    assert reasons[1] == "16000 Hz with 2 channel(s), expected 16000 Hz mono"
    assert reasons[2] == "0 samples, expected sound"
    assert all("cannot be opened" in reason for reason in reasons[3:])


@pytest.mark.parametrize("missing", [200, 4000])
def test_a_truncated_wav_is_no_shorter_recording(tmp_path, missing):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.ones(4000, np.float32) / 2, 16000)
    content = path.read_bytes()
    assert read_durations([str(path)], 1)[0].tolist() == [0.25]
    path.write_bytes(content[:-missing])
    seconds, bad = read_durations([str(path)], 1)
    assert np.isnan(seconds).all()
    assert f"{len(content) - missing} bytes, its header says {len(content)}" in str(bad)


def test_a_wav_from_a_pipe_does_not_know_its_size(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.ones(4000, np.float32) / 2, 16000)
    content = bytearray(path.read_bytes())
    for unknown in (0xFFFFFFFF, 0x7FFFF024):
        content[4:8] = unknown.to_bytes(4, "little")
        path.write_bytes(content)
        assert read_durations([str(path)], 1)[0].tolist() == [0.25]


def test_bad_files_up_to_the_limit_are_listed(tmp_path):
    bad = [("/a.wav", "why not"), ("/b.wav", "because")]
    report_bad_files(bad, tmp_path, max_bad_files=2)
    listing = tmp_path / "bad_files.txt"
    assert listing.read_text() == "/a.wav\twhy not\n/b.wav\tbecause\n"
    report_bad_files([], tmp_path, max_bad_files=0)
    assert not listing.exists()


def test_too_many_bad_files(tmp_path):
    bad = [("/a.wav", "why not"), ("/b.wav", "because")]
    with pytest.raises(InputError, match=r"/a.wav: why not \(2 bad .*max_bad_files=1"):
        report_bad_files(bad, tmp_path, max_bad_files=1)
    assert (tmp_path / "bad_files.txt").read_text().count("\n") == 2


def test_bad_files_of_a_trial_list_are_never_left_out(tmp_path):
    bad = [("/a.wav", "why not"), ("/b.wav", "because")]
    with pytest.raises(InputError, match=r"/b.wav: because \(1 bad files of the trial"):
        report_bad_files(bad, tmp_path, 9, indispensable={"/b.wav", "/fine.wav"})
