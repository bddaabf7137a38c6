"""ASVspoof as users have it on their disks → manifests of what is genuine."""

import logging
import os
import shutil
import time

import numpy as np
import pytest
import soundfile

from speechbrain_ext.data.corpora.asvspoof import keys_of, manifest_of, prepare_asvspoof
from speechbrain_ext.data.manifest import read_manifest, write_manifest
from speechbrain_ext.scoring.detection import read_protocol
from speechbrain_ext.utils.errors import InputError

NAMES = {
    "train": "ASVspoof5.train.tsv",
    "dev": "ASVspoof5.dev.track_1.tsv",
    "eval": "ASVspoof5.eval.track_1.tsv",
}
FOLDERS = {"train": "flac_T", "dev": "flac_D", "eval": "flac_E_eval"}
SIZES = {"train": 182_357, "dev": 140_950, "eval": 680_774}
BONAFIDE = {"train": 18_797, "dev": 31_334, "eval": 138_688}


def line_of(split, number, spoof, attack="A01", codec="-"):
    """One line of a protocol of ASVspoof 5, ten columns."""
    letter = split[0].upper()
    what = f"AC1 {attack} spoof" if spoof else "- bonafide bonafide"
    seed = f"{letter}_{number // 4:010d}" if codec != "-" else "-"
    quality = "2" if codec != "-" else "-"
    return (
        f"{letter}_{number % 7:04d} {letter}_{number:010d} F {codec} {quality} {seed} "
        f"{what} -\n"
    )


def write_sound(path, samples=1600):
    path.parent.mkdir(parents=True, exist_ok=True)
    wav = np.random.default_rng(samples).uniform(-0.1, 0.1, samples)
    soundfile.write(path, wav, 16000)


@pytest.fixture
def corpus(tmp_path):
    """ASVspoof 5 with six recordings of each split, a tenth of a second and more."""
    root = tmp_path / "asvspoof5"
    for split, name in NAMES.items():
        codecs = ("-", "C05", "C01") if split == "eval" else ("-",)
        lines = [
            line_of(split, n, n % 3 > 0, f"A{n:02d}", codecs[n % len(codecs)])
            for n in range(6)
        ]
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("".join(lines))
        for n in range(6):
            sound = f"{split[0].upper()}_{n:010d}.flac"
            write_sound(root / FOLDERS[split] / sound, 1600 + n)
    return root


def test_every_split_becomes_a_manifest(corpus, tmp_path):
    done = prepare_asvspoof(corpus, tmp_path / "out")
    assert [path.name for path in done[:3]] == ["train.csv", "dev.csv", "eval.csv"]
    lines = done.eval.read_text().splitlines()
    assert lines[0] == "ID,duration,wav,spk_id,key,attack,codec"
    wav = corpus / "flac_E_eval/E_0000000001.flac"
    assert lines[2] == f"E_0000000001,0.1000625,{wav},E_0001,spoof,A01,C05"
    wav = corpus / "flac_E_eval/E_0000000003.flac"
    assert lines[4] == f"E_0000000003,0.1001875,{wav},E_0003,bonafide,-,-"
    seen = done.counts["eval"]
    assert (seen["bonafide"], seen["spoof"], seen["speakers"]) == (2, 4, 6)
    assert seen["codecs"] == {"-": 2, "C01": 2, "C05": 2}
    assert seen["attacks"] == {"-": 2, "A01": 1, "A02": 1, "A04": 1, "A05": 1}


def test_keys_of_a_manifest_are_those_of_its_protocol(corpus, tmp_path):
    path = prepare_asvspoof(corpus, tmp_path / "out").eval
    keys = keys_of(path, read_manifest(path))
    listed = read_protocol(corpus / NAMES["eval"])
    assert keys.names == listed.names
    assert (keys.is_bonafide == listed.is_bonafide).all()
    for name in ("speakers", "attacks", "codecs"):
        assert getattr(keys, name).tolist() == getattr(listed, name).tolist()


def test_a_manifest_of_another_task_has_no_keys(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("ID,duration,wav,spk_id\na,1.0,a.wav,s\n")
    with pytest.raises(InputError, match=r"train.csv: no column 'key', expected ID"):
        keys_of(path, read_manifest(path))


def test_a_second_run_has_nothing_to_do(corpus, tmp_path):
    first = prepare_asvspoof(corpus, tmp_path / "out")
    again = prepare_asvspoof(corpus, tmp_path / "out", num_workers=2)
    assert not first.skipped
    assert again.skipped
    assert again[:4] == first[:4]
    with open(corpus / NAMES["dev"], "a") as file:
        file.write(line_of("dev", 6, True))
    write_sound(corpus / "flac_D/D_0000000006.flac")
    anew = prepare_asvspoof(corpus, tmp_path / "out")
    assert not anew.skipped
    assert anew.counts["dev"]["utterances"] == 7
    write_sound(corpus / "flac_D/D_0000000006.flac", 3200)
    assert not prepare_asvspoof(corpus, tmp_path / "out").skipped


def test_archives_in_parts_and_protocols_in_a_folder(corpus, tmp_path):
    """As the tar files unpack where each has a folder of its own."""
    moved = corpus / "ASVspoof5_protocols"
    moved.mkdir()
    for name in NAMES.values():
        os.rename(corpus / name, moved / name)
        shutil.copy(moved / name, corpus / name)  # a copy is no other protocol
    os.rename(corpus / "flac_T", corpus / "T")
    for n, part in enumerate(("aa", "ab", "ac") * 2):
        target = corpus / f"flac_T_{part}/flac_T"
        target.mkdir(parents=True, exist_ok=True)
        name = f"T_{n:010d}.flac"
        os.rename(corpus / "T" / name, target / name)
    done = prepare_asvspoof(corpus, tmp_path / "out")
    assert done.counts["train"]["utterances"] == 6


def test_six_columns_of_the_first_phase(corpus, tmp_path):
    (corpus / NAMES["train"]).unlink()
    lines = [
        f"T_000{n % 2} T_{n:010d} F - {'A05 spoof' if n % 2 else 'bonafide bonafide'}\n"
        for n in range(6)
    ]
    (corpus / "ASVspoof5.train.metadata.txt").write_text("".join(lines))
    done = prepare_asvspoof(corpus, tmp_path / "out", splits="train")
    assert done.dev is None
    assert done.eval is None
    assert done.counts["train"]["attacks"] == {"-": 3, "A05": 3}


def test_a_split_without_recordings_is_left_out_unless_it_is_wanted(
    corpus, tmp_path, caplog
):
    shutil.rmtree(corpus / "flac_E_eval")
    with caplog.at_level(logging.WARNING):
        done = prepare_asvspoof(corpus, tmp_path / "out")
    assert done.eval is None
    assert "eval is left out" in caplog.text
    expected = (
        r"eval.track_1.tsv: line 1: E_0000000000: no such recording in .*asvspoof5 "
        r"\(6 bad files, expected at most max_bad_files=0; all are listed in .*txt\)"
    )
    with pytest.raises(InputError, match=expected):
        prepare_asvspoof(corpus, tmp_path / "out", splits=["dev", "eval"])


def test_some_recordings_may_be_missing(corpus, tmp_path):
    (corpus / "flac_D/D_0000000001.flac").unlink()
    (corpus / "flac_D/D_0000000002.flac").write_bytes(b"")
    with pytest.raises(InputError, match=r"line 2: D_0000000001: no such .*\(2 bad"):
        prepare_asvspoof(corpus, tmp_path / "out")
    assert not (tmp_path / "out/train.csv").exists()
    done = prepare_asvspoof(corpus, tmp_path / "out", max_bad_files=2)
    assert done.counts["dev"]["utterances"] == 4
    assert done.counts["dev"]["spoof"] == 2
    assert len((tmp_path / "out/bad_files.txt").read_text().splitlines()) == 2


def test_2019_la(tmp_path):
    root = tmp_path / "LA"
    folder = root / "ASVspoof2019_LA_cm_protocols"
    folder.mkdir(parents=True)
    for split, kind in (("train", "trn"), ("dev", "trl"), ("eval", "trl")):
        letter = split[0].upper()
        names = [f"LA_{letter}_{n:07d}" for n in range(1, 5)]
        keys = ["- bonafide", "A07 spoof", "A19 spoof", "- bonafide"]
        lines = [f"LA_0039 {n} - {key}\n" for n, key in zip(names, keys)]
        path = folder / f"ASVspoof2019.LA.cm.{split}.{kind}.txt"
        path.write_text("".join(lines))
        for name in names:
            write_sound(root / f"ASVspoof2019_LA_{split}/flac/{name}.flac")
    done = prepare_asvspoof(root, tmp_path / "out")
    assert [done.counts[s]["bonafide"] for s in ("train", "dev", "eval")] == [2, 2, 2]
    assert done.counts["eval"]["attacks"] == {"-": 2, "A07": 1, "A19": 1}
    assert done.eval.read_text().splitlines()[1].endswith("LA_0039,bonafide,-,-")


def write_2021(root):
    """LA and DF in one folder, with keys of the speaker verification beside."""
    la = [
        "LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval",
        "LA_0009 LA_E_9332882 none - bonafide bonafide notrim eval",
        "LA_0009 LA_E_9332883 opus ita_tx bonafide bonafide notrim progress",
        "LA_0010 LA_E_9332884 opus ita_tx A08 spoof notrim progress",
    ]
    tail = "traditional_vocoder - - - -"
    df = [
        f"LA_0023 DF_E_2000011 nocodec asvspoof A14 spoof notrim eval {tail}",
        f"LA_0023 DF_E_2000012 low_mp3 asvspoof - bonafide notrim eval {tail}",
        f"TEF2 DF_E_2000013 low_m4a vcc2020 Task1-team20 spoof notrim eval {tail}",
    ]
    for task, lines in (("LA", la), ("DF", df)):
        keys = root / f"{task}-keys-full/keys/{task}"
        for kind in ("CM", "ASV"):
            (keys / kind).mkdir(parents=True)
            path = keys / kind / "trial_metadata.txt"
            path.write_text("\n".join(lines).replace("A07", "A0" + kind) + "\n")
    for n in range(1, 5):
        write_sound(root / f"ASVspoof2021_LA_eval/flac/LA_E_933288{n}.flac")
    for n in range(1, 4):
        part = f"ASVspoof2021_DF_eval_part0{n}/ASVspoof2021_DF_eval/flac"
        write_sound(root / part / f"DF_E_200001{n}.flac")


def test_2021(tmp_path):
    root = tmp_path / "2021"
    write_2021(root)
    done = prepare_asvspoof(root, tmp_path / "la", edition="2021_la")
    assert done.train is None
    assert done.counts["eval"]["attacks"] == {"-": 1, "A0CM": 1}
    assert done.counts["eval"]["codecs"] == {"-": 1, "alaw": 1}
    every = prepare_asvspoof(root, tmp_path / "la", edition="2021_la", subset=None)
    assert every.counts["eval"]["utterances"] == 4
    done = prepare_asvspoof(root, tmp_path / "df", edition="2021_df")
    assert done.counts["eval"]["attacks"] == {"-": 1, "A14": 1, "Task1-team20": 1}
    assert done.counts["eval"]["codecs"] == {"-": 1, "low_m4a": 1, "low_mp3": 1}
    expected = r"protocols of 2021_la, 2021_df, expected those of one edition, or edit"
    with pytest.raises(InputError, match=expected):
        prepare_asvspoof(root, tmp_path / "out")
    expected = r"subset 'hidden', expected one of eval, progress"
    with pytest.raises(InputError, match=expected):
        prepare_asvspoof(root, tmp_path / "out", edition="2021_la", subset="hidden")


def replace_line(corpus, split, number, line):
    path = corpus / NAMES[split]
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "D_0001 D_0000000001 F - - - AC1 A11 fake -",
            r"dev.track_1.tsv: line 2: key 'fake', expected bonafide or spoof$",
        ),
        (
            "D_0001 D_0000000001 F - - - AC1 A11 spoof",
            r"dev.track_1.tsv: line 2: 9 columns, expected 10: 'SPEAKER FILE GENDER",
        ),
        (
            line_of("dev", 0, True).strip(),
            r"line 2: 'D_0000000000' again, expected each recording once \(also in "
            r"line 1; 1 such lines\)$",
        ),
        (
            line_of("train", 3, True).strip(),
            r"dev.track_1.tsv: T_0000000003 is of train, too \(1 such recordings\)",
        ),
    ],
)
def test_a_wrong_line(corpus, tmp_path, line, expected):
    replace_line(corpus, "dev", 2, line)
    with pytest.raises(InputError, match=expected):
        prepare_asvspoof(corpus, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_split_of_one_class(corpus, tmp_path):
    for number in (1, 4):
        replace_line(
            corpus, "train", number, line_of("train", number - 1, True).strip()
        )
    expected = r"train.tsv: 0 bonafide and 6 spoof in train, expected some of both$"
    with pytest.raises(InputError, match=expected):
        prepare_asvspoof(corpus, tmp_path / "out")


def test_what_is_left_of_a_split_has_both_classes(corpus, tmp_path):
    for number in (0, 3):
        (corpus / f"flac_T/T_{number:010d}.flac").unlink()
    with pytest.raises(InputError, match=r"0 bonafide and 4 spoof in train"):
        prepare_asvspoof(corpus, tmp_path / "out", max_bad_files=2)


def test_two_files_of_one_recording(corpus, tmp_path):
    write_sound(corpus / "flac_T_ab/T_0000000002.flac")
    with pytest.raises(InputError, match=r"T_0000000002.flac: the same utterance ID"):
        prepare_asvspoof(corpus, tmp_path / "out")


def test_two_protocols_of_one_split(corpus, tmp_path):
    (corpus / "old").mkdir()
    (corpus / "old" / NAMES["dev"]).write_text(line_of("dev", 1, True))
    with pytest.raises(InputError, match=r"another protocol of dev than .*, expected"):
        prepare_asvspoof(corpus, tmp_path / "out")


def test_other_recordings_with_the_same_names_are_not_taken(corpus, tmp_path):
    """Those of the first phase's progress set have names of the evaluation."""
    write_sound(corpus / "flac_E_prog/E_0000000001.flac", 3200)
    done = prepare_asvspoof(corpus, tmp_path / "out")
    assert "flac_E_prog" not in done.eval.read_text()


def test_protocols_of_another_system(corpus, tmp_path):
    """Tabs, CRLF, a byte-order mark and empty lines at the end."""
    expected = prepare_asvspoof(corpus, tmp_path / "before").counts
    for name in NAMES.values():
        text = (corpus / name).read_text().replace(" ", "\t").replace("\n", "\r\n")
        (corpus / name).write_bytes(b"\xef\xbb\xbf" + f"{text}\r\n\r\n".encode())
    assert prepare_asvspoof(corpus, tmp_path / "after").counts == expected


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ((0, 1), r"line 1: E_0000: no such recording in .*\(6 bad files"),
        ((3, 7), r"line 4: bonafide with the attack 'C05' of spoofs"),
    ],
)
def test_columns_in_another_order(corpus, tmp_path, columns, expected):
    """What each file says may fit its columns, and yet not the recordings."""
    path = corpus / NAMES["eval"]
    lines = [line.split() for line in path.read_text().splitlines()]
    lines[3][3] = "C05"  # genuine speech goes through codecs, too
    for words in lines:
        words[columns[0]], words[columns[1]] = words[columns[1]], words[columns[0]]
    path.write_text("".join(" ".join(words) + "\n" for words in lines))
    with pytest.raises(InputError, match=expected):
        prepare_asvspoof(corpus, tmp_path / "out", splits=list(NAMES))
    assert not (tmp_path / "out/eval.csv").exists()


def test_a_protocol_that_is_no_text(corpus, tmp_path):
    (corpus / NAMES["dev"]).write_bytes(b"D_1 D_2 \xff\xfe\n")
    with pytest.raises(InputError, match=r"dev.track_1.tsv: byte 8: expected UTF-8"):
        prepare_asvspoof(corpus, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"edition": "asvspoof6"}, r"edition: 'asvspoof6', expected one of asvspoof5,"),
        ({"edition": "2019_la"}, r"no protocol, expected ASVspoof2019.LA.cm.train.trn"),
        ({"splits": "test"}, r"splits: 'test', expected some of train, dev, eval"),
        ({"max_bad_files": -1}, r"max_bad_files=-1, expected a whole number of at"),
        ({"save_folder": "flac_T"}, r"save_folder .* lies in the folder of recordings"),
        ({"folder": "nowhere"}, r"nowhere: no such folder"),
        ({"folder": "flac_T"}, r"flac_T: no protocol, expected ASVspoof5.train.tsv, "),
    ],
)
def test_wrong_arguments(corpus, tmp_path, arguments, expected):
    given = {"folder": corpus, "save_folder": tmp_path / "out", **arguments}
    for name in ("folder", "save_folder"):
        given[name] = corpus / given[name]
    with pytest.raises(InputError, match=expected):
        prepare_asvspoof(**given)


def test_no_protocol_of_a_wanted_split(corpus, tmp_path):
    (corpus / NAMES["eval"]).unlink()
    with pytest.raises(InputError, match=r"no protocol of eval of asvspoof5, expected"):
        prepare_asvspoof(corpus, tmp_path / "out", splits=["train", "eval"])


def test_a_speaker_of_two_splits_is_named(corpus, tmp_path, caplog):
    line = line_of("dev", 1, True).strip().replace("D_0001", "T_0001")
    replace_line(corpus, "dev", 2, line)
    prepare_asvspoof(corpus, tmp_path / "out")
    assert "1 speakers of train, too, such as T_0001" in caplog.text


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """Protocols of the true size, without recordings."""
    root = tmp_path_factory.mktemp("full")
    for split, name in NAMES.items():
        size, spoof = SIZES[split], np.ones(SIZES[split], dtype=bool)
        random = np.random.default_rng(size)
        spoof[random.choice(size, BONAFIDE[split], replace=False)] = False
        codecs = ["-", *(f"C{n:02d}" for n in range(1, 12))][: 12 if "v" in name else 1]
        with open(root / name, "w") as file:
            file.writelines(
                line_of(split, n, s, f"A{n % 16 + 17}", codecs[n % len(codecs)])
                for n, s in enumerate(spoof.tolist())
            )
    return root


@pytest.mark.parametrize("split", NAMES)
def test_protocols_of_the_true_size(full_size, split):
    """1 to 2 s for the largest: a limit that an old machine keeps, too."""
    start = time.process_time()
    keys = read_protocol(full_size / NAMES[split])
    assert time.process_time() - start < 10
    assert len(keys) == len(set(keys.names)) == SIZES[split]
    assert int(keys.is_bonafide.sum()) == BONAFIDE[split]
    assert set(keys.attacks.words) == {"-", *(f"A{n}" for n in range(17, 33))}
    last = SIZES[split] - 1
    assert keys.names[last] == f"{split[0].upper()}_{last:010d}"
    assert keys.speakers.select([last]).tolist() == [
        f"{split[0].upper()}_{last % 7:04d}"
    ]


def test_a_manifest_of_the_true_size_is_written_and_read(full_size, tmp_path):
    keys = read_protocol(full_size / NAMES["dev"])
    rows = np.arange(len(keys))
    paths = [f"/data/flac_D/{name}.flac" for name in keys.names]
    manifest = manifest_of(keys, rows, paths, np.full(len(keys), 4.0))
    write_manifest(tmp_path / "dev.csv", manifest)
    again = keys_of("dev.csv", read_manifest(tmp_path / "dev.csv"))
    assert again.names == keys.names
    assert (again.is_bonafide == keys.is_bonafide).all()
