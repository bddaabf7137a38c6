"""λ by cross-validation: folds of speakers, and the λ that new speakers ask for."""

import numpy as np
import pytest

from speechbrain_ext.errors import InputError
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.cross_validation import (
    FOLDS,
    GRID,
    choose_l2,
    deal_trials,
)
from speechbrain_ext.scoring.metrics import cllr

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


def test_few_speakers_want_a_larger_l2_than_many():
    chosen, found = {}, {}
    for n_speakers in (6, 60):
        data = trials_of(n_speakers, per_pair=20 if n_speakers == 6 else 2)
        chosen[n_speakers], costs = choose_l2(*data)
        assert list(costs) == list(GRID)
        assert costs[chosen[n_speakers]] == min(costs.values())
        found[n_speakers] = costs
    assert chosen[6] > chosen[60]
    assert found[6][GRID[0]] > 1.5 * found[6][chosen[6]]


def test_what_is_chosen_serves_speakers_that_nobody_has_seen():
    features, labels, speakers = trials_of(6, 20)
    new_features, new_labels, _ = trials_of(30, 2, seed=1)
    costs = {}
    for l2 in GRID:
        calibrator = QualityCalibrator(l2=l2).fit(features, labels)
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
        calibrator = QualityCalibrator(objective="cross_entropy", l2=GRID[2])
        calibrator.fit(features[~inside], labels[~inside])
        for row in np.flatnonzero(inside):
            ratios += calibrator.log_likelihood_ratio(features[row : row + 1]).tolist()
            tried.append(labels[row])
    _, costs = choose_l2(features, labels, speakers, "cross_entropy", seed=4)
    assert costs[GRID[2]] == pytest.approx(cllr(ratios, tried).cllr, rel=1e-9)


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
