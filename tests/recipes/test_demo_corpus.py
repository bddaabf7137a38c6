"""The demonstration corpus: layout, sound, reproducibility, refusals."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from demo_corpus import content, corpus, make_demo_corpus

from speechbrain_ext.data.audio import SAMPLE_RATE, read_audio
from speechbrain_ext.utils.errors import InputError

SMALL = {
    "n_train_speakers": 2,
    "n_test_speakers": 4,
    "sessions": 2,
    "utterances": 2,
    "spoofs": 0,
}
OPTIONS = [
    "--train_speakers",
    "2",
    "--test_speakers",
    "4",
    "--sessions",
    "2",
    "--utterances",
    "2",
    "--spoofs",
    "0",
]
RECIPES = Path(__file__).parents[2] / "recipes"
COMMAND = [sys.executable, str(RECIPES / "demo_corpus")]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo_corpus(tmp_path_factory.mktemp("demo") / "corpus", **SMALL)


@pytest.fixture(scope="module")
def trials(demo):
    return [line.split() for line in demo.trials.read_text().splitlines()]


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_layout_is_that_of_the_real_corpora(demo):
    """Paths have the shapes that preparation code looks for."""
    shapes = {
        r"voxceleb2/dev/wav/id2\d{4}/[\w-]{11}/0000[12]\.wav": 2 * 2 * 2,
        r"voxceleb1/wav/id1\d{4}/[\w-]{11}/0000[12]\.wav": 4 * 2 * 2,
        r"voxceleb1/veri_test\.txt": 1,
        r"musan/noise/free-sound/noise-free-sound-\d{4}\.wav": 12,
        r"musan/music/fma/music-fma-\d{4}\.wav": 4,
        r"musan/speech/librivox/speech-librivox-\d{4}\.wav": 8,
        r"RIRS_NOISES/simulated_rirs/smallroom/Room001/Room001-\d{5}\.wav": 8,
        r"RIRS_NOISES/simulated_rirs/mediumroom/Room001/Room001-\d{5}\.wav": 8,
        r"RIRS_NOISES/simulated_rirs/(small|medium)room/rir_list": 2,
        r"RIRS_NOISES/real_rirs_isotropic_noises/RVB2014_type1_rir_\w+\.wav": 6,
        r"RIRS_NOISES/real_rirs_isotropic_noises/rir_list": 1,
        r"README\.txt|demo\.json": 2,
    }
    names = list(digests(demo.folder))
    seen = {shape: sum(bool(re.fullmatch(shape, n)) for n in names) for shape in shapes}
    assert seen == shapes
    assert len(names) == sum(shapes.values())
    # The progress bar's total: everything but demo.json.
    assert content.Size(2, 4, 2, 2, 7, 0).files == len(names) - 1
    assert (demo.voxceleb1 / "wav").is_dir()
    assert (demo.voxceleb2 / "dev").is_dir()
    assert "not serve to measure accuracy" in (demo.folder / "README.txt").read_text()


def test_rir_lists_name_their_files(demo):
    lists = sorted(demo.rirs.rglob("rir_list"))
    listed = [line.split() for path in lists for line in path.read_text().splitlines()]
    assert {(row[0], row[2], len(row)) for row in listed} == {
        ("--rir-id", "--room-id", 5)
    }
    assert len({row[1] for row in listed}) == len(listed)
    files = {str(p.relative_to(demo.folder)) for p in demo.rirs.rglob("*.wav")}
    assert {row[4] for row in listed} == files


def test_every_recording_is_sound(demo):
    """16 kHz mono, audible, not clipped, no DC; utterances last 2 to 6 s."""
    for path in demo.folder.rglob("*.wav"):
        wav = read_audio(path)
        assert 0.1 < np.abs(wav).max() < 0.96, path
        if "RIRS_NOISES" in path.parts:
            continue
        assert np.sqrt(np.mean(wav**2)) > 0.01, path
        assert abs(wav.mean()) < 1e-3, path
        if "musan" in path.parts:
            assert len(wav) >= 6 * SAMPLE_RATE, path
        else:
            assert 2 * SAMPLE_RATE <= len(wav) <= 6 * SAMPLE_RATE, path


def test_trials_are_balanced_and_cross_sessions(demo, trials):
    # 4 speakers × 2 × 2 pairs across their two sessions, and as many impostors
    assert Counter(label for label, _, _ in trials) == {"1": 16, "0": 16}
    sex = {
        name: speaker["sex"]
        for name, speaker in json.loads((demo.folder / "demo.json").read_text())[
            "speakers"
        ].items()
    }
    same_sex = 0
    for label, enrol, test in trials:
        assert (demo.voxceleb1 / "wav" / enrol).is_file()
        assert (demo.voxceleb1 / "wav" / test).is_file()
        one, two = enrol.split("/"), test.split("/")
        assert (one[0] == two[0]) == (label == "1")
        assert one[1] != two[1]
        same_sex += label == "0" and sex[one[0]] == sex[two[0]]
    assert same_sex == 8
    assert len({frozenset(pair[1:]) for pair in trials}) == len(trials)


def test_speakers_can_be_told_apart(demo, trials):
    """Long-term spectra of the same speaker are nearer, whatever the session."""
    spectra = {}
    for path in (demo.voxceleb1 / "wav").rglob("*.wav"):
        wav = read_audio(path)
        frames = np.lib.stride_tricks.sliding_window_view(wav, 512)[::256]
        power = np.abs(np.fft.rfft(frames * np.hanning(512))) ** 2
        loud = power[power.sum(1) > np.median(power.sum(1))]
        # 300-3000 Hz, which every channel lets pass; without the channel's level
        bands = np.log(loud[:, 10:98].reshape(len(loud), 22, 4).mean(2))
        spectra["/".join(path.parts[-3:])] = bands.mean(0) - bands.mean()
    distance = {"0": [], "1": []}
    for label, enrol, test in trials:
        distance[label].append(np.linalg.norm(spectra[enrol] - spectra[test]))
    assert np.mean(distance["1"]) < 0.8 * np.mean(distance["0"])


def test_another_process_makes_the_same_bytes(demo, tmp_path):
    """Also where this process has spoken before: no state is left in the library."""
    command = [*COMMAND, "again", *OPTIONS, "--seed", "7"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "again") == digests(demo.folder)
    assert [p.name for p in tmp_path.iterdir()] == ["again"]
    assert "again/voxceleb1/veri_test.txt" in done.stdout


def test_other_training_speakers_leave_the_test_speakers_alone(demo):
    """Every file of voxceleb1 keeps its bytes when training speakers are added."""
    larger = content.files(content.Size(3, 4, 2, 2, 7, 0))
    test_part = {}
    for name, data in larger:
        if name.startswith("voxceleb2"):
            break
        test_part[name] = hashlib.sha256(data).hexdigest()
    made = digests(demo.folder)
    assert len(test_part) == 4 * 2 * 2 + 1  # and README.txt
    assert all(made[name] == digest for name, digest in test_part.items())


def test_another_seed_makes_other_speech(demo):
    other = dict(zip(range(2), content.files(content.Size(2, 4, 2, 2, 8, 0))))[1]
    names = {str(p.relative_to(demo.folder)) for p in demo.folder.rglob("*.wav")}
    assert other[0].startswith("voxceleb1/wav/id10001/")
    assert other[0] not in names


def test_a_complete_corpus_is_used_again(demo):
    before = {p: p.stat().st_mtime_ns for p in demo.folder.rglob("*")}
    assert make_demo_corpus(str(demo.folder), **SMALL) == demo
    assert {p: p.stat().st_mtime_ns for p in demo.folder.rglob("*")} == before


def test_a_corpus_with_other_arguments_is_kept(demo):
    with pytest.raises(InputError, match="made with seed 7, expected 8"):
        make_demo_corpus(demo.folder, **SMALL, seed=8)
    assert demo.trials.is_file()


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_corpus_is_named(demo, tmp_path, damage):
    copy = shutil.copytree(demo.folder, tmp_path / "copy")
    victim = copy / "musan" / "music" / "fma" / "music-fma-0001.wav"
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(InputError, match=r"music-fma-0001\.wav: missing or changed"):
        make_demo_corpus(copy, **SMALL)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"arguments": 1, "files": 2}'])
def test_a_broken_marker_is_named(tmp_path, text):
    (tmp_path / "demo.json").write_text(text)
    with pytest.raises(InputError, match=r"demo\.json: not readable"):
        make_demo_corpus(tmp_path, **SMALL)


def test_what_is_not_a_corpus_is_never_touched(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"has files but no demo\.json"):
        make_demo_corpus(folder, **SMALL)
    with pytest.raises(InputError, match=r"chapter1\.tex: is a file"):
        make_demo_corpus(folder / "chapter1.tex", **SMALL)
    assert digests(tmp_path).keys() == {"thesis/chapter1.tex"}


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(size):
        files = content.files(size)
        yield from (next(files) for _ in range(3))
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_demo_corpus(tmp_path / "corpus", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_at_once_agree(demo, tmp_path, monkeypatch):
    """The other process finished first: its corpus serves, ours goes."""
    target = tmp_path / "corpus"

    def overtaken(size):
        yield "README.txt", b""
        shutil.copytree(demo.folder, target)

    monkeypatch.setattr(corpus, "files", overtaken)
    made = make_demo_corpus(target, **SMALL)
    assert digests(made.folder) == digests(demo.folder)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("n_train_speakers", 0),
        ("n_test_speakers", 1),
        ("sessions", 1),
        ("utterances", 0),
        ("seed", -1),
        ("seed", 1.5),
        ("n_train_speakers", 229),
        ("spoofs", 5),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path, argument, value):
    with pytest.raises(InputError, match=f"{argument}.*{value}|{argument}.*233"):
        make_demo_corpus(tmp_path / "corpus", **{**SMALL, argument: value})
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_one_line_says_what_to_install(tmp_path):
    """The package imports without espeakng-loader, and asks for it only to speak."""
    script = (
        "import sys; sys.modules['espeakng_loader'] = None\n"
        f"sys.path.insert(0, {str(RECIPES)!r})\n"
        "from demo_corpus.__main__ import main\n"
        "main(['corpus'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install '.[demo]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_extra_is_not_imported_by_default():
    script = (
        f"import sys; sys.path.insert(0, {str(RECIPES)!r})\n"
        "import demo_corpus\n"
        "assert not [m for m in sys.modules if 'espeakng' in m]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
