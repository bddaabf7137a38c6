"""verify.py from recordings to its report: every way, stopped, on two ranks."""

import functools
import hashlib
import json
import os
import signal

import numpy as np
import pytest
import torch
from recipe_scripts import data_words, run, run_on_two, run_script
from tiny_training import manifest_of, start, tiny_config, write_corpus, write_voices

from speechbrain_ext.data.manifest import Manifest, read_manifest, write_manifest
from speechbrain_ext.evaluation import verification
from speechbrain_ext.inference.extraction import embed_to_file
from speechbrain_ext.inference.folder import load_encoder
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.scoring.backend import Backend, TrialSide
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.cohort import load_cohort, speaker_means
from speechbrain_ext.scoring.embeddings import load_embeddings
from speechbrain_ext.scoring.enrolment import average_enrolment, read_enrol_map
from speechbrain_ext.scoring.metrics import equal_error_rate, min_cllr
from speechbrain_ext.scoring.score_files import read_score_table, read_scores
from speechbrain_ext.scoring.trials import rows_of

TESTED = [f"id{s:02d}/s{t % 2}/{t:05d}" for s in range(6, 10) for t in range(3)]
SYSTEMS = ["cosine", "as_norm", "llr"]
PICTURES = ["calibration_trials", "det_trials"] + [
    f"scores_trials_{s}" for s in SYSTEMS
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four speakers to test, three others for a cohort, three to calibrate, a model."""
    folder = write_corpus(tmp_path_factory.mktemp("corpus"))
    write_voices(folder / "test", n_speakers=4, n_utterances=3, first=6)
    (folder / "trials.txt").write_text(
        "".join(
            f"{int(a[:4] == b[:4])} {a}.wav {b}.wav\n"
            for row, a in enumerate(TESTED)
            for b in TESTED[row + 1 :]
        )
    )
    for name, speakers in (("train", range(3)), ("valid", range(3, 6))):
        write_manifest(folder / f"{name}.csv", manifest_of(folder, speakers))
    torch.manual_seed(0)
    model = SpeakerEncoder(W2VBertEncoder(tiny_config()), AdapterMFA(16, 2, 8, 16))
    save_pretrained(folder / "final", model)
    return folder


def words_of(corpus, out, *more):
    return [
        *("hparams/verify.yaml", *data_words(corpus)[1:3], "--num_workers=0"),
        *(f"--pretrained_folder={corpus}/final", f"--output_folder={out}"),
        *("--noprogressbar", "--n_resamples=20", *more),
    ]


def backend_words(corpus):
    """AS-norm and calibration, fit for recordings of 0.7 s and few speakers."""
    return [
        f"--training_manifest={corpus}/train.csv",
        f"--calibration_manifest={corpus}/valid.csv",
        *("--backend.top_n=3", "--max_utterances=5"),
        *("--calibration.shortest=0.1", "--calibration.n_trials=60"),
    ]


def verify(words, folder):
    """Run it → what results.json says, and its log."""
    code, lines = run("verify", words, folder / "stderr")
    assert code == 0, lines
    (out,) = [w.partition("=")[2] for w in words if w.startswith("--output_folder")]
    with open(f"{out}/results.json") as file:
        results = json.load(file, parse_constant=pytest.fail)  # NaN and its like
    return results, open(f"{out}/log.txt").read()


def files_of(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def cosines(vectors, trials, enrol=None):
    """By name, in float64; ``vectors`` and ``enrol`` are dictionaries."""
    found = []
    for a, b in zip(trials.names[trials.enrol], trials.names[trials.test], strict=True):
        a, b = ((enrol or vectors)[a].astype(float), vectors[b].astype(float))
        found.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return np.array(found)


def by_id(path):
    return dict(zip(*(column for column in load_embeddings(path)), strict=True))


# ---- what it does --------------------------------------------------------------------


def test_cosine_alone(corpus, tmp_path):
    out = tmp_path / "out"
    results, _ = verify(words_of(corpus, out), tmp_path)
    (result,) = results["lists"]
    (row,) = result["systems"]
    assert (result["trials"], result["targets"]) == (66, 12)
    assert result["list"] == f"{corpus}/trials.txt"
    assert result["enrolment"] is None
    assert (row["system"], row["as_norm"], row["qmf"]) == ("cosine", False, False)
    assert set(row["intervals_95"]) == {"eer", "min_dcf_0.01", "min_dcf_0.05", "cllr"}
    assert results["pretrained_folder"] == f"{corpus}/final"
    weights = (corpus / "final/speaker_encoder.safetensors").read_bytes()
    assert results["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert "top_n" not in results
    trials, scores = read_score_table(out / "scores_trials_cosine.npz")
    expected = cosines(by_id(out / "embeddings.npz"), trials)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert np.array_equal(trials.labels, [a[:4] == b[:4] for a, b in pairs(trials)])
    assert row["eer_percent"] == 100 * equal_error_rate(scores, trials.labels).eer
    as_text = read_scores(out / "scores_trials_cosine.txt")
    assert np.array_equal(as_text[1].astype(np.float32), scores)
    assert pairs(as_text[0]) == pairs(trials)
    assert files_of(out) == sorted(
        [
            *("det_trials.png", "embeddings.npz", "env.log", "hyperparams.yaml"),
            *("log.txt", "results.json", "results.md", "scores_trials_cosine.npz"),
            *("scores_trials_cosine.png", "scores_trials_cosine.txt", "verify.py"),
        ]
    )
    page = (out / "results.md").read_text()
    assert "| trials.txt (66) | cosine | no | no | " in page


def pairs(trials):
    columns = trials.names[trials.enrol], trials.names[trials.test]
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_in_8_bits(corpus, tmp_path):
    """Its own embeddings, near those of float32, which are not taken for them."""
    out = tmp_path / "out"
    verify([*words_of(corpus, out), "--eval_precision=int8"], tmp_path)
    found = by_id(out / "embeddings.npz")
    hparams, chunking = load_encoder(corpus / "final")
    manifest = read_manifest(out / "prepared/test.csv")
    options = {"chunking": chunking, "progress": False}
    model = hparams["speaker_encoder"]
    embed_to_file(model, manifest, out / "embeddings.npz", **options)
    for name, exact in by_id(out / "embeddings.npz").items():
        vector = found[name]
        norms = np.linalg.norm(vector) * np.linalg.norm(exact)
        assert not np.array_equal(vector, exact)
        assert vector @ exact > 0.999 * norms


def test_as_norm_and_calibration(corpus, tmp_path):
    out = tmp_path / "out"
    words = words_of(corpus, out, *backend_words(corpus))
    results, log = verify(words, tmp_path)
    (result,) = results["lists"]
    assert [row["system"] for row in result["systems"]] == SYSTEMS
    titles = ["cosine", "AS-norm", "AS-norm + QMF"]
    assert [row["title"] for row in result["systems"]] == titles
    assert [row["qmf"] for row in result["systems"]] == [False, False, True]
    assert "actual_dcf" in result["systems"][2]
    assert (results["top_n"], results["cohort_speakers"]) == (3, 3)
    assert results["calibration_l2"] > 0
    # the files, each by hand
    training = load_embeddings(out / "training_embeddings.npz")
    assert len(training.ids) == 15  # at most five of each
    cohort = load_cohort(out / "cohort.npz")
    means = speaker_means(training.vectors, np.array([i[:4] for i in training.ids]))
    assert all(map(np.array_equal, cohort, means))
    assert cohort.speakers.tolist() == ["id00", "id01", "id02"]
    calibrating = load_embeddings(out / "calibration_embeddings.npz").ids
    assert {name[:4] for name in calibrating.tolist()} == {"id03", "id04", "id05"}
    calibrator = QualityCalibrator.load(out / "calibration.json")
    assert calibrator.n_target + calibrator.n_nontarget <= 60
    assert calibrator.n_target == calibrator.n_nontarget > 0
    ids, vectors = load_embeddings(out / "embeddings.npz")
    side = TrialSide(vectors, read_manifest(out / "prepared/test.csv").durations)
    trials, _ = read_score_table(out / "scores_trials_llr.npz")
    rows = rows_of(trials, ids, "embeddings")
    rows = np.stack([rows[trials.enrol], rows[trials.test]], axis=1)
    expected = Backend(cohort, calibrator, 3).scores(side, side, rows)
    for name, row in zip(SYSTEMS, result["systems"], strict=True):
        _, scores = read_score_table(out / f"scores_trials_{name}.npz")
        assert np.array_equal(scores, expected[name])
        assert row["min_cllr"] == min_cllr(scores, trials.labels).cllr
        assert (out / f"scores_trials_{name}.txt").exists()
    assert {f"{name}.png" for name in PICTURES} <= set(files_of(out))
    assert "trained on" not in log

    # Its files in place of the model and the manifests: the same scores.
    again = tmp_path / "again"
    words = words_of(
        *(corpus, again, f"--embeddings={out}/embeddings.npz", "--backend.top_n=3"),
        *(f"--cohort={out}/cohort.npz", f"--calibrator={out}/calibration.json"),
    )
    words = [word for word in words if "pretrained_folder" not in word]
    results, _ = verify(words, tmp_path)
    assert results["embeddings"] == f"{out}/embeddings.npz"
    for name in SYSTEMS:
        file = f"scores_trials_{name}.npz"
        assert (again / file).read_bytes() == (out / file).read_bytes()
    assert not (again / "embeddings.npz").exists()
    assert not (again / "cohort.npz").exists()
    without = [result.pop("pictures") for result in (result, results["lists"][0])]
    assert without[0].keys() == without[1].keys()
    assert results["lists"][0] == result


def test_calibration_on_training_speakers_and_known_test_speakers_warn(
    corpus, tmp_path
):
    manifest = manifest_of(corpus, range(3, 6))
    renamed = np.array([{"id05": "id07"}.get(s, s) for s in manifest.speakers.tolist()])
    known = Manifest(manifest.ids, manifest.paths, manifest.durations, renamed)
    write_manifest(tmp_path / "known.csv", known)
    words = words_of(
        *(corpus, tmp_path / "out", f"--training_manifest={tmp_path}/known.csv"),
        *("--backend.top_n=2", "--calibration.shortest=0.1"),
    )
    results, log = verify(words, tmp_path)
    assert [row["system"] for row in results["lists"][0]["systems"]] == SYSTEMS
    assert "it will trust its scores too much; see calibration_manifest" in log
    assert "1 speakers of the test are in the cohort too, first id07" in log
    files = files_of(tmp_path / "out")
    assert "training_embeddings.npz" in files
    assert "calibration_embeddings.npz" not in files


def test_two_lists_without_calibration_and_intervals(corpus, tmp_path):
    lines = (corpus / "trials.txt").read_text().splitlines(keepends=True)
    (tmp_path / "half.txt").write_text("".join(lines[::2]))
    words = words_of(
        *(corpus, tmp_path / "out", *backend_words(corpus), "--calibration=null"),
        f"--trial_lists=[{tmp_path}/half.txt,{corpus}/trials.txt]",
        "--n_resamples=0",
    )
    results, _ = verify(words, tmp_path)
    assert [result["trials"] for result in results["lists"]] == [33, 66]
    for result in results["lists"]:
        assert [row["system"] for row in result["systems"]] == SYSTEMS[:2]
        assert not any("intervals_95" in row for row in result["systems"])
    scores = [
        read_score_table(tmp_path / f"out/scores_{name}_as_norm.npz")[1]
        for name in ("half", "trials")
    ]
    # another number of trials and embeddings: float32 products of other shapes, right
    # to 1e-6, over deviations of cohort scores, of 0.01 or more
    assert scores[1].std() > 0.1
    np.testing.assert_allclose(scores[0], scores[1][::2], rtol=1e-5, atol=1e-4)
    names = {f"det_{name}.png" for name in ("half", "trials")}
    assert names <= set(files_of(tmp_path / "out"))


# ---- models of several recordings ----------------------------------------------------


@pytest.fixture
def enrolment(corpus, tmp_path):
    """Four models of two recordings each, against the third ones."""
    models = [
        f"m{s} id{s:02d}/s0/00000.wav id{s:02d}/s1/00001.wav\n" for s in range(6, 10)
    ]
    (tmp_path / "enroll.lst").write_text("".join(models))
    (tmp_path / "trials.lst").write_text(
        "".join(
            f"m{a} id{b:02d}/s0/00002.wav {'target' if a == b else 'nontarget'}\n"
            for a in range(6, 10)
            for b in range(6, 10)
        )
    )
    lists = f"--trial_lists={tmp_path}/trials.lst"
    return lists, f"--enrol_map={tmp_path}/enroll.lst"


def test_both_enrolments_are_labelled(corpus, tmp_path, enrolment):
    out = tmp_path / "out"
    more = [*enrolment, "--enrolment=[average,concatenate]", *backend_words(corpus)]
    results, _ = verify(words_of(corpus, out, *more), tmp_path)
    assert [r["enrolment"] for r in results["lists"]] == ["average", "concatenate"]
    assert [len(r["systems"]) for r in results["lists"]] == [3, 3]
    for result in results["lists"]:
        # the map and the manifest tell the speakers of models that names do not
        assert "intervals_95" in result["systems"][0]
    page = (out / "results.md").read_text()
    for protocol in ("average", "concatenate"):
        assert f"| trials.lst (16, enrolment: {protocol}) | AS-norm + QMF | " in page
    vectors = by_id(out / "embeddings.npz")
    enrol_map = read_enrol_map(tmp_path / "enroll.lst")
    names, means = average_enrolment(
        enrol_map, list(vectors), np.array(list(vectors.values())), "e"
    )
    models = {
        "average": dict(zip(names.tolist(), means, strict=True)),
        "concatenate": by_id(out / "enrolment_embeddings.npz"),
    }
    found = {}
    for protocol, enrol in models.items():
        file = out / f"scores_trials_{protocol}_cosine.npz"
        trials, found[protocol] = read_score_table(file)
        expected = cosines(vectors, trials, enrol)
        np.testing.assert_allclose(found[protocol], expected, atol=1e-6)
        assert (out / f"det_trials_{protocol}.png").exists()
    assert not np.allclose(*found.values(), atol=1e-4)


def test_one_enrolment_by_its_name(corpus, tmp_path, enrolment):
    words = words_of(corpus, tmp_path / "out", *enrolment, "--enrolment=concatenate")
    results, _ = verify(words, tmp_path)
    assert [r["enrolment"] for r in results["lists"]] == ["concatenate"]


# ---- stopped, continued, shared ------------------------------------------------------


def _killed_at_batch(number, *words):
    """verify.py that saves every batch and is killed before batch ``number``."""
    calls = iter(range(1000))

    def hook(model, inputs):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def load(folder, **options):
        hparams, chunking = load_encoder(folder, **options)
        hparams["speaker_encoder"].register_forward_pre_hook(hook)
        return hparams, chunking

    verification.load_encoder = load
    verification.embed_to_file = functools.partial(embed_to_file, save_every=0)
    run_script("verify", *words)


def scores_of(out):
    return {path.name: path.read_bytes() for path in out.glob("scores_*.npz")}


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    """Scores and figures of an unbroken run, in batches of two recordings."""
    folder = tmp_path_factory.mktemp("unbroken")
    words = words_of(corpus, folder / "out", *backend_words(corpus), *SMALL)
    results, _ = verify(words, folder)
    return scores_of(folder / "out"), figures(results)


SMALL = ["--max_batch_seconds=2"]  # 6, 8 and 8 batches of two recordings of 0.7 s


def figures(results):
    return [result["systems"] for result in results["lists"]]


@pytest.mark.parametrize("batch", [3, 10, 19])
def test_killed_and_continued(corpus, tmp_path, unbroken, batch):
    """In the extraction of the test, of the cohort's recordings and of the others."""
    out = tmp_path / "out"
    words = words_of(corpus, out, *backend_words(corpus), *SMALL)
    process = start(_killed_at_batch, batch, *words, stderr=tmp_path / "stderr")
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
    assert not (out / "results.json").exists()
    results, log = verify(words, tmp_path)
    assert scores_of(out) == unbroken[0]
    assert figures(results) == unbroken[1]
    assert not list(out.glob("*.parts-*"))
    begun, finished = {3: ("6 of 12", 0), 10: ("8 of 15", 1), 19: ("10 of 15", 2)}[
        batch
    ]
    assert f"{begun} recordings were embedded before" in log
    assert log.count("embeddings.npz: was finished") == finished


def test_two_processes_give_the_scores_of_one(corpus, tmp_path, unbroken, enrolment):
    out = tmp_path / "out"
    words = words_of(corpus, out, *backend_words(corpus), *SMALL, "--device=cpu")
    codes, errors = run_on_two("verify", words, tmp_path)
    assert codes == [0, 0], errors
    assert scores_of(out) == unbroken[0]
    assert figures(json.loads((out / "results.json").read_text())) == unbroken[1]
    # models of joined recordings, and embeddings of an earlier run
    more = [*enrolment, "--enrolment=[average,concatenate]"]
    words = words_of(corpus, tmp_path / "m", *more, "--device=cpu")
    codes, errors = run_on_two("verify", words, tmp_path)
    assert codes == [0, 0], errors
    words = words_of(corpus, tmp_path / "one", *more)
    verify(words, tmp_path)
    assert scores_of(tmp_path / "m") == scores_of(tmp_path / "one")
    given = [f"--embeddings={tmp_path}/m/embeddings.npz", "--device=cpu"]
    words = words_of(corpus, tmp_path / "given", *more, *given)
    codes, errors = run_on_two("verify", words, tmp_path)
    assert codes == [0, 0], errors
    assert scores_of(tmp_path / "given") == scores_of(tmp_path / "one")
