"""Calibration and thresholds of one's own recordings, in one step.

    SPEAKER/*.wav → embeddings → all pairs → scores by the model's own back-end
                  → calibration.json, thresholds.json beside the model

Cosines and normalised scores are fitted to nothing here, so their thresholds are those
of all pairs. A calibrator is fitted to them, so the likelihood ratios that its
thresholds are measured on come from calibrators that did not know the speaker
(:func:`~speechbrain_ext.scoring.calibration.cross_validation.held_out_ratios`); the one
that is written is fitted to all. Intervals are of a bootstrap over speakers.
"""

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from speechbrain_ext.export.card import KINDS, RATES, with_thresholds
from speechbrain_ext.inference.decisions import kept_warnings
from speechbrain_ext.inference.folder import CALIBRATION_FILE, find_folder
from speechbrain_ext.inference.thresholds import (
    RULE_OF_30,
    THRESHOLDS_FILE,
    Thresholds,
    save_thresholds,
)
from speechbrain_ext.inference.voices import embed_recordings
from speechbrain_ext.inference.voices.enrolment import recordings_of_speakers
from speechbrain_ext.pretrained import HYPERPARAMS, weights_file
from speechbrain_ext.scoring.backend import TrialSide, of_speakers
from speechbrain_ext.scoring.calibration.cross_validation import (
    choose_l2,
    held_out_ratios,
    make_calibrator,
)
from speechbrain_ext.scoring.calibration.trials import draw_pairs
from speechbrain_ext.scoring.intervals import (
    FEWEST_SPEAKERS,
    bootstrap_intervals,
    rate_intervals,
)
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.files import (
    sha256,
    write_atomically,
    write_folder_atomically,
)

logger = logging.getLogger(__name__)

CARD = "README.md"
FEW_SPEAKERS = 10  # intervals of fewer are wide, and themselves uncertain


def place_of(source, savedir=None, output=None):
    """Where a model lies, and which folder is to get the thresholds.

    Arguments
    ---------
    source, savedir
        As for ``SpeakerVerifier.from_hparams``.
    output : str or Path or None
        A folder that is new, or empty, or a copy that was made before; None takes the
        model's own.

    Returns
    -------
    model, output : Path
        Without links; equal where the thresholds go beside the model.

    Raises
    ------
    InputError
        No such model; a folder that holds something else, or the working directory,
        which would be left in the old folder; without ``output``, a model
        from the hub or in a folder that cannot be written to.
    """
    model = find_folder(source, savedir).resolve()
    place, here = (model if output is None else Path(output).resolve()), Path.cwd()
    if place == here or place in here.parents:  # would be left in the old folder
        raise InputError(
            f"{place}: holds the working directory, expected another one, since the "
            "folder is replaced, or --output FOLDER"
        )
    if output is None:
        local = Path(source).expanduser().is_dir()
        if not local or not all(os.access(f, os.W_OK) for f in (model, model.parent)):
            reason = "its folder cannot be written to" if local else "from the hub"
            raise InputError(
                f"{source}: {reason}, expected --output FOLDER for a copy of the model "
                "with the thresholds"
            )
        return model, model
    output = Path(output).resolve()
    if output == model or not output.exists() or _is_empty(output):
        return model, output
    copy = output.is_dir() and (output / HYPERPARAMS).is_file()
    if not copy or sha256(weights_file(output)) != sha256(weights_file(model)):
        raise InputError(
            f"{output}: exists and is not a copy of {source}, expected a new folder"
        )
    ours = {path.name for path in model.iterdir()} | {CALIBRATION_FILE, THRESHOLDS_FILE}
    if others := sorted({path.name for path in output.iterdir()} - ours):
        raise InputError(f"{output}: holds {others[0]}, which would be removed")
    return model, output


def _is_empty(folder):
    return folder.is_dir() and not any(folder.iterdir())


def measure_thresholds(
    verifier, folder, model, output, max_trials=200_000, seed=0, **options
):
    """Calibrate a model on recordings of one's own, and measure its thresholds.

    Arguments
    ---------
    verifier : SpeakerVerifier
        The model, with its cohort if it has one.
    folder : str or Path
        Recordings, ``SPEAKER/FILE`` or deeper.
    model, output : Path
        Of :func:`place_of`.
    max_trials : int
        Pairs of recordings at most; drawn where there are more.
    seed : int
        Of that, and of the bootstrap.
    **options
        ``speech_detection`` and ``channel``, as for ``SpeakerVerifier.enrol``.

    Returns
    -------
    dict
        ``output``, ``speakers``, ``recordings``, ``targets`` and ``nontargets``,
        ``scores``: by kind the equal error rate with its interval and the operating
        ``points``; ``calibrated`` or not, ``failures`` (file, reason), ``seed``,
        ``model``, ``device``, ``warnings``.

    Raises
    ------
    InputError
        Fewer than two speakers, no two recordings of one; a setting out of range. The
        folders are then as they were.
    """
    with kept_warnings() as warnings:
        by_speaker = recordings_of_speakers(folder)
        _check_number(folder, by_speaker)
        paths = [path for files in by_speaker.values() for path in files]
        speakers = np.repeat(list(by_speaker), list(map(len, by_speaker.values())))
        found = embed_recordings(verifier, paths, **options)
        good = np.ones(len(paths), dtype=bool)
        good[[failure.row for failure in found.failures]] = False
        for failure in found.failures:
            logger.warning("%s: %s: left out", failure.path, failure.reason)
        speakers = speakers[good]
        _check_number(folder, set(speakers.tolist()))
        with naming(folder):
            trials = draw_pairs(speakers, max_trials, seed)
        side = TrialSide(found.vectors[good], found.seconds[good])
        backend, scores = _scores(verifier.backend, side, speakers, trials)
        codes = np.unique(speakers, return_inverse=True)[1]
        pairs = codes[trials.enrol], codes[trials.test]
        curves = {
            k: Thresholds.from_scores(s, trials.labels) for k, s in scores.items()
        }
        with naming(folder):
            figures = {
                kind: _figures(curve, scores[kind], trials.labels, pairs, seed)
                for kind, curve in curves.items()
            }
        n_speakers = len(np.unique(codes))
        _warn_of_few(n_speakers, figures)
    report = {
        "output": str(output),
        "speakers": n_speakers,
        "recordings": len(speakers),
        "targets": int(trials.labels.sum()),
        "nontargets": int((trials.labels == 0).sum()),
        "scores": figures,
        "calibrated": backend.calibrator is not verifier.backend.calibrator,
        "failures": [{"file": f.path, "reason": f.reason} for f in found.failures],
        "seed": seed,
        "model": verifier.source,
        "device": str(verifier.device),
        "warnings": warnings,
    }
    _write(model, output, backend, curves, in_words(report))
    return report


def _check_number(folder, speakers):
    if len(speakers) < 2:
        raise InputError(
            f"{folder}: recordings of {len(speakers)} speakers, expected at least 2: "
            "SPEAKER/FILE"
        )


def _scores(given, side, speakers, trials):
    """A back-end calibrated on the trials → (it, {kind: held-out scores [T]})."""
    backend = replace(given, calibrator=None)
    side = of_speakers(side, speakers, backend)
    rows = np.stack([trials.enrol, trials.test], axis=1)
    scores = backend.scores(side, side, rows)
    try:
        names, values = backend.features(side, side, rows)
        codes = np.unique(speakers, return_inverse=True)[1][rows]
        l2, _ = choose_l2(values, trials.labels, codes)
        scores["llr"] = held_out_ratios(values, trials.labels, codes, l2)
        calibrator = make_calibrator(l2, names).fit(values, trials.labels)
        calibrator.warn_if_turned("calibration")
        backend = replace(backend, calibrator=calibrator)
    except InputError as error:
        logger.warning("no calibration to these recordings: %s", error)
        if given.calibrator is not None:  # it knows none of them
            timed = "duration_min" in given.calibrator.names
            side = side if timed else side._replace(durations=None)
            backend, scores = given, given.scores(side, side, rows)
    names = {"s_norm": "as_norm"}  # S-norm is AS-norm by the whole cohort
    return backend, {names.get(kind, kind): s for kind, s in scores.items()}


def _figures(curve, scores, labels, pairs, seed):
    """Equal error rate and operating points of one kind of score, with intervals."""
    wanted = {"equal error": curve.rates_at(curve.eer_threshold)}
    for rate in RATES:
        if rate * curve.n_nontarget >= 1:
            row = np.flatnonzero(curve.false_accept_rates <= rate * (1 + 1e-9))
            if len(row):
                at = curve.rates_at(curve.thresholds[row[0]])
                wanted[f"{100 * rate:g} % false accepts"] = at
    false_accept = miss = [None] * len(wanted)
    figures = {"eer": curve.eer, "eer_interval": None}
    if len(np.unique(pairs)) >= FEWEST_SPEAKERS:
        intervals = bootstrap_intervals(scores, labels, *pairs, seed=seed)
        figures["eer_interval"] = list(intervals["eer"])
        thresholds = [point.threshold for point in wanted.values()]
        false_accept, miss = (
            interval.tolist()
            for interval in rate_intervals(
                scores, labels, *pairs, thresholds, seed=seed
            )
        )
    points = [
        {
            "at": name,
            **point._asdict(),
            "false_accept_interval": false_accept[row],
            "miss_interval": miss[row],
            "false_accepts": round(point.false_accept_rate * curve.n_nontarget),
            "misses": round(point.miss_rate * curve.n_target),
        }
        for row, (name, point) in enumerate(wanted.items())
    ]
    return {**figures, "points": points}


def _warn_of_few(n_speakers, figures):
    """What so few people can tell."""
    if n_speakers >= FEW_SPEAKERS:
        return
    kind, found = list(figures.items())[-1]
    interval = "no interval can be given"
    if found["eer_interval"]:
        low, high = (100 * bound for bound in found["eer_interval"])
        interval = f"the interval of its equal error rate is {low:.2g} to {high:.2g} %"
        if high == 0:
            interval = "no error was made in any resample, which so few do not prove"
    logger.warning(
        "%d speakers: of %s, %s; claim no more, and record at least %d",
        *(n_speakers, KINDS[kind], interval, FEW_SPEAKERS),
    )


def in_words(report):
    """Which trials the thresholds are of, for the card."""
    rates = []
    for kind, found in report["scores"].items():
        text = f"{KINDS[kind]} {100 * found['eer']:.2f}"
        if found["eer_interval"]:
            low, high = (100 * bound for bound in found["eer_interval"])
            text += f" ({low:.2f}–{high:.2f})"
        rates.append(text)
    words = (
        f"{report['targets']:,} target and {report['nontargets']:,} non-target trials "
        f"of {report['recordings']:,} recordings by {report['speakers']:,} speakers of "
        f"the user's own, not on those of the results above. Equal error rates in % "
        f"(95 %, bootstrap over speakers): {', '.join(rates)}"
    )
    if report["calibrated"]:
        words += (
            ". Log-likelihood ratios are by calibrators that did not know one of the "
            "trial's speakers"
        )
    return words


def as_table(report):
    """The report as people read it, in Markdown."""
    lines = [
        f"{report['speakers']} speakers, {report['recordings']} recordings, "
        f"{report['targets']:,} target and {report['nontargets']:,} non-target trials",
        "",
        "| score | at | threshold | false accepts % (95 %), how many | "
        "misses % (95 %), how many |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, found in report["scores"].items():
        for point in found["points"]:
            cells = [KINDS[kind], point["at"], f"{point['threshold']:.4f}"]
            cells += [
                _percent(
                    point[f"{what}_rate"], point[f"{what}_interval"], point[number]
                )
                for what, number in (
                    ("false_accept", "false_accepts"),
                    ("miss", "misses"),
                )
            ]
            lines.append(f"| {' | '.join(cells)} |")
    few = f"Fewer than {RULE_OF_30} errors tell little of other recordings"
    none = "of none in T trials the rate may well be 3 / T, whatever the interval"
    return "\n".join([*lines, "", f"{few}; {none}."])


def _percent(rate, interval, number):
    text = f"{100 * rate:.2f}"
    if interval:
        text += f" ({100 * interval[0]:.2f}–{100 * interval[1]:.2f})"
    return f"{text}, {number:,}"


def _write(model, output, backend, curves, source):
    """The model's folder anew, with what was measured: whole, or as it was."""
    with write_folder_atomically(output) as folder:
        copy = _link_or_copy if output == model else shutil.copy2
        shutil.copytree(model, folder, copy_function=copy, dirs_exist_ok=True)
        if backend.calibrator is not None:
            backend.calibrator.save(folder / CALIBRATION_FILE)
        save_thresholds(folder / THRESHOLDS_FILE, curves)
        card = folder / CARD
        if card.is_file():
            text = card.read_text(encoding="utf-8", errors="surrogateescape")
            text = with_thresholds(text, curves, source)
            with write_atomically(card, "wb") as file:
                file.write(text.encode("utf-8", "surrogateescape"))


def _link_or_copy(source, target):
    """A second name for a file, which takes no gigabytes; a copy where none can be."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)
