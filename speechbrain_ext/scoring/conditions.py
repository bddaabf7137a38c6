"""Error rates by condition: which kinds of speech a system confuses.

A condition is whatever the names of a list fall into: the genre of CN-Celeb's
recordings, a codec, an attack. For every pair of an enrolment and a test condition, the
trials between the two have an error rate of their own, at a threshold of their own (as
Li et al., "CN-Celeb: multi-genre speaker recognition", Speech Communication 137, 2022,
report genres).

A rate of few errors means little. Doddington's rule of 30 (Doddington et al., "The NIST
speaker recognition evaluation - overview, methodology, systems, results, perspective",
Speech Communication 31, 2000): from 30 errors on, the true rate is within 30 % of the
one seen, with 90 % confidence, if trials are independent. At the equal error rate p
there are p N misses of N targets and p M false alarms of M non-targets: both count.
"""

import numpy as np

from speechbrain_ext.scoring.metrics import equal_error_rate
from speechbrain_ext.scoring.plots import draw_heat_map, save_figure
from speechbrain_ext.utils.errors import InputError

ALL, SEVERAL, UNKNOWN = "all", "several", "unknown"
ERRORS_WANTED = 30


def conditions_of(names, condition_of, enrol_map=None):
    """The condition of every name of a trial list, str [U].

    ``condition_of`` makes an utterance ID a condition or None. A model has that of the
    recordings in ``enrol_map``, ``several`` where these differ; ``unknown`` is where
    neither tells.
    """
    of_model = {}
    for model, ids in (enrol_map.utterances if enrol_map else {}).items():
        conditions = {condition_of(name) for name in ids}
        of_model[model] = conditions.pop() if len(conditions) == 1 else SEVERAL
    names = np.asarray(names).tolist()
    return np.array([of_model.get(n) or condition_of(n) or UNKNOWN for n in names])


def by_condition(trials, scores, conditions, kind="condition"):
    """Equal error rates of all pairs of conditions, of each of them, of all trials.

    Of T labelled trials, their scores [T] and the conditions str [U] of their names;
    ``kind`` is what a condition is, for titles and keys: ``genre``.

    → dict of ``kind``; ``enrol`` and ``test``: G and H conditions, sorted, and ``all``
    in the end; ``eer_percent``, ``targets``, ``nontargets``, ``enough``: G + 1 rows of
    H + 1 cells, enrolment against test. A cell without targets or without non-targets
    has no rate: None. ``same_KIND`` and ``other_KIND`` are single cells, as
    dictionaries of the four. InputError: no labels, or another number of conditions or
    scores than of names or trials.
    """
    if trials.labels is None:
        raise InputError(f"{trials.path}: no labels, expected some for error rates")
    if len(conditions) != len(trials.names) or len(scores) != len(trials):
        raise InputError(
            f"{trials.path}: {len(conditions)} {kind}s and {len(scores)} scores, "
            f"expected {len(trials.names)} and {len(trials)}"
        )
    enrol_names, enrol = _codes(conditions, trials.enrol)
    test_names, test = _codes(conditions, trials.test)
    cells = np.empty((len(enrol_names) + 1, len(test_names) + 1), dtype=object)
    scores, labels = np.asarray(scores), trials.labels
    width = len(test_names)
    for code, part in _parts(enrol * enrol.dtype.type(width) + test):
        cells[divmod(code, width)] = _cell(scores[part], labels[part])
    for code, part in _parts(enrol):
        cells[code, -1] = _cell(scores[part], labels[part])
    for code, part in _parts(test):
        cells[-1, code] = _cell(scores[part], labels[part])
    cells[-1, -1] = _cell(scores, labels)
    same = enrol_names[enrol] == test_names[test]
    nothing = _cell(scores[:0], labels[:0])
    return {
        "kind": kind,
        "enrol": [*enrol_names.tolist(), ALL],
        "test": [*test_names.tolist(), ALL],
        **{
            key: [[(cell or nothing)[key] for cell in row] for row in cells]
            for key in nothing
        },
        f"same_{kind}": _cell(scores[same], labels[same]),
        f"other_{kind}": _cell(scores[~same], labels[~same]),
    }


def plot_conditions(path, table):
    """Draw a table of :func:`by_condition` as a heat map, a PNG."""
    kind = table["kind"]
    figure, axes = draw_heat_map(
        *(table[key] for key in ("eer_percent", "enough", "enrol", "test")), "EER (%)"
    )
    axes.set_xlabel(f"{kind} of the test; in brackets: under {ERRORS_WANTED} errors")
    axes.set_ylabel(f"{kind} of the enrolment")
    save_figure(figure, path)


def _codes(conditions, column):
    """Conditions of one side of the trials, and the number of each trial's."""
    names, code = np.unique(conditions, return_inverse=True)
    used = np.unique(code[column])
    small = len(names) ** 2 < 2**15  # 16-bit integers are sorted several times faster
    number = np.zeros(len(names), dtype=np.int16 if small else np.int32)
    number[used] = np.arange(len(used))
    return names[used], number[code][column]


def _parts(codes):
    """(code, rows with it) of every code there is, by one sort of small integers."""
    order = np.argsort(codes, kind="stable")
    values, first = np.unique(codes[order], return_index=True)
    return zip(values.tolist(), np.split(order, first[1:]))


def _cell(scores, labels):
    n_target = int(np.count_nonzero(labels))
    n_nontarget = len(labels) - n_target
    eer, enough = None, False
    if n_target and n_nontarget:
        eer = float(equal_error_rate(scores, labels).eer)
        enough = eer * min(n_target, n_nontarget) >= ERRORS_WANTED
    return {
        "eer_percent": None if eer is None else 100 * eer,
        "targets": n_target,
        "nontargets": n_nontarget,
        "enough": enough,
    }
