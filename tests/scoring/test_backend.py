"""The back-end's steps are those of its parts, taken by hand."""

import numpy as np
import pytest

from speechbrain_ext.scoring import backend as module
from speechbrain_ext.scoring.backend import (
    Backend,
    TrialSide,
    fit_calibrator,
    input_names,
)
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.calibration.cross_validation import (
    choose_l2,
    make_calibrator,
)
from speechbrain_ext.scoring.calibration.quality import (
    QualityFeatures,
    quality_features,
)
from speechbrain_ext.scoring.calibration.trials import (
    CalibrationTrials,
    draw_calibration_trials,
)
from speechbrain_ext.scoring.cohort import Cohort, speaker_means
from speechbrain_ext.scoring.embeddings import cosine_scores
from speechbrain_ext.scoring.normalization import as_norm, cohort_statistics, s_norm
from speechbrain_ext.utils.errors import InputError

SIZE, N_SPEAKERS, TOP_N = 8, 12, 5

# A float32 cosine of two unit vectors is right to a few eps, whose size the kernel and
# the shapes of the product choose; AS-norm divides its error, in the score and in the
# cohort's mean, by a deviation: 0.022 at least for these vectors. |AS-norm| is below
# 25, that is 25 times as much again of the deviation's own error.
EPS = float(np.finfo(np.float32).eps)
COSINE = 4 * EPS  # 5e-7
AS_NORM = (2 + 25) * COSINE / 0.022  # 6e-4


def tolerance(name):
    """Of a score, or of an input of the calibration, by its name."""
    if name.startswith(("as_norm", "s_norm")):
        return AS_NORM
    if name.startswith("cohort_mean"):
        return 4 * COSINE  # a ratio is one of means of 0.25 or more
    return COSINE


def assert_close(found, expected):
    """Scores by name, or QualityFeatures: equal but for the rounding of products."""
    if isinstance(found, QualityFeatures):
        assert found.names == expected.names
        found, expected = (
            dict(zip(names, values.T)) for names, values in (found, expected)
        )
    assert list(found) == list(expected)
    for name, values in found.items():
        np.testing.assert_allclose(
            values, expected[name], rtol=EPS, atol=tolerance(name), err_msg=name
        )


def voices(seed, n_speakers=N_SPEAKERS, each=6, prefix="s"):
    """Embeddings off the origin, their durations and speakers."""
    random = np.random.default_rng(seed)
    speakers = np.repeat(np.arange(n_speakers), each)
    centres = random.standard_normal((n_speakers, SIZE))
    noise = random.standard_normal((len(speakers), SIZE))
    vectors = (centres[speakers] + 0.5 * noise + 1).astype(np.float32)
    durations = random.uniform(2, 12, len(speakers))
    return TrialSide(vectors, durations), np.array([f"{prefix}{s}" for s in speakers])


def some_trials(n_enrol, n_test, size=200):
    random = np.random.default_rng(1)
    sides = random.integers(0, n_enrol, size), random.integers(0, n_test, size)
    return np.stack(sides, axis=1)


@pytest.fixture(scope="module")
def cohort():
    side, speakers = voices(7, n_speakers=20, prefix="c")
    return speaker_means(side.vectors, speakers)


@pytest.fixture(scope="module")
def sides():
    """Two sides of their own, and trials between them."""
    enrol, test = voices(2)[0], voices(3, each=4)[0]
    return enrol, test, some_trials(len(enrol.vectors), len(test.vectors))


def by_hand(enrol, test, trials, cohort=None, top_n=TOP_N):
    """The last score before calibration, and its inputs, from the parts."""
    a, b = trials.T
    scores = cosine_scores(enrol.vectors, a, b, test_vectors=test.vectors)
    norms = [
        np.linalg.norm(side.vectors.astype(float), axis=1) for side in (enrol, test)
    ]
    measures = {"duration": (enrol.durations[a], test.durations[b])}
    measures["magnitude"] = norms[0][a], norms[1][b]
    if cohort is not None:
        centred = [
            x - cohort.mean for x in (enrol.vectors, test.vectors, cohort.vectors)
        ]
        owns = [enrol.own, test.own]
        scores = as_norm(*centred, trials, top_n, *owns)
        means = [
            cohort_statistics(x, centred[2], top_n, own).mean
            for x, own in zip(centred[:2], owns)
        ]
        measures["cohort_mean"] = means[0][a], means[1][b]
    names, values = quality_features(scores, measures)
    names[0] = "cosine" if cohort is None else f"as_norm_{top_n}"
    return scores, QualityFeatures(names, values)


# ---- scores --------------------------------------------------------------------------


def test_without_anything_it_is_the_cosine(sides):
    scores = Backend().scores(*sides)
    assert list(scores) == ["cosine"]
    assert_close(scores, {"cosine": by_hand(*sides)[0]})


def test_a_cohort_adds_as_norm_of_centred_vectors(sides, cohort):
    scores = Backend(cohort, top_n=TOP_N).scores(*sides)
    assert list(scores) == ["cosine", "as_norm"]
    parts = {"cosine": by_hand(*sides)[0], "as_norm": by_hand(*sides, cohort)[0]}
    assert_close(scores, parts)


def test_all_of_the_cohort_is_s_norm(sides, cohort):
    enrol, test, trials = sides
    backend = Backend(cohort, top_n=None)
    scores = backend.scores(*sides)
    assert list(scores) == ["cosine", "s_norm"]
    centred = [x - cohort.mean for x in (enrol.vectors, test.vectors, cohort.vectors)]
    parts = {"cosine": by_hand(*sides)[0], "s_norm": s_norm(*centred, trials)}
    assert_close(scores, parts)
    assert backend.features(*sides).names[0] == "s_norm"


def test_one_side_for_both_is_as_two_equal_ones(cohort):
    side = voices(2)[0]
    trials = some_trials(*[len(side.vectors)] * 2)
    backend = Backend(cohort, top_n=TOP_N)
    other = TrialSide(side.vectors.copy(), side.durations.copy())
    one, two = (backend.scores(side, x, trials) for x in (side, other))
    assert_close(one, two)
    assert_close(*(backend.features(side, x, trials) for x in (side, other)))


def test_own_speakers_are_left_out_where_they_are_given(sides, cohort):
    enrol, test, trials = sides
    own = np.arange(len(enrol.vectors)) % len(cohort.speakers)
    marked = enrol._replace(own=own)
    backend = Backend(cohort, top_n=TOP_N)
    scores = backend.scores(marked, test, trials)["as_norm"]
    expected = by_hand(marked, test, trials, cohort)[0]
    assert_close({"as_norm": scores}, {"as_norm": expected})
    assert not np.allclose(scores, by_hand(*sides, cohort)[0], atol=10 * AS_NORM)


@pytest.mark.parametrize("with_cohort", [False, True])
@pytest.mark.parametrize("block", [7, 10**6])
def test_a_calibrator_adds_the_likelihood_ratio(
    sides, cohort, monkeypatch, with_cohort, block
):
    monkeypatch.setattr(module, "BLOCK", block)  # 200 trials: a tail of 4
    cohort = cohort if with_cohort else None
    scores, (names, values) = by_hand(*sides, cohort)
    labels = (np.arange(len(scores)) % 3 == 0).astype(np.int8)
    calibrator = QualityCalibrator(names).fit(values, labels)
    found = Backend(cohort, calibrator, TOP_N).scores(*sides)
    assert list(found) == ["cosine", *["as_norm"] * with_cohort, "llr"]
    expected = calibrator.log_likelihood_ratio(values)
    assert found["llr"].dtype == np.float64
    # what the rounding of each input, times its weight, makes of the sum
    limit = np.abs(calibrator.weights) @ [tolerance(name) for name in names]
    assert limit < 0.01 * expected.std()
    np.testing.assert_allclose(found["llr"], expected, rtol=EPS, atol=limit)
    last = names[0].removesuffix(f"_{TOP_N}")
    assert_close({last: found[last]}, {last: scores})


@pytest.mark.parametrize("with_cohort", [False, True])
@pytest.mark.parametrize("with_durations", [False, True])
def test_the_names_of_the_inputs_are_known_beforehand(
    sides, cohort, with_cohort, with_durations
):
    enrol, test, trials = sides
    if not with_durations:
        test = test._replace(durations=None)
    backend = Backend(cohort if with_cohort else None, top_n=TOP_N)
    names, values = backend.features(enrol, test, trials)
    assert names == input_names(with_durations, with_cohort, TOP_N)
    assert names[0] == ("as_norm_5" if with_cohort else "cosine")
    assert values.shape == (len(trials), 1 + 4 * (1 + with_cohort + with_durations))


def test_features_are_those_of_the_parts(sides, cohort):
    found = Backend(cohort, top_n=TOP_N).features(*sides)
    assert_close(found, by_hand(*sides, cohort)[1])


def test_what_it_says_about_itself(sides, cohort):
    assert Backend().describe() == {}
    expected = {"cohort_speakers": 20, "top_n": TOP_N}
    assert Backend(cohort, top_n=TOP_N).describe() == expected
    _, (names, values) = by_hand(*sides)
    calibrator = QualityCalibrator(names, l2=0.1).fit(values, np.arange(200) % 5 == 0)
    assert Backend(calibrator=calibrator).describe() == {
        "calibration_objective": "cllr",
        "calibration_l2": 0.1,
        "calibration_n_target": 40,
        "calibration_n_nontarget": 160,
    }


# ---- fitting -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training():
    side, speakers = voices(5)
    return side, speakers, draw_calibration_trials(speakers, side.durations, 300)


def rows_of(trials):
    return np.stack([trials.enrol, trials.test], axis=1)


def test_fitting_without_a_cohort(training):
    side, speakers, trials = training
    fitted = fit_calibrator(Backend(), side, speakers, trials, "cross_entropy", 0.01)
    names, values = by_hand(side, side, rows_of(trials))[1]
    expected = make_calibrator(0.01, names, "cross_entropy")
    expected.fit(values, trials.labels)
    assert fitted.calibrator.names == names
    assert fitted.calibrator.objective == "cross_entropy"
    np.testing.assert_allclose(fitted.calibrator.weights, expected.weights, rtol=1e-5)
    assert fitted.cohort is None


def test_trials_that_are_turned_round_are_warned_of(training, caplog):
    side, speakers, trials = training
    turned = trials._replace(labels=1 - trials.labels)
    fit_calibrator(Backend(), side, speakers, trials, l2=0.01)
    assert not caplog.messages
    fit_calibrator(Backend(), side, speakers, turned, l2=0.01)
    assert caplog.messages[0].startswith("calibration: weight -")


def test_fitting_leaves_everybody_out_of_their_own_cohort(training):
    """The cohort holds others too, in an order of its own."""
    side, speakers, trials = training
    others, names = voices(6, prefix="x")
    vectors = np.concatenate((others.vectors, side.vectors))
    cohort = speaker_means(vectors, np.concatenate((names, speakers)))
    order = np.random.default_rng(0).permutation(len(cohort.speakers))
    cohort = Cohort(cohort.speakers[order], cohort.vectors[order], cohort.mean)
    backend = Backend(cohort, top_n=TOP_N)
    fitted = fit_calibrator(backend, side, speakers, trials, l2=1e-3)
    assert fitted.cohort is cohort
    row_of = {name: row for row, name in enumerate(cohort.speakers)}
    own = np.array([row_of[name] for name in speakers])
    weights = {}
    for name, marked in (("own", side._replace(own=own)), ("all", side)):
        columns, values = by_hand(marked, marked, rows_of(trials), cohort)[1]
        calibrator = make_calibrator(1e-3, columns).fit(values, trials.labels)
        weights[name] = calibrator.weights
    # inputs off by as much as tolerance() move no weight by more than 0.002 of itself
    np.testing.assert_allclose(fitted.calibrator.weights, weights["own"], rtol=3e-3)
    assert not np.allclose(weights["all"], weights["own"], rtol=0.05)


def test_l2_is_chosen_where_it_is_not_given(training):
    """By the objective that is fitted: unequal numbers of labels tell them apart."""
    side, speakers, _ = training
    trials = draw_calibration_trials(speakers, side.durations, 120, seed=2)
    target = trials.labels == 1
    kept = np.concatenate((np.flatnonzero(target)[::3], np.flatnonzero(~target)))
    trials = CalibrationTrials(*(column[kept] for column in trials))
    _, values = by_hand(side, side, rows_of(trials))[1]
    chosen = {}
    for objective in ("cllr", "cross_entropy"):
        fitted = fit_calibrator(Backend(), side, speakers, trials, objective)
        data = values, trials.labels, speakers[rows_of(trials)]
        chosen[objective], _ = choose_l2(*data, objective)
        assert fitted.calibrator.l2 == chosen[objective]
    assert chosen["cllr"] != chosen["cross_entropy"]


def test_names_of_variable_width_will_do(training):
    """As a manifest has them."""
    side, speakers, trials = training
    backend = Backend(speaker_means(side.vectors, speakers), top_n=TOP_N)
    texts = speakers.astype(np.dtypes.StringDType())
    one, two = (
        fit_calibrator(backend, side, names, trials).calibrator
        for names in (speakers, texts)
    )
    assert np.array_equal(one.weights, two.weights)
    assert one.l2 == two.l2


# ---- refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_n": 1}, "top_n is 1, expected a whole number of at least 2"),
        ({"top_n": 2.5}, "top_n is 2.5"),
        ({"top_n": True}, "top_n is True"),
        ({"memory_mib": 0}, "memory_mib is 0"),
        ({"top_n": 21}, r"cohort of 20 speakers, expected at least 21 \(top_n: 21\)"),
        ({}, r"cohort of 20 speakers, expected at least 300 \(top_n: 300\)"),
    ],
)
def test_settings(cohort, settings, message):
    with pytest.raises(InputError, match=message):
        Backend(cohort, **settings)


def test_a_cohort_of_one_for_s_norm(cohort):
    one = Cohort(cohort.speakers[:1], cohort.vectors[:1], cohort.mean)
    with pytest.raises(InputError, match="cohort of 1 speakers, expected at least 2"):
        Backend(one, top_n=None)


@pytest.mark.parametrize("width", [1, 7])
def test_a_cohort_of_another_width(sides, cohort, width):
    """Also of one value, which numpy would subtract from all."""
    narrow = Cohort(cohort.speakers, cohort.vectors[:, :width], cohort.mean[:width])
    backend = Backend(narrow, top_n=TOP_N)
    message = f"embeddings of 8 values and a cohort of {width}, expected as many"
    with pytest.raises(InputError, match=message):
        backend.scores(*sides)
    with pytest.raises(InputError, match=f"m.npz: {message}"):
        backend.check_width(8, "m.npz")
    backend.check_width(width, "m.npz")


def test_a_calibrator_of_other_inputs_is_refused_before_any_work(sides, cohort):
    enrol, test, trials = sides
    _, (names, values) = by_hand(*sides)
    calibrator = QualityCalibrator(names).fit(values, np.arange(200) % 5 == 0)
    nothing = np.full_like(enrol.vectors, np.nan)  # would be refused otherwise
    with pytest.raises(InputError, match=r"here are .*cohort_mean_ratio, expected the"):
        Backend(cohort, calibrator, TOP_N).scores(TrialSide(nothing), test, trials)
    message = r"takes cosine, duration_min.*; here are cosine, magnitude_min"
    with pytest.raises(InputError, match=message):
        Backend(None, calibrator).scores(TrialSide(nothing), test, trials)


@pytest.mark.parametrize("other", [TOP_N + 1, None])
def test_a_calibrator_of_another_normalisation_is_refused(sides, cohort, other):
    names, values = Backend(cohort, top_n=TOP_N).features(*sides)
    calibrator = QualityCalibrator(names).fit(values, np.arange(200) % 5 == 0)
    Backend(cohort, calibrator, TOP_N).scores(*sides)
    kind = "s_norm" if other is None else "as_norm_6"
    with pytest.raises(InputError, match=rf"takes as_norm_5, .*; here are {kind}, "):
        Backend(cohort, calibrator, other).scores(*sides)


def test_an_embedding_without_direction_is_named_by_its_row(sides):
    enrol, test, trials = sides
    vectors = enrol.vectors.copy()
    vectors[trials[0, 0]] = 0
    with pytest.raises(InputError, match=f"enrolment embedding in row {trials[0, 0]} "):
        Backend().scores(TrialSide(vectors), test, trials)


@pytest.mark.parametrize("with_cohort", [False, True])
@pytest.mark.parametrize("with_durations", [False, True])
def test_scores_of_all_are_those_of_every_pair(with_cohort, with_durations):
    """The matrix product against trials, all N · M of them."""
    side, speakers = voices(0)
    enrol, test = voices(1, 5)[0], voices(2, 3)[0]
    cohort = speaker_means(voices(3)[0].vectors, voices(3)[1]) if with_cohort else None
    backend = Backend(cohort, top_n=TOP_N)
    if not with_durations:
        side, enrol, test = (s._replace(durations=None) for s in (side, enrol, test))
    durations = voices(0)[0].durations
    trials = draw_calibration_trials(speakers, durations, 300)
    backend = fit_calibrator(backend, side, speakers, trials, l2=0.1)
    found = backend.scores_of_all(backend.prepare(enrol), backend.prepare(test))
    shape = len(enrol.vectors), len(test.vectors)
    pairs = np.indices(shape).reshape(2, -1).T
    expected = backend.scores(enrol, test, pairs)
    assert list(found) == list(expected)
    for name, values in found.items():
        assert values.shape == shape
        scale = 10 if name == "llr" else 1  # weights of the calibration
        np.testing.assert_allclose(
            values.ravel(),
            expected[name],
            rtol=1e-5,
            atol=scale * AS_NORM,
            err_msg=name,
        )


def test_scores_of_all_want_the_inputs_of_the_calibrator():
    side, speakers = voices(0)
    trials = draw_calibration_trials(speakers, side.durations, 300)
    backend = fit_calibrator(Backend(), side, speakers, trials, l2=0.1)
    bare = backend.prepare(side._replace(durations=None))
    with pytest.raises(InputError, match="durations or none"):
        backend.scores_of_all(backend.prepare(side), bare)
    with pytest.raises(InputError, match="embedding in row 2 has norm 0"):
        backend.prepare(TrialSide(side.vectors * (np.arange(72) != 2)[:, None]))
