"""Key and score files of the ASVspoof challenges, in and out."""

import numpy as np
import pytest

from speechbrain_ext.scoring.detection import (
    read_keys,
    read_scores,
    scores_of,
    write_keys,
    write_scores,
)
from speechbrain_ext.utils.errors import InputError

PROTOCOLS = {
    "5": "E_1607 E_0009538969 M C05 2 E_0009486171 AC1 A26 spoof -\n"
    "E_1607 E_0009538970 M - 0 - - bonafide bonafide -\n",
    "5, first phase": "T_4850 T_0000000000 F - A05 spoof\n"
    "T_4851 T_0000000001 F - bonafide bonafide\n",
    "2019 LA": "LA_0039 LA_E_2834763 - A11 spoof\nLA_0014 LA_E_8877452 - - bonafide\n",
    "2021 LA": "LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval\n"
    "LA_0009 LA_E_9332882 none - bonafide bonafide notrim progress\n",
    "2021 DF": "LA_0023 DF_E_2000011 nocodec asvspoof A14 spoof notrim progress "
    "traditional_vocoder - - - -\n"
    "TEF2 DF_E_2000013 low_m4a vcc2020 - bonafide notrim eval - - - - -\n",
}
SEEN = {
    "5": (["E_1607", "E_1607"], ["A26", "-"], ["C05", "-"]),
    "5, first phase": (["T_4850", "T_4851"], ["A05", "-"], ["-", "-"]),
    "2019 LA": (["LA_0039", "LA_0014"], ["A11", "-"], None),
    "2021 LA": (["LA_0009", "LA_0009"], ["A07", "-"], ["alaw", "-"]),
    "2021 DF": (["LA_0023", "TEF2"], ["A14", "-"], ["-", "low_m4a"]),
}


def written(tmp_path, text, name="file.tsv"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind", PROTOCOLS)
@pytest.mark.parametrize("separator", [" ", "\t", "  "])
def test_protocols_are_told_apart_by_their_columns(tmp_path, kind, separator):
    text = PROTOCOLS[kind].replace(" ", separator)
    keys = read_keys(written(tmp_path, text))
    speakers, attacks, codecs = SEEN[kind]
    assert keys.is_bonafide.tolist() == [False, True]
    assert keys.speakers.tolist() == speakers
    assert keys.attacks.tolist() == attacks
    assert (keys.codecs and keys.codecs.tolist()) == codecs
    assert keys.lines.tolist() == [1, 2]


def test_a_subset(tmp_path):
    path = written(tmp_path, PROTOCOLS["2021 LA"])
    assert read_keys(path, "progress").names == ["LA_E_9332882"]
    assert read_keys(path, "progress").lines.tolist() == [2]
    with pytest.raises(InputError, match=r"subset 'dev', expected one of eval, progr"):
        read_keys(path, "dev")
    # other editions have none
    assert len(read_keys(written(tmp_path, PROTOCOLS["5"]), "eval")) == 2


def test_keys_with_a_header(tmp_path):
    text = "filename\tcm-label\nE_1.flac\tspoof\nE_2\tbonafide\n"
    keys = read_keys(written(tmp_path, text))
    assert keys.names == ["E_1", "E_2"]
    assert keys.is_bonafide.tolist() == [False, True]
    assert (keys.speakers, keys.attacks, keys.codecs) == (None, None, None)
    text = (
        "codec trial_anon cm-label other attack_anon tar_spk_anon\n"
        "C01 E_1 spoof x A17 s\n- E_2 bonafide y bonafide r\n"
    )
    keys = read_keys(written(tmp_path, text))
    assert keys.names == ["E_1", "E_2"]
    assert keys.attacks.tolist() == ["A17", "-"]
    assert keys.codecs.tolist() == ["C01", "-"]
    assert keys.speakers.tolist() == ["s", "r"]


def test_keys_come_back(tmp_path):
    keys = read_keys(written(tmp_path, PROTOCOLS["5"]))
    write_keys(tmp_path / "keys.tsv", keys)
    assert (tmp_path / "keys.tsv").read_text() == (
        "filename\tcm-label\nE_0009538969\tspoof\nE_0009538970\tbonafide\n"
    )
    again = read_keys(tmp_path / "keys.tsv")
    assert again.names == keys.names
    assert again.is_bonafide.tolist() == keys.is_bonafide.tolist()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_scores_come_back(tmp_path, dtype):
    """More of them than are written at a time."""
    scores = np.random.default_rng(0).normal(0, 1e3, 9001).astype(dtype)
    names = [f"E_{n:010d}" for n in range(9001)]
    write_scores(tmp_path / "scores.tsv", names, scores)
    first = (tmp_path / "scores.tsv").read_text().splitlines()[:2]
    assert first[0] == "filename\tcm-score"
    assert first[1].startswith("E_0000000000\t")
    again, values = read_scores(tmp_path / "scores.tsv")
    assert again == names
    assert (values.astype(dtype) == scores).all()


def test_scores_of_2019_and_2021(tmp_path):
    text = "LA_E_2834763 A11 spoof -3.25\nLA_E_8877452 - bonafide 1e-2\n"
    names, scores = read_scores(written(tmp_path, text))
    assert names == ["LA_E_2834763", "LA_E_8877452"]
    assert scores.tolist() == [-3.25, 0.01]
    names, scores = read_scores(written(tmp_path, "DF_E_1.flac 3\nDF_E_2 -4.5\n"))
    assert names == ["DF_E_1", "DF_E_2"]
    assert scores.tolist() == [3, -4.5]


def test_scores_are_put_into_the_order_of_the_keys(tmp_path):
    keys = read_keys(written(tmp_path, PROTOCOLS["5"]))
    assert scores_of(keys, keys.names[::-1], [1.0, 2.0]).tolist() == [2.0, 1.0]
    assert scores_of(keys, keys.names, [1, 2]).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("names", "scores", "expected"),
    [
        (
            ["E_0009538969"],
            [1],
            r"s.tsv: no score of E_0009538970 \(1 of 2 are missing",
        ),
        (
            ["E_0009538970", "E_0009538969", "x", "y"],
            [1, 2, 3, 4],
            r"s.tsv: x is not in .*file.tsv \(2 such\), expected scores of its",
        ),
        (
            ["E_0009538970", "E_0009538969", "E_0009538970"],
            [1, 2, 3],
            r"s.tsv: E_0009538970 has two scores, expected one",
        ),
        (
            ["E_0009538970", "E_0009538969"],
            [1, np.nan],
            r"s.tsv: score nan of E_0009538969 \(1 such\), expected finite numbers",
        ),
        (
            ["E_0009538970", "E_0009538969"],
            [1],
            r"s.tsv: scores of type .* shape \[1\]",
        ),
    ],
)
def test_scores_that_do_not_fit_the_keys(tmp_path, names, scores, expected):
    keys = read_keys(written(tmp_path, PROTOCOLS["5"]))
    with pytest.raises(InputError, match=expected):
        scores_of(keys, names, np.array(scores, dtype=float), "s.tsv")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("filename\tcm-score\na\t1\nb\tnan\n", r"line 3: score 'nan', expected a fini"),
        (
            "filename\tcm-score\na\t1\nb\n",
            r"line 3: 1 columns, expected 2: 'FILE SCORE",
        ),
        (
            "filename\tcm-score\na\t1\nb\t2\na\t3\n",
            r"line 4: 'a' again, .* line 2; 1 su",
        ),
        ("filename\tcm-score\n", r"empty but for line 1, expected lines 'FILE SCORE'"),
        ("filename\tscore\na\t1\n", r"line 1: 'filename score', expected 'filename cm"),
        ("a b 3\n", r"line 1: 'a b 3', expected 'filename cm-score', or 'FILE SCORE'"),
        ("a x\n", r"line 1: score 'x', expected a finite number"),
        ("", r"empty, expected lines"),
    ],
)
def test_damaged_score_files(tmp_path, text, expected):
    with pytest.raises(InputError, match=expected):
        read_scores(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "filename\tcm-label\na\tgenuine\n",
            r"line 2: key 'genuine', expected bonafid",
        ),
        (
            "filename\tlabel\na\tspoof\n",
            r"line 1: no column 'cm-label' in 'filename lab",
        ),
        (
            "filename\tcm-label\na\tspoof\na\tspoof\n",
            r"line 3: 'a' again, expected each",
        ),
        (
            "filename cm-label cm-label\na spoof bonafide\n",
            r"line 1: columns 'cm-label' and 'cm-label', expected one of them",
        ),
        ("a b c\n", r"line 1: 3 columns, expected 5, 6, 8, 10, 13 as the protocols"),
        (
            "s a.wav - - bonafide\ns a - A1 spoof\n",
            r"line 2: 'a' again, .*also in line 1",
        ),
    ],
)
def test_damaged_key_files(tmp_path, text, expected):
    with pytest.raises(InputError, match=expected):
        read_keys(written(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(
        InputError, match=r"none.tsv: No such file .*expected a file of"
    ):
        read_keys(tmp_path / "none.tsv")
    with pytest.raises(InputError, match=r"none.tsv: No such file"):
        read_scores(tmp_path / "none.tsv")


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1.0, np.inf], r"score inf of b \(1 such\), expected finite numbers"),
        ([1.0], r"shape \[1\], expected real numbers \[2\]"),
        (["a", "b"], r"scores of type <U1"),
    ],
)
def test_scores_that_are_not_written(tmp_path, scores, expected):
    with pytest.raises(InputError, match=expected):
        write_scores(tmp_path / "s.tsv", ["a", "b"], np.array(scores))
    assert not (tmp_path / "s.tsv").exists()


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_files_of_other_systems(tmp_path, kind):
    """CRLF, a byte-order mark, blanks behind the lines, empty ones behind the last."""
    text = PROTOCOLS[kind].replace("\n", " \r\n")
    path = tmp_path / "file.txt"
    path.write_bytes(b"\xef\xbb\xbf" + f"{text}\r\n \r\n".encode())
    plain = read_keys(written(tmp_path, PROTOCOLS[kind]))
    keys = read_keys(path)
    assert keys.names == plain.names
    assert keys.is_bonafide.tolist() == plain.is_bonafide.tolist()
    assert keys.attacks.tolist() == plain.attacks.tolist()
    with_header = "filename\tcm-score\r\na\t1\r\nb\t-2.5\r\n\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + with_header.encode())
    names, scores = read_scores(path)
    assert names == ["a", "b"]
    assert scores.tolist() == [1, -2.5]


def swapped(text, one, other):
    """A protocol with two columns, counted from 0, in each other's place."""
    lines = [line.split() for line in text.splitlines()]
    for words in lines:
        words[one], words[other] = words[other], words[one]
    return "".join(" ".join(words) + "\n" for words in lines)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ((0, 1), r"line 3: 'E_1607' again, expected each recording once"),
        ((1, 2), r"line 2: 'M' again, expected each recording once"),
        ((1, 5), r"line 3: '-' again"),
        ((7, 8), r"line 1: key 'A26', expected bonafide or spoof"),
        ((3, 7), r"line 3: bonafide with the attack 'C05' of spoofs \(1 such lines\)"),
        ((2, 7), r"line 2: bonafide with the attack 'M' of spoofs \(1 such lines\)"),
        ((0, 7), r"line 3: bonafide with the attack 'E_1607' of spoofs"),
    ],
)
def test_columns_in_another_order(tmp_path, columns, expected):
    text = (
        "E_1607 E_0009538969 M C05 2 E_0009486171 AC1 A26 spoof -\n"
        "E_1608 E_0009538970 M - 0 - - bonafide bonafide -\n"
        "E_1607 E_0009538971 F C05 2 - - bonafide bonafide -\n"
    )
    read_keys(written(tmp_path, text))
    with pytest.raises(InputError, match=expected):
        read_keys(written(tmp_path, swapped(text, *columns)))


def test_bona_fide_speech_may_have_an_attack_of_its_own(tmp_path):
    """As SpoofCeleb's a00."""
    text = "s a - a00 bonafide\nr b - a07 spoof\n"
    assert read_keys(written(tmp_path, text)).attacks.tolist() == ["a00", "a07"]
