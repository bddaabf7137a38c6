"""What verify.py is given of a back-end: what is wrong with it is one line that names
it, before anything is embedded."""

import numpy as np
import pytest
from recipe_scripts import data_words, run
from test_bad_input import check, corpus, good
from tiny_training import manifest_of

from speechbrain_ext.data.manifest import write_manifest
from speechbrain_ext.scoring.backend import input_names
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.cohort import save_cohort, speaker_means
from speechbrain_ext.scoring.embeddings import save_embeddings

__all__ = ["corpus", "good"]  # fixtures

YAML = "hparams/verify.yaml"
TRAIN = "--training_manifest={c}/train.csv"
NO_MODEL = "--pretrained_folder="


@pytest.fixture
def files(corpus):
    """Of an earlier run with another model: embeddings of 7 values, not of 16."""
    write_manifest(corpus / "train.csv", manifest_of(corpus, range(6)))
    random = np.random.default_rng(0)
    vectors = random.standard_normal((9, 7)).astype(np.float32)
    names = [f"c{k}" for k in range(9)]
    save_cohort(corpus / "cohort.npz", speaker_means(vectors, np.array(names)))
    ids = [f"id{s:02d}/s{t % 2}/{t:05d}" for s in (6, 7) for t in range(3)]
    save_embeddings(corpus / "six.npz", ids, vectors[:6])
    save_embeddings(corpus / "five.npz", ids[:5], vectors[:5])
    inputs = input_names(with_durations=True, with_cohort=True, top_n=300)
    features = random.standard_normal((20, len(inputs)))
    calibrator = QualityCalibrator(inputs).fit(features, np.arange(20) % 2)
    calibrator.save(corpus / "calibration.json")
    (corpus / "same.txt").write_text("1 id06/s0/00000 id06/s1/00001\n")
    (corpus / "map").write_text("m id06/s0/00000\nm id06/s1/00001\n")
    (corpus / "good_map").write_text("m id06/s0/00000\n")
    return corpus


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--trial_lists=[]"], "trial_lists: [], expected one file, or [several]"),
        (["--trial_lists={c}/same.txt"], "{c}/same.txt: 1 targets and 0 non-targets"),
        (["--n_resamples=1"], "n_resamples: 1, expected 0 or at least 2"),
        (["--enrolment=[]"], "enrolment: [], expected some of average, concatenate"),
        (["--enrolment=averag"], "enrolment: 'averag', expected some of average, conc"),
        (["--enrol_map={c}/map"], "{c}/map: line 2: model 'm' again"),
        ([NO_MODEL], "pretrained_folder is not given, expected a model"),
        (
            [NO_MODEL, "--embeddings={c}/six.npz", TRAIN, "--backend.top_n=3"],
            "a model to embed the recordi",
        ),
        (
            [NO_MODEL, "--embeddings={c}/six.npz", "--enrol_map={c}/good_map"]
            + ["--enrolment=concatenate"],
            "or --embeddings=… without concatenation",
        ),
        (["--embeddings={c}/no.npz"], "{c}/no.npz: No such file"),
        (
            [NO_MODEL, "--embeddings={c}/five.npz"],
            "five.npz: no embedding of 'id07/s0/0",
        ),
        (
            ["--embeddings={c}/six.npz"],
            "{c}/six.npz: embeddings of 7 values, expected 16",
        ),
        (["--cohort=3"], "cohort: 3, expected"),
        (["--cohort={c}/no.npz"], "{c}/no.npz: No such file"),
        (
            ["--cohort={c}/cohort.npz"],
            "{c}/cohort.npz: cohort of 9 speakers, expected a",
        ),
        (
            ["--cohort={c}/cohort.npz", "--backend.top_n=5"],
            "{c}/final: embeddings of 16 values and a cohort of 7, expected as many",
        ),
        (
            ["--calibrator={c}/tiny.json"],
            "{c}/tiny.json: no format, expected",
        ),
        (
            ["--calibrator={c}/calibration.json"],
            "{c}/calibration.json: calibrates as_norm_300",
        ),
        (["--training_manifest={c}/no.csv"], "{c}/no.csv: No such file"),
        ([TRAIN], "{c}/train.csv: cohort of 5 speakers besides that of an utterance"),
        ([TRAIN, "--backend.top_n=6"], "{c}/train.csv: cohort of 5 speakers besides"),
        ([TRAIN, "--max_utterances=0"], "max_utterances: 0, expected"),
        ([TRAIN, "--backend={{top: 3}}"], "backend: Backend takes no 'top'"),
        (
            [TRAIN, "--calibration.n_trials=5"],
            "train.csv: n_trials is 5, expected at l",
        ),
        (
            [TRAIN, "--calibration.objective=eer"],
            "train.csv: objective 'eer', expected",
        ),
    ],
)
def test_refused_before_anything_is_embedded(files, more, expected):
    short = ["--calibration.shortest=0.1"]  # the recordings last 0.7 s
    check("verify", files, YAML, expected, *short, *(w.format(c=files) for w in more))
    assert not list((files / "out").glob("*.npz*"))


def test_a_recording_of_the_manifest_is_gone(files):
    (files / "voices/wav/id04/s1/00003.wav").unlink()
    expected = "{c}/train.csv: {c}/voices/wav/id04/s1/00003.wav: no such file"
    more = [TRAIN.format(c=files), "--backend.top_n=5", "--calibration.shortest=0.1"]
    check("verify", files, YAML, expected, *more)
    assert not list((files / "out").glob("*.npz*"))


def test_two_test_speakers_have_no_intervals_but_a_report(files):
    words = [
        *(YAML, *data_words(files)[1:3], "--num_workers=0", "--noprogressbar"),
        *(f"--pretrained_folder={files}/final", f"--output_folder={files}/out"),
    ]
    code, lines = run("verify", words, files / "stderr")
    assert code == 0, lines
    log = (files / "out/log.txt").read_text()
    assert "trials.txt: 2 speakers, 3 are needed for bootstrap intervals" in log
    assert "findfont" not in log  # hundreds of lines about fonts
