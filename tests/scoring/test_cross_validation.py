"""λ by cross-validation: folds of speakers, and the λ that new speakers ask for."""

import numpy as np
import pytest

from speechbrain_ext.scoring.calibration.cross_validation import (
    FOLDS,
    GRID,
    choose_l2,
    deal_trials,
    held_out_ratios,
    make_calibrator,
)
from speechbrain_ext.scoring.metrics import cllr
from speechbrain_ext.utils.errors import InputError

N_NOISE = 30


def trials_of(n_speakers, per_pair, seed=0):
    """A score, features that tell a speaker's pair and nothing else, labels, speakers.

    Each pair of speakers (or speaker with itself) has features of its own that its
    trials share: a calibrator learns them by heart, and knows nothing of new speakers.
    """
    random = np.random.default_rng(seed)
    pairs = np.stack(np.triu_indices(n_speakers), axis=1)
    pairs = pairs[random.permutation(len(pairs))]
    same = np.repeat(pairs[:, 0] == pairs[:, 1], per_pair)
    noise = np.repeat(random.standard_normal((len(pairs), N_NOISE)), per_pair, axis=0)
    scores = random.standard_normal(len(same)) + 2 * same
    features = np.column_stack((scores, noise))
    return features, same.astype(np.int8), np.repeat(pairs, per_pair, axis=0)


def test_few_speakers_want_a_large_l2():
    """Without it they cost a multiple, of many speakers a quarter more."""
    excess = {}
    for n_speakers, per_pair in ((6, 20), (60, 2)):
        chosen, costs = choose_l2(*trials_of(n_speakers, per_pair))
        assert list(costs) == list(GRID)
        assert chosen >= 0.01
        excess[n_speakers] = costs[GRID[0]] / costs[chosen]
    assert excess[6] > 3
    assert 1.1 < excess[60] < 1.5


def test_a_quality_that_matters_wants_a_small_one():
    random = np.random.default_rng(0)
    _, labels, speakers = trials_of(60, 2)
    quality = random.standard_normal(len(labels))
    scores = random.standard_normal(len(labels)) + 4 * labels + 3 * quality
    features = np.column_stack((scores, quality))
    chosen, costs = choose_l2(features, labels, speakers)
    assert chosen <= 1e-3
    assert costs[GRID[-1]] > 2 * costs[chosen]


def test_what_is_chosen_serves_speakers_that_nobody_has_seen():
    features, labels, speakers = trials_of(6, 20)
    new_features, new_labels, _ = trials_of(30, 2, seed=1)
    costs = {}
    for l2 in GRID:
        calibrator = make_calibrator(l2).fit(features, labels)
        ratios = calibrator.log_likelihood_ratio(new_features)
        costs[l2] = cllr(ratios, new_labels).cllr
    chosen, _ = choose_l2(features, labels, speakers)
    assert costs[chosen] < 1.2 * min(costs.values())
    assert costs[GRID[0]] > 2 * costs[chosen]


def test_the_cost_is_that_of_all_tried_trials():
    """Against a plain loop."""
    features, labels, speakers = trials_of(8, 3)
    folds = deal_trials(labels, speakers, seed=4)
    ratios, tried = [], []
    for inside in folds:
        calibrator = make_calibrator(GRID[2], objective="cross_entropy")
        calibrator.fit(features[~inside], labels[~inside])
        for row in np.flatnonzero(inside):
            ratios += calibrator.log_likelihood_ratio(features[row : row + 1]).tolist()
            tried.append(labels[row])
    _, costs = choose_l2(features, labels, speakers, "cross_entropy", seed=4)
    assert costs[GRID[2]] == pytest.approx(cllr(ratios, tried).cllr, rel=1e-9)


def test_the_largest_l2_within_a_standard_error_is_taken():
    features, labels, speakers = trials_of(12, 3)
    folds = deal_trials(labels, speakers, seed=2)
    chosen, costs = choose_l2(features, labels, speakers, seed=2)
    lowest = min(costs, key=costs.get)
    tried = []
    for inside in folds:
        calibrator = make_calibrator(lowest).fit(features[~inside], labels[~inside])
        ratios = calibrator.log_likelihood_ratio(features[inside])
        tried.append((ratios, labels[inside]))
    without = []
    for left_out in range(len(folds)):
        rest = [part for fold, part in enumerate(tried) if fold != left_out]
        ratios, labels_ = (np.concatenate(column) for column in zip(*rest))
        without.append(cllr(ratios, labels_).cllr)
    n = len(folds)
    error = np.sqrt((n - 1) / n * np.sum((np.array(without) - np.mean(without)) ** 2))
    assert chosen > lowest
    assert costs[chosen] <= costs[lowest] + error
    assert all(costs[l2] > costs[lowest] + error for l2 in costs if l2 > chosen)


def test_qualities_are_held_back_more_than_the_score():
    features, labels, _ = trials_of(12, 3)
    plain = make_calibrator(1e-4).fit(features, labels).weights
    held = make_calibrator(1e-2).fit(features, labels).weights
    assert held[0] > 0.5 * plain[0]
    assert np.abs(held[1:]).sum() < 0.1 * np.abs(plain[1:]).sum()


@pytest.mark.parametrize("n_speakers", [4, 5, 6, 7, 23])
def test_nobody_of_a_fold_is_fitted_on(n_speakers):
    _, labels, speakers = trials_of(n_speakers, 2)
    folds = deal_trials(labels, speakers)
    assert len(folds) == min(FOLDS, n_speakers)
    assert np.sum(folds, axis=0).max() <= 2
    assert np.all(np.sum(folds, axis=0) >= 1)
    owners = []
    for inside in folds:
        # Target trials hold one speaker: those inside are the fold's.
        mine = set(speakers[inside & (labels == 1)].ravel().tolist())
        assert not mine & set(speakers[~inside].ravel().tolist())
        assert all(mine & set(pair) for pair in speakers[inside].tolist())
        owners.append(mine)
    assert sorted(name for mine in owners for name in mine) == list(range(n_speakers))
    sizes = [len(mine) for mine in owners]
    assert max(sizes) - min(sizes) <= 1


def test_the_seed_deals_and_names_are_as_good_as_numbers():
    _, labels, speakers = trials_of(12, 2)
    one, again, other = (deal_trials(labels, speakers, seed) for seed in (1, 1, 2))
    assert all(map(np.array_equal, one, again))
    assert not all(map(np.array_equal, one, other))
    named = deal_trials(
        labels, np.char.add("id", np.char.zfill(speakers.astype(str), 2)), 1
    )
    assert all(map(np.array_equal, one, named))


@pytest.mark.parametrize(
    ("speakers", "labels", "message"),
    [
        ([[0, 0], [0, 1]], [1, 0], "trials of 2 speakers, expected at least 3"),
        # Without speaker 0 no target is left.
        (
            [[0, 0], [0, 1], [1, 2], [0, 2]],
            [1, 0, 0, 0],
            "trials of 3 speakers: 0 targets and 1 non-targets are left without",
        ),
        # Without any of them no non-target is left.
        (
            [[0, 0], [1, 1], [2, 2], [0, 1]],
            [1, 1, 1, 0],
            "trials of 3 speakers: 2 targets and 0 non-targets",
        ),
    ],
)
def test_too_few(speakers, labels, message):
    with pytest.raises(InputError, match=message):
        choose_l2(np.zeros((len(labels), 2)), np.array(labels), np.array(speakers))


def test_held_out_ratios_are_of_calibrators_without_the_speaker():
    """Each trial by hand: the mean over the folds of its two speakers."""
    features, labels, speakers = trials_of(9, 4)
    found = held_out_ratios(features, labels, speakers, 0.01)
    folds = deal_trials(labels, speakers)
    for trial in range(0, len(labels), 7):
        ratios = []
        for inside in folds:
            if inside[trial]:
                calibrator = make_calibrator(0.01)
                calibrator.fit(features[~inside], labels[~inside])
                ratios += calibrator.log_likelihood_ratio(features[[trial]]).tolist()
        assert len(ratios) in (1, 2)
        assert found[trial] == pytest.approx(np.mean(ratios), rel=1e-9)
