"""The trial list: half target pairs across sessions, half impostors.

VoxCeleb's format, one trial a line: ``label enrol test``, label 1 for the same speaker.
"""

import itertools

import numpy as np


def make_trials(speakers, most, rng):
    """Draw a balanced list.

    Target pairs never share a session, so that a system cannot win by recognising the
    channel. Half of the impostors have the sex of the speaker, where the corpus has
    such pairs. No pair comes twice, in either order.

    Arguments
    ---------
    speakers : dict
        Speaker name → (sex, list of sessions, each a list of utterance names).
    most : int
        Trials in all, at most; fewer where there are not enough pairs.
    rng : np.random.Generator
        Decides which pairs, their direction, and the order of the list.

    Returns
    -------
    list of tuple
        (label, enrol, test) as (int, str, str).
    """
    targets = [
        block
        for _, sessions in speakers.values()
        for block in itertools.combinations(sessions, 2)
    ]
    same, other = _impostors(speakers)
    count = min(most // 2, _pairs(targets), _pairs(same) + _pairs(other))
    of_same = min(_pairs(same), max(count // 2, count - _pairs(other)))
    trials = [(1, *pair) for pair in _draw(targets, count, rng)]
    trials += [(0, *pair) for pair in _draw(same, of_same, rng)]
    trials += [(0, *pair) for pair in _draw(other, count - of_same, rng)]
    return [
        (label, b, a) if rng.random() < 0.5 else (label, a, b)
        for label, a, b in (trials[i] for i in rng.permutation(len(trials)))
    ]


def _impostors(speakers):
    """Blocks of two speakers of one sex, and of two speakers of both."""
    said = [
        (sex, list(itertools.chain(*sessions))) for sex, sessions in speakers.values()
    ]
    same, other = [], []
    for (sex, one), (its, two) in itertools.combinations(said, 2):
        (same if sex == its else other).append((one, two))
    return same, other


def _pairs(blocks):
    """How many pairs (one of the first, one of the second) the blocks hold."""
    return sum(len(one) * len(two) for one, two in blocks)


def _draw(blocks, count, rng):
    """Draw pairs by their number, for there may be millions: 0 to _pairs - 1."""
    ends = np.cumsum([len(one) * len(two) for one, two in blocks])
    pairs = []
    for number in rng.choice(_pairs(blocks), count, replace=False) if count else ():
        block = int(np.searchsorted(ends, number, side="right"))
        one, two = blocks[block]
        row, column = divmod(int(ends[block] - 1 - number), len(two))
        pairs.append((one[row], two[column]))
    return pairs
