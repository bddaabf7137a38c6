"""A user's own CSV file: what is read from it, and every bad row named by its line."""

import logging

import pytest

from speechbrain_ext.data.corpora.csv_file import read_listing
from speechbrain_ext.data.prepare.pipeline import Row
from speechbrain_ext.utils.errors import InputError

HEADER = "ID,duration,wav,spk_id\n"


def write(folder, text):
    path = folder / "mine.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_rows_are_as_they_stand(tmp_path):
    path = write(
        tmp_path,
        HEADER
        + "a/1,1.5,x/a 1.wav,zoë b\n\nc,, /abs/c.flac , bo \n"
        + '"d",2,"d,.wav",s',
    )
    a, c, d = read_listing(path)
    wav = f"{tmp_path}/x/a 1.wav"
    place = f"{path}, line 2"
    assert a == Row("a/1", wav, "zoë b", "a", seconds=1.5, place=place)
    assert c == Row("c", "/abs/c.flac", "bo", "c", place=f"{path}, line 4")
    assert d.path == f"{tmp_path}/d,.wav"
    assert read_listing(path, "/data")[0].path == "/data/x/a 1.wav"
    assert read_listing(path, "/data")[1].path == "/abs/c.flac"


def test_columns_in_any_order_and_others(tmp_path, caplog):
    text = (
        b"\xef\xbb\xbfspk_id, wav ,sex,session,ID,age\r\ns,w.wav,f,monday,a.WAV,7\r\n"
    )
    path = write(tmp_path, text + b"s,v.wav,m,,b/c.x,8\r\n")
    with caplog.at_level(logging.INFO):
        first, second = read_listing(path)
    assert first[:4] == ("a", f"{tmp_path}/w.wav", "s", "monday")
    assert second[:4] == ("b/c.x", f"{tmp_path}/v.wav", "s", "b")
    assert f"{path}: columns that are not read: sex, age" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ", line 1: no column 'ID' in '', expected 'ID,duration,wav,spk_id'"),
        ("ID,wav,speaker\n", ", line 1: no column 'spk_id' in 'ID,wav,speaker', exp"),
        ("ID;wav;spk_id\n", ", line 1: no column 'ID' in 'ID;wav;spk_id', expected"),
        ("ID,wav,spk_id,wav\n", ", line 1: 'wav' twice in 'ID,wav,spk_id,wav', exp"),
        ("ID,wav,start,stop,spk_id\n", ", line 1: column 'start', expected whole"),
        (HEADER, ": no rows below the header"),
        (HEADER + "a,1,w,s\nb,1,v\n", ", line 3: 3 fields, expected 4: ID,duration,"),
        (HEADER + "a,1,w,s\nb,1,v,s,t\n", ", line 3: 5 fields, expected 4"),
        (HEADER + "a,1,w, \n", ", line 2: empty spk_id, expected text"),
        (HEADER + "a,1,,s\n", ", line 2: empty wav, expected text"),
        (HEADER + ",1,w,s\n", ", line 2: empty ID, expected text"),
        (HEADER + "a,long,w,s\n", ", line 2: duration 'long', expected seconds, or"),
        (HEADER + "a,0,w,s\n", ", line 2: duration '0', expected seconds"),
        (HEADER + "a,-1,w,s\n", ", line 2: duration '-1', expected seconds"),
        (HEADER + "a,nan,w,s\n", ", line 2: duration 'nan', expected seconds"),
        (HEADER + "a,inf,w,s\n", ", line 2: duration 'inf', expected seconds"),
        (HEADER + "a b,1,w,s\n", ", line 2: white space in ID 'a b', expected none"),
        (HEADER + "a\x07,1,w,s\n", ", line 2: white space in ID 'a\\x07', expected"),
        (HEADER + "a,1,v|w,s\n", ", line 2: wav 'v|w', expected one file"),
        (HEADER + "a,1,x.tar!w@0+1,s\n", ", line 2: wav 'x.tar!w@0+1', expected one"),
        (
            HEADER + "a,1,w,s\nb,1,v,s\n\na.wav,1,x,t\n",
            ", line 5: ID 'a' again, expected each once (also in line 2)",
        ),
        (HEADER + 'a,1,"w,s\n', ": not valid CSV"),
        (HEADER.encode() + b"a,1,\xff\xfe,s\n", " is not UTF-8 text"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, text, expected):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_listing(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert expected in message
    assert "\n" not in message


def test_one_recording_under_two_names(tmp_path):
    path = write(tmp_path, HEADER + f"a,1,w.wav,s\nb,1,{tmp_path}/w.wav,t\n")
    with pytest.raises(InputError, match=r"line 3: wav '.*w.wav' again, .*\(also in"):
        read_listing(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"mine\.csv: No such file .*expected a CSV"):
        read_listing(tmp_path / "mine.csv")
