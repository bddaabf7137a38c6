"""Validation speakers held out of training, and trials made from them.

The best checkpoint is chosen by the equal error rate on trials between speakers whom
training never heard. Choosing it on the test lists would fit the test, and choosing it
on training speakers would measure memory.

Of each speaker a few recordings are taken, spread over sessions. Half of the trials
are target trials, across sessions as far as there are such pairs: two cuts of one
recording session share microphone and room, and are too easy.
"""

from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from speechbrain_ext.utils.errors import InputError


class Pairs(NamedTuple):
    """Trials as row numbers: labels, enrol and test, int [T] each."""

    labels: np.ndarray
    enrol: np.ndarray
    test: np.ndarray


def hold_out(speakers, sessions, n_speakers, max_utterances, seed):
    """Draw validation speakers and some recordings of each.

    Of N recordings in an order that does not depend on the disk, with their speakers
    and sessions (unique over speakers). Drawn from are speakers of two recordings or
    more; those of two sessions come first, all others only where these are too few. At
    most ``max_utterances`` of each are taken, from its sessions in turn. → bool [N],
    recordings of all other speakers; int64 [V], ascending rows of those drawn.
    InputError: too few speakers to hold out that many, or to train on the rest.
    """
    speakers = np.asarray(speakers, dtype=object)
    if n_speakers == 0:
        return np.ones(len(speakers), dtype=bool), np.zeros(0, dtype=np.int64)
    rows = _rows_by_session(speakers, sessions)
    held_out = _draw_speakers(rows, n_speakers, np.random.default_rng([seed, 0]))
    rng = np.random.default_rng([seed, 1])
    chosen = [_spread(rows[name], max_utterances, rng) for name in held_out]
    is_training = np.ones(len(speakers), dtype=bool)
    for name in held_out:
        for session in rows[name].values():
            is_training[session] = False
    return is_training, np.sort(np.concatenate(chosen))


def draw_trials(speakers, sessions, n_trials, seed):
    """Pairs of V recordings, half of them target, no pair twice and none mirrored.

    At most ``n_trials``, fewer where there are not enough pairs of either kind; rows
    are ascending, enrol < test.
    """
    rng = np.random.default_rng([seed, 2])
    speakers = np.unique(speakers, return_inverse=True)[1]
    sessions = np.unique(sessions, return_inverse=True)[1]
    enrol, test = _target_pairs(speakers)
    total = len(speakers) * (len(speakers) - 1) // 2
    n_each = min(n_trials // 2, len(enrol), total - len(enrol))
    # Pairs within a session come last, whatever their draw.
    order = np.lexsort((rng.random(len(enrol)), sessions[enrol] == sessions[test]))
    kept = order[:n_each]
    targets = enrol[kept] * len(speakers) + test[kept]
    keys = np.concatenate([targets, _non_target_keys(speakers, n_each, rng)])
    keys.sort()
    enrol, test = np.divmod(keys, max(len(speakers), 1))
    return Pairs((speakers[enrol] == speakers[test]).astype(np.int64), enrol, test)


def _rows_by_session(speakers, sessions):
    """Speaker → session → rows."""
    rows = {}
    for row, (speaker, session) in enumerate(zip(speakers, sessions)):
        rows.setdefault(speaker, {}).setdefault(session, []).append(row)
    return rows


def _draw_speakers(rows, n_speakers, rng):
    eligible = [s for s in sorted(rows) if sum(map(len, rows[s].values())) >= 2]
    if n_speakers >= len(eligible):
        raise InputError(
            f"n_valid_speakers={n_speakers}, expected fewer than the {len(eligible)} "
            "training speakers with two recordings or more"
        )
    if len(rows) - n_speakers < 2:
        raise InputError(
            f"n_valid_speakers={n_speakers} leaves {len(rows) - n_speakers} of "
            f"{len(rows)} speakers for training, expected at least 2"
        )
    several = [s for s in eligible if len(rows[s]) >= 2]
    single = [s for s in eligible if len(rows[s]) < 2]
    order = [several[i] for i in rng.permutation(len(several))]
    order += [single[i] for i in rng.permutation(len(single))]
    return sorted(order[:n_speakers])


def _spread(by_session, max_utterances, rng):
    """One recording of each session in turn, in drawn order."""
    sessions = [rng.permutation(by_session[name]) for name in sorted(by_session)]
    sessions = [sessions[i] for i in rng.permutation(len(sessions))]
    rounds = zip_longest(*sessions)
    in_turn = [row for one_round in rounds for row in one_round if row is not None]
    return np.array(in_turn[:max_utterances], dtype=np.int64)


def _target_pairs(speakers):
    """All pairs of one speaker, lower row first: two int64 [P]."""
    pairs = [np.zeros((2, 0), dtype=np.int64)]
    for number in range(speakers.max(initial=-1) + 1):
        rows = np.flatnonzero(speakers == number)
        pairs.append(rows[np.stack(np.triu_indices(len(rows), 1))])
    return np.concatenate(pairs, axis=1)


def _non_target_keys(speakers, count, rng):
    """``count`` different pairs of two speakers, as low × V + high.

    Drawn and drawn again rather than listed: a thousand speakers have 50 million.
    """
    n_rows, keys = len(speakers), np.zeros(0, dtype=np.int64)
    while len(keys) < count:
        pairs = np.sort(rng.integers(n_rows, size=(2 * count, 2)), axis=1)
        differ = speakers[pairs[:, 0]] != speakers[pairs[:, 1]]
        drawn = pairs[differ, 0] * n_rows + pairs[differ, 1]
        keys = np.unique(np.concatenate([keys, drawn]))
    return rng.choice(keys, count, replace=False)


def split(options, manifest, left_out):
    """Training and validation, without a speaker in both.

    ``manifest`` has N usable recordings and a column ``session``; ``too_short`` is
    added to ``left_out``. → training, validation, and Pairs of rows of the latter; two
    None where no speakers are to be held out. InputError as :func:`hold_out`.
    """
    long_enough = manifest.durations >= options.min_seconds
    left_out["too_short"] = int(np.sum(~long_enough))
    manifest = manifest.select(long_enough)
    if len(manifest.speaker_names) < 2:
        raise InputError(
            f"{len(manifest.speaker_names)} training speakers are left, expected at "
            f"least 2 (left out: {left_out})"
        )
    columns = manifest.speakers.tolist(), manifest.extra["session"].tolist()
    is_training, chosen = hold_out(
        *columns, options.n_valid_speakers, options.max_valid_utterances, options.seed
    )
    train = manifest.select(is_training)
    if not len(chosen):
        return train, None, None
    valid = manifest.select(chosen)
    columns = valid.speakers.tolist(), valid.extra["session"].tolist()
    pairs = draw_trials(*columns, options.n_valid_trials, options.seed)
    if not pairs.labels.any():
        raise InputError(
            f"no validation trials between {len(valid)} recordings of "
            f"{len(valid.speaker_names)} speakers, expected some"
        )
    return train, valid, pairs
