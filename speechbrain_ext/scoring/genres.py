"""Equal error rates by genre: which kinds of speech a system confuses.

CN-Celeb's speakers talk, sing and act, and its names tell which::

    ``id00010/interview-01-001``            SPEAKER/GENRE-SESSION-NUMBER
    ``test/id00800-singing-01-001``         the same below ``eval``

For every pair of an enrolment genre and a test genre, the trials between the two have
an error rate of their own, at a threshold of their own (Li et al., "CN-Celeb:
multi-genre speaker recognition", Speech Communication 137, 2022).

A rate of few errors means little. Doddington's rule of 30 (Doddington et al., "The NIST
speaker recognition evaluation - overview, methodology, systems, results, perspective",
Speech Communication 31, 2000): from 30 errors on, the true rate is within 30 % of the
one seen, with 90 % confidence, if trials are independent. At the equal error rate p
there are p N misses of N targets and p M false alarms of M non-targets: both count.
"""

import re

import numpy as np

from speechbrain_ext.scoring.metrics import equal_error_rate
from speechbrain_ext.scoring.plots import new_figure, save_figure
from speechbrain_ext.utils.errors import InputError

ALL, SEVERAL, UNKNOWN = "all", "several", "unknown"
ERRORS_WANTED = 30
_NAME = re.compile(r"(?:^|/)(?:[^-/]+-)?([^-/]+)-\d+-\d+(?:\+\d+)?$")


def genre_of(name):
    """The genre that an utterance ID tells, see above; None where it tells none."""
    found = _NAME.search(name)
    return found[1] if found else None


def genres_of(names, enrol_map=None):
    """The genre of every name of a trial list.

    Arguments
    ---------
    names : sequence of str
        Utterance IDs or names of models [U].
    enrol_map : EnrolMap or None
        What the models are enrolled from: their genre is that of their recordings,
        ``several`` where these differ.

    Returns
    -------
    np.ndarray
        str [U]; ``unknown`` where neither the name nor the map tells.
    """
    of_model = {}
    for model, ids in (enrol_map.utterances if enrol_map else {}).items():
        found = {genre_of(name) for name in ids}
        of_model[model] = found.pop() if len(found) == 1 else SEVERAL
    names = np.asarray(names).tolist()
    return np.array([of_model.get(n) or genre_of(n) or UNKNOWN for n in names])


def by_genre(trials, scores, genres):
    """Equal error rates of all pairs of genres, of each genre, and of all trials.

    Arguments
    ---------
    trials : Trials
        T trials with labels, U names.
    scores : np.ndarray
        float [T].
    genres : np.ndarray
        str [U], of each of ``trials.names``.

    Returns
    -------
    dict
        ``enrol`` and ``test``: G and H genres, sorted, and ``all`` in the end;
        ``eer_percent``, ``targets``, ``nontargets``, ``enough``: G + 1 rows of H + 1
        cells, an enrolment genre against a test genre. A cell without targets or
        without non-targets has no rate: None. ``same_genre`` and ``other_genre`` are
        single cells, as dictionaries of the four.

    Raises
    ------
    InputError
        No labels, or as many genres or scores as there are not names or trials.
    """
    if trials.labels is None:
        raise InputError(f"{trials.path}: no labels, expected some for error rates")
    if len(genres) != len(trials.names) or len(scores) != len(trials):
        raise InputError(
            f"{trials.path}: {len(genres)} genres and {len(scores)} scores, expected "
            f"{len(trials.names)} and {len(trials)}"
        )
    enrol_names, enrol = _codes(genres, trials.enrol)
    test_names, test = _codes(genres, trials.test)
    cells = np.empty((len(enrol_names) + 1, len(test_names) + 1), dtype=object)
    scores, labels = np.asarray(scores), trials.labels
    width = len(test_names)
    for code, part in _parts(enrol * np.int16(width) + test):
        cells[divmod(code, width)] = _cell(scores[part], labels[part])
    for code, part in _parts(enrol):
        cells[code, -1] = _cell(scores[part], labels[part])
    for code, part in _parts(test):
        cells[-1, code] = _cell(scores[part], labels[part])
    cells[-1, -1] = _cell(scores, labels)
    same = enrol_names[enrol] == test_names[test]
    nothing = _cell(scores[:0], labels[:0])
    return {
        "enrol": [*enrol_names.tolist(), ALL],
        "test": [*test_names.tolist(), ALL],
        **{
            key: [[(cell or nothing)[key] for cell in row] for row in cells]
            for key in nothing
        },
        "same_genre": _cell(scores[same], labels[same]),
        "other_genre": _cell(scores[~same], labels[~same]),
    }


def genres_as_markdown(table, title):
    """A table of :func:`by_genre` as people read it.

    Arguments
    ---------
    table : dict
    title : str
        Of which list and system.

    Returns
    -------
    str
        Rows are genres of the enrolment, columns those of the test.
    """
    head = ["enrolment \\ test", *table["test"]]
    lines = [
        f"EER % (targets) by genre of {title}:",
        "",
        _row(head),
        "|" + " --- |" * len(head),
    ]
    lines += [
        _row([genre, *(_text(table, row, column) for column in range(len(head) - 1))])
        for row, genre in enumerate(table["enrol"])
    ]
    within = ", ".join(
        f"{what} {_cell_text(**table[key])}"
        for what, key in (("same genre", "same_genre"), ("another", "other_genre"))
    )
    return "\n".join(
        [
            *lines,
            "",
            f"Enrolment and test of the {within}. Each cell has its own threshold. "
            f"*: fewer than {ERRORS_WANTED} misses or false alarms, too few to rely "
            "on; –: no targets or no non-targets.",
        ]
    )


def plot_genres(path, table):
    """Draw a table of :func:`by_genre` as a heat map.

    Arguments
    ---------
    path : str or Path
        PNG to write.
    table : dict
    """
    shown = np.array(table["eer_percent"], dtype=float)  # None → NaN: left white
    height, width = shown.shape
    figure, axes = new_figure(2.6 + 0.62 * width, 1.6 + 0.36 * height)
    top = max(np.nanmax(shown, initial=0.0), 1e-3)
    image = axes.imshow(shown, cmap="YlOrRd", vmin=0, vmax=top, aspect="auto")
    for (row, column), rate in np.ndenumerate(shown):
        if np.isnan(rate):
            continue
        enough = table["enough"][row][column]
        axes.text(
            *(column, row, f"{rate:.1f}" if enough else f"({rate:.1f})"),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if rate > 0.6 * top else "black",
        )
    axes.set_xticks(range(width), table["test"], rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(height), table["enrol"], fontsize=8)
    axes.axhline(height - 1.5, color="black", linewidth=0.8)
    axes.axvline(width - 1.5, color="black", linewidth=0.8)
    axes.set_xlabel(f"genre of the test; in brackets: under {ERRORS_WANTED} errors")
    axes.set_ylabel("genre of the enrolment")
    figure.colorbar(image, label="EER (%)")
    save_figure(figure, path)


def _codes(genres, column):
    """Genres that one side of the trials has, and each trial's number among them."""
    names, code = np.unique(genres, return_inverse=True)
    used = np.unique(code[column])
    number = np.zeros(len(names), dtype=np.int16)
    number[used] = np.arange(len(used))
    return names[used], number[code][column]


def _parts(codes):
    """(code, rows with it) of every code there is, by one sort of small integers."""
    order = np.argsort(codes, kind="stable")
    found, first = np.unique(codes[order], return_index=True)
    return zip(found.tolist(), np.split(order, first[1:]))


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


def _text(table, row, column):
    keys = ("eer_percent", "targets", "nontargets", "enough")
    return _cell_text(**{key: table[key][row][column] for key in keys})


def _cell_text(eer_percent, targets, nontargets, enough):
    del nontargets
    if eer_percent is None:
        return f"– ({targets:,})" if targets else "–"
    return f"{eer_percent:.2f}{'' if enough else '*'} ({targets:,})"


def _row(cells):
    return "| " + " | ".join(cells) + " |"
