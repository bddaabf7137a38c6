"""Cohort and calibrator by a plan: what it embeds, and what it refuses before that."""

import logging
import zlib

import numpy as np
import pytest

from speechbrain_ext.data.manifest import Manifest, write_manifest
from speechbrain_ext.evaluation.backend_plan import (
    Calibration,
    choose_recordings,
    plan_backend,
)
from speechbrain_ext.scoring.backend import Backend, TrialSide, fit_calibrator
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.calibration.trials import draw_calibration_trials
from speechbrain_ext.scoring.cohort import load_cohort, save_cohort, speaker_means
from speechbrain_ext.scoring.score_files import read_score_table
from speechbrain_ext.utils.errors import InputError

SIZE, EACH = 6, 5
DRAWN = {"shortest": 1.0, "boundary": 3.0, "n_trials": 60, "seed": 3}
CALIBRATION = Calibration(**DRAWN)


def write_recordings(folder, name, n_speakers, first=0):
    """NAME.csv of ``EACH`` recordings of each speaker; the sound files are empty."""
    speakers = [f"id{first + s:02d}" for s in range(n_speakers) for _ in range(EACH)]
    ids = [f"{who}/{row % EACH}" for row, who in enumerate(speakers)]
    paths = [folder / f"{i.replace('/', '-')}.wav" for i in ids]
    for path in paths:
        path.touch()
    seconds = np.random.default_rng(first).uniform(1, 5, len(ids))
    manifest = Manifest(ids, list(map(str, paths)), seconds, speakers)
    write_manifest(folder / f"{name}.csv", manifest)
    return manifest


@pytest.fixture
def files(tmp_path):
    """train.csv of 8 speakers, valid.csv of 6 others."""
    write_recordings(tmp_path, "train", 8)
    write_recordings(tmp_path, "valid", 6, first=10)
    return tmp_path


def vectors_of(manifest):
    """Embeddings that depend on the ID alone, alike within a speaker."""
    rows = []
    for name, speaker in zip(manifest.ids.tolist(), manifest.speakers.tolist()):
        parts = [
            np.random.default_rng(zlib.crc32(text.encode())).standard_normal(SIZE)
            for text in (speaker, name)
        ]
        rows.append(parts[0] + parts[1])
    return np.array(rows, dtype=np.float32)


class Embed:
    """Remembers what was asked of it."""

    def __init__(self):
        self.calls = []

    def __call__(self, manifest, path):
        self.calls.append((path.name, manifest.ids.tolist()))
        return vectors_of(manifest)

    @property
    def names(self):
        return [name for name, _ in self.calls]


def plan_of(files, *, train=False, valid=False, **options):
    """Keys as the YAML has them."""
    if train:
        options["training_manifest"] = str(files / "train.csv")
    if valid:
        options["calibration_manifest"] = str(files / "valid.csv")
    return plan_backend(**{"backend": Backend(top_n=4, memory_mib=64), **options})


# ---- which recordings ----------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 3, EACH, 99, None])
def test_so_many_of_every_speaker(tmp_path, most):
    manifest = write_recordings(tmp_path, "train", 7)
    chosen = choose_recordings(tmp_path / "train.csv", most, seed=0)
    _, counts = np.unique(chosen.labels, return_counts=True)
    assert counts.tolist() == [min(most or EACH, EACH)] * 7
    place = {name: row for row, name in enumerate(manifest.ids.tolist())}
    rows = [place[name] for name in chosen.ids.tolist()]
    assert rows == sorted(rows)
    assert np.array_equal(chosen.durations, manifest.durations[rows])


def test_which_of_them_is_drawn(tmp_path):
    """By the seed; speakers of several sizes, in any order."""
    manifest = write_recordings(tmp_path, "train", 40)
    kept = np.random.default_rng(0).permutation(len(manifest))[:150]
    path = tmp_path / "some.csv"
    write_manifest(path, manifest.select(kept))
    one, again, other = (
        choose_recordings(path, 2, seed).ids.tolist() for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other
    takes = [name.split("/")[1] for name in one]
    assert set(takes) == {"0", "1", "2", "3", "4"}
    sizes = np.bincount(choose_recordings(path, None, 0).labels)
    assert np.array_equal(
        np.bincount(choose_recordings(path, 2, 1).labels), np.minimum(sizes, 2)
    )


def test_a_recording_that_is_gone(files):
    (files / "id03-2.wav").unlink()
    message = r"train.csv: .*id03-2.wav: no such file, expected the 40 recordings"
    with pytest.raises(InputError, match=message):
        choose_recordings(files / "train.csv", None, 0)


# ---- building it -------------------------------------------------------------------


def test_nothing_asked_for(files):
    plan, embed = plan_of(files, calibration=CALIBRATION), Embed()
    assert not plan.needs_embeddings
    backend = plan.build_backend(embed, files)
    assert backend.cohort is None
    assert backend.calibrator is None
    assert embed.calls == []


def test_a_cohort_of_training_speakers(files):
    plan, embed = plan_of(files, train=True), Embed()
    assert plan.needs_embeddings
    assert plan.cohort_speakers.tolist() == [f"id{s:02d}" for s in range(8)]
    backend = plan.build_backend(embed, files / "out")
    assert embed.names == ["training_embeddings.npz"]
    manifest = plan.training
    expected = speaker_means(vectors_of(manifest), manifest.speakers)
    for found in (backend.cohort, load_cohort(files / "out/cohort.npz")):
        assert all(map(np.array_equal, found, expected))
    assert backend.calibrator is None
    assert (backend.top_n, backend.memory_mib) == (4, 64)


@pytest.mark.parametrize("valid", [False, True])
def test_a_cohort_and_a_calibrator(files, valid, caplog):
    with caplog.at_level(logging.WARNING):
        plan = plan_of(files, train=True, valid=valid, calibration=CALIBRATION)
    assert ("trust its scores too much" in caplog.text) is not valid
    embed = Embed()
    backend = plan.build_backend(embed, files)
    names = ["training_embeddings.npz", *["calibration_embeddings.npz"] * valid]
    assert embed.names == names
    manifest = plan.calibration
    assert len(manifest.speaker_names) == (6 if valid else 8)
    trials = draw_calibration_trials(manifest.speakers, manifest.durations, **DRAWN)
    side = TrialSide(vectors_of(manifest), manifest.durations)
    plain = Backend(backend.cohort, top_n=4)
    expected = fit_calibrator(plain, side, manifest.speakers, trials).calibrator
    for found in (
        backend.calibrator,
        QualityCalibrator.load(files / "calibration.json"),
    ):
        assert np.array_equal(found.weights, expected.weights)
        assert found.l2 == expected.l2
    # what each step makes of these trials, the own speaker left out of the cohort
    own = plain.cohort.rows_of_speakers(manifest.speakers)
    assert (own >= 0).all() == (not valid)
    rows = np.stack([trials.enrol, trials.test], axis=1)
    scores = backend.scores(*2 * [side._replace(own=own)], rows)
    assert list(scores) == ["cosine", "as_norm", "llr"]
    for system, values in scores.items():
        table, read = read_score_table(files / f"calibration_scores_{system}.npz")
        assert np.array_equal(read, values)
        assert np.array_equal(table.labels, trials.labels)
        assert table.names[table.enrol].tolist() == manifest.ids[trials.enrol].tolist()
        assert table.names[table.test].tolist() == manifest.ids[trials.test].tolist()


@pytest.mark.parametrize(("objective", "l2"), [("cross_entropy", 0.5), ("cllr", 1)])
def test_settings_of_the_calibration_reach_it(files, objective, l2):
    calibration = Calibration(objective, l2, **DRAWN)
    plan = plan_of(files, valid=True, calibration=calibration)
    calibrator = plan.build_backend(Embed(), files).calibrator
    assert calibrator.objective == objective
    assert calibrator.l2 == l2


def test_a_calibrator_without_a_cohort(files):
    plan, embed = plan_of(files, valid=True, calibration=CALIBRATION), Embed()
    backend = plan.build_backend(embed, files)
    assert embed.names == ["calibration_embeddings.npz"]
    assert backend.cohort is None
    assert "cohort_mean_min" not in backend.calibrator.names
    assert not (files / "cohort.npz").exists()


def test_no_calibration_is_none(files):
    plan = plan_of(files, train=True, valid=True, calibration=None)
    assert plan.build_backend(Embed(), files).calibrator is None


def test_files_of_an_earlier_run_are_taken(files):
    words = {"train": True, "valid": True, "calibration": CALIBRATION}
    first = plan_of(files, **words).build_backend(Embed(), files)
    given = {
        "cohort": str(files / "cohort.npz"),
        "calibrator": str(files / "calibration.json"),
    }
    for more, names in (
        ({}, []),
        (words, []),
        ({**words, "calibrator": None}, ["calibration_embeddings.npz"]),
        ({**words, "cohort": None}, ["training_embeddings.npz"]),
    ):
        embed = Embed()
        plan = plan_of(files, **{**given, **more})
        assert plan.needs_embeddings is bool(names)
        assert plan.cohort_speakers.tolist() == first.cohort.speakers.tolist()
        backend = plan.build_backend(embed, files)
        assert embed.names == names
        assert np.array_equal(backend.cohort.vectors, first.cohort.vectors)
        assert np.array_equal(backend.calibrator.weights, first.calibrator.weights)


def test_speakers_of_the_test_are_warned_of(files, caplog):
    plan = plan_of(files, train=True, valid=True, calibration=CALIBRATION)
    test = np.array(["id11", "x", "id03", "id11", "id02"])
    with caplog.at_level(logging.WARNING):
        plan.warn_speaker_overlap(np.array(["x", "y"]))
        assert caplog.text == ""
        plan.warn_speaker_overlap(test.astype(np.dtypes.StringDType()))
    assert "2 speakers of the test are in the cohort too, first id02" in caplog.text
    assert (
        "1 speakers of the test are in the calibration too, first id11" in caplog.text
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        plan_of(files).warn_speaker_overlap(test)
    assert caplog.text == ""


# ---- refused before anything is embedded ---------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training_manifest": "no.csv"}, "no.csv: No such file or directory"),
        (
            {"calibration_manifest": "no.csv", "calibration": CALIBRATION},
            "no.csv: No such file or directory",
        ),
        ({"cohort": "no.npz"}, "no.npz: No such file or directory, expected a cohort"),
        ({"cohort": "{c}/train.csv"}, "train.csv: suffix '.csv', expected one of .npz"),
        ({"cohort": "{c}/id01-1.npz"}, "id01-1.npz: cannot be read as a cohort"),
        ({"calibrator": "no.json"}, "no.json: No such file"),
        ({"calibrator": "{c}/train.csv"}, "train.csv: cannot be read as a speechbrain"),
        (
            {"train": True, "max_utterances": 0},
            "max_utterances=0, expected a whole num",
        ),
        (
            {"train": True, "max_utterances": 2.5},
            "max_utterances=2.5, expected a whole",
        ),
        (
            {"train": True, "max_utterances": "a"},
            "max_utterances='a', expected a whole",
        ),
        (
            {"train": True, "backend": Backend(top_n=9)},
            r"train.csv: cohort of 8 speakers, expected at least 9 \(top_n: 9\)",
        ),
        (
            {"train": True, "backend": Backend(top_n=8), "calibration": CALIBRATION},
            "train.csv: cohort of 7 speakers besides that of an utterance of the calib",
        ),
        ({"train": True, "seed": -1}, "seed=-1, expected a whole number of at least 0"),
        *(
            ({"valid": True, "calibration": Calibration(**{**DRAWN, **wrong})}, message)
            for wrong, message in (
                ({"seed": -1}, "valid.csv: seed is -1"),
                (
                    {"shortest": 5.5, "boundary": 6},
                    "calibration on .*valid.csv: no trials can be made: ",
                ),
                ({"objective": "eer"}, "objective 'eer', expected one of cllr, cross"),
                ({"l2": 0}, "l2 is 0, expected a"),
                ({"l2": "x"}, "l2='x', expected"),
                ({"n_trials": 5}, "valid.csv: n_trials is 5"),
            )
        ),
    ],
)
def test_refused(files, options, message):
    (files / "id01-1.npz").write_bytes(b"PK, and then nothing")
    options = {
        key: value.format(c=files) if isinstance(value, str) else value
        for key, value in options.items()
    }
    with pytest.raises(InputError, match=message) as caught:
        plan_of(files, **options)
    assert "\n" not in str(caught.value)


def test_a_cohort_that_is_too_small_is_named(files):
    plan_of(files, train=True).build_backend(Embed(), files)
    cohort = str(files / "cohort.npz")
    with pytest.raises(InputError, match=r"cohort.npz: cohort of 8 speakers, expected"):
        plan_of(files, cohort=cohort, backend=Backend(top_n=9))
    plan_of(files, cohort=cohort, backend=Backend(top_n=8))
    # the one of an utterance of the calibration does not count
    options = {"cohort": cohort, "train": True, "calibration": CALIBRATION}
    with pytest.raises(InputError, match=r"cohort.npz: cohort of 7 speakers besides"):
        plan_of(files, backend=Backend(top_n=8), **options)
    plan_of(files, backend=Backend(top_n=7), **options)
    # speakers to calibrate on who are not in the cohort cost nobody
    options = {"train": True, "valid": True, "calibration": CALIBRATION}
    assert plan_of(files, backend=Backend(top_n=8), **options).trials is not None


@pytest.mark.parametrize("with_cohort", [False, True])
def test_a_calibrator_of_the_other_kind(files, with_cohort):
    """Fitted with a cohort and used without one, or the other way round."""
    plan = plan_of(files, train=with_cohort, valid=True, calibration=CALIBRATION)
    plan.build_backend(Embed(), files)
    calibrator = str(files / "calibration.json")
    plan_of(files, train=with_cohort, calibrator=calibrator)
    kind = "as_norm_4" if with_cohort else "cosine"
    message = rf"calibration.json: calibrates {kind}, .*, expected "
    with pytest.raises(InputError, match=message):
        plan_of(files, train=not with_cohort, calibrator=calibrator)
    if with_cohort:
        with pytest.raises(InputError, match=rf"{message}as_norm_3"):
            plan_of(files, train=True, calibrator=calibrator, backend=Backend(top_n=3))


def test_a_speaker_whose_name_no_cohort_file_can_hold(files):
    manifest = write_recordings(files, "train", 8)
    speakers = manifest.speakers.tolist()
    speakers[5:10] = ["id 01"] * 5
    spaced = Manifest(manifest.ids, manifest.paths, manifest.durations, speakers)
    write_manifest(files / "train.csv", spaced)
    with pytest.raises(
        InputError, match=r"train.csv: ID 'id 01' .*, expected no white"
    ):
        plan_of(files, train=True)


def test_too_few_speakers_to_choose_l2(tmp_path):
    write_recordings(tmp_path, "valid", 2)
    options = {"valid": True, "calibration": CALIBRATION}
    message = "calibration on .*valid.csv: trials of 2 speakers, expected at least 3"
    with pytest.raises(InputError, match=message):
        plan_of(tmp_path, **options)
    options["calibration"] = Calibration(l2=0.1, **DRAWN)
    assert plan_of(tmp_path, **options).trials is not None


def test_a_cohort_of_another_width_is_found_by_its_width(files):
    vectors = np.eye(9, 7, dtype=np.float32)
    cohort = speaker_means(vectors, np.array([f"c{k}" for k in range(9)]))
    save_cohort(files / "other.npz", cohort)
    plan = plan_of(files, cohort=str(files / "other.npz"))
    with pytest.raises(
        InputError, match="final: embeddings of 6 values and a cohort of"
    ):
        plan.backend.check_width(SIZE, "final")
