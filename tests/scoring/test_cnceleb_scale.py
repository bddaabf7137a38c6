"""CN-Celeb's protocol at its full size: lists read, scored and split by genre.

In a process of its own, whose memory is measured. Embeddings are random around a centre
of each speaker, so there is no audio and no model.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cnceleb_lists import (
    N_ENROLMENTS,
    N_MODELS,
    N_SPEAKERS,
    N_TARGETS,
    N_TESTS,
    N_TRIALS,
    TESTS,
    write_lists,
)

from speechbrain_ext.evaluation.score_lists import (
    Recordings,
    averaged,
    read_lists,
    report_list,
    score_list,
)
from speechbrain_ext.scoring.backend import Backend, TrialSide
from speechbrain_ext.scoring.conditions import conditions_of
from speechbrain_ext.scoring.enrolment import read_enrol_map, speakers_of, utterances_of
from speechbrain_ext.scoring.metrics import equal_error_rate
from speechbrain_ext.scoring.trials import rows_of

MEBIBYTES = 1000  # a list as Python objects alone would take as much


def run(folder):
    """The whole list by both enrolments → what there is to say of them, for JSON.

    Files and report of one enrolment only: those of the other take as long.
    """
    lists = write_lists(folder / "eval/lists")
    (trials,) = read_lists([lists / "trials.lst"]).values()
    maps = {
        protocol: read_enrol_map(lists / name)
        for protocol, name in (("average", "enroll.map"), ("concatenate", "enroll.lst"))
    }
    needed = {protocol: utterances_of(trials, m) for protocol, m in maps.items()}
    ids = np.array(sorted(set.union(*needed.values())))
    recordings = Recordings(ids, TrialSide(random_vectors(ids)), {}, "made up")
    genres = conditions_of(trials.names, genre_of, maps["average"])
    enrol = averaged(maps["average"], recordings)
    systems = score_list("trials", trials, Backend(), enrol, recordings, folder)
    result = report_list("trials", trials, systems, folder, 0, genres=genres)
    enrol = averaged(maps["concatenate"], recordings)
    rows = [
        rows_of(trials, side.ids, "made up", name)[getattr(trials, name)]
        for name, side in (("enrol", enrol), ("test", recordings))
    ]
    scores = Backend().scores(enrol.side, recordings.side, np.stack(rows, axis=1))
    return {
        "result": result,
        "concatenate": 100 * equal_error_rate(scores["cosine"], trials.labels).eer,
        "needed": {protocol: len(names) for protocol, names in needed.items()},
        "mebibytes": peak_mebibytes(),
    }


def genre_of(name):
    """As CN-Celeb's module has it, which loads torch and so takes memory."""
    *_, genre, session, number = ["", "", *name.split("/")[-1].split("-")]
    return genre if session.isdigit() and number.isdigit() else None


def peak_mebibytes():
    """Of this process; on Linux ru_maxrss begins with that of who started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
    peak = next(s for s in status.read_text().splitlines() if s.startswith("VmHWM"))
    return int(peak.split()[1]) / 2**10


def random_vectors(ids):
    """float32 [N, 64]: a centre for each speaker, and noise."""
    random = np.random.default_rng(0)
    speakers = speakers_of(ids)
    centres = random.standard_normal((speakers.max() + 1, 64), dtype=np.float32)
    noise = random.standard_normal((len(ids), 64), dtype=np.float32)
    return centres[speakers] + 2 * noise


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cnceleb")
    command = [sys.executable, __file__, str(folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return folder, json.loads(output)


@pytest.mark.slow
def test_all_trials_are_there(done):
    folder, found = done
    assert found["needed"] == {
        "average": N_TESTS + N_ENROLMENTS,
        "concatenate": N_TESTS + N_MODELS,
    }
    counts = [found["result"][key] for key in ("trials", "targets", "nontargets")]
    assert counts == [N_TRIALS, N_TARGETS, N_TRIALS - N_TARGETS]
    assert (folder / "scores_trials_cosine.txt").stat().st_size > 100 << 20
    assert (folder / "genres_trials.png").is_file()
    assert (folder / "eval/lists/trials.lst").stat().st_size > 100 << 20


@pytest.mark.slow
def test_more_recordings_of_a_model_make_fewer_errors(done):
    """The mean of four embeddings has less noise than one."""
    averaged = done[1]["result"]["systems"][0]["eer_percent"]
    assert 0 < averaged < 0.8 * done[1]["concatenate"] < 40


@pytest.mark.slow
def test_the_genres_add_up(done):
    result = done[1]["result"]
    table = result["genres"]
    assert table["test"] == [*sorted(TESTS), "all"]
    targets, nontargets = (np.array(table[k]) for k in ("targets", "nontargets"))
    for counts, total in ((targets, N_TARGETS), (nontargets, N_TRIALS - N_TARGETS)):
        assert counts[-1, -1] == total
        assert (counts[:-1].sum(axis=0) == counts[-1]).all()
        assert (counts[:, :-1].sum(axis=1) == counts[:, -1]).all()
    tested = (targets + nontargets)[-1, :-1] // N_MODELS
    assert dict(zip(table["test"], tested.tolist())) == TESTS
    assert table["eer_percent"][-1][-1] == result["systems"][0]["eer_percent"]
    assert table["enough"][-1][-1]
    assert not table["enough"][-1][0]  # 20 advertisements


@pytest.mark.slow
def test_memory_is_bounded(done):
    assert 200 < done[1]["mebibytes"] < MEBIBYTES


def test_the_made_up_lists_are_of_the_true_size():
    assert sum(TESTS.values()) == N_TESTS
    assert N_MODELS * N_TESTS == N_TRIALS
    assert N_SPEAKERS - N_MODELS == 4


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]))))
