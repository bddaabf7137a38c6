"""The steps of an evaluation of a spoofing detector, as the recipe's evaluate.py does.

    recordings → logits → log-likelihood ratios → calibration on dev → figures

Finished extractions are not done twice: the logits lie in the output folder. Written
beside them are, of each split, ``scores_SPLIT.tsv`` and ``keys_SPLIT.tsv`` as the
evaluation package of ASVspoof 5 reads them.
"""

import logging

import numpy as np

from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.inference.thresholds import (
    THRESHOLDS_FILE,
    Thresholds,
    save_thresholds,
)
from speechbrain_ext.pretrained import weights_file
from speechbrain_ext.scoring.calibration import QualityCalibrator
from speechbrain_ext.scoring.detection import (
    BONAFIDE,
    SPOOF,
    Keys,
    detection_figures,
    write_keys,
    write_scores,
)
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.files import sha256, write_atomically, write_json

logger = logging.getLogger(__name__)

SPLITS = ("dev", "eval")
LLR, RAW = "llr", "uncalibrated"
TITLES = {RAW: "by the priors of the training", LLR: "calibrated"}
LEGEND = (
    "minDCF, actDCF: detection cost as in ASVspoof 5 (a miss costs 1, a spoof let in "
    "10, and 5 % are spoofs), at the best threshold and at that of log-likelihood "
    "ratios; Cllr in bits. In brackets 95 % intervals by a bootstrap over speakers. *: "
    "fewer than 30 errors of a kind, which tells little."
)


def bonafide_of(manifest):
    """Which recordings of a manifest are bona fide → bool [N].

    InputError: no column ``key``; another key; recordings of one class alone.
    """
    if "key" not in manifest.extra:
        raise InputError(f"no column 'key', expected {BONAFIDE} or {SPOOF} in it")
    keys = np.asarray(manifest.extra["key"])
    known = np.isin(keys, (BONAFIDE, SPOOF))
    if not known.all():
        row = int(np.argmin(known))
        raise InputError(
            f"key {keys[row]!r} of {manifest.ids[row]}, expected {BONAFIDE} or {SPOOF}"
        )
    is_bonafide = keys == BONAFIDE
    n_bonafide = int(is_bonafide.sum())
    if n_bonafide in (0, len(keys)):
        raise InputError(
            f"{n_bonafide} bona fide recordings and {len(keys) - n_bonafide} spoofs, "
            "expected at least one of each"
        )
    return is_bonafide


def manifests_of(prepared):
    """{split: Manifest} of what there is of dev and eval, each of both classes.

    InputError: neither; recordings of one class alone.
    """
    found = {}
    for split in SPLITS:
        path = getattr(prepared, split)
        if path is not None:
            found[split] = read_manifest(path)
            with naming(path):
                bonafide_of(found[split])
    if not found:
        raise InputError("recordings of neither dev nor eval, expected some of either")
    return found


def score_and_report(
    folder, manifests, logits, head, calibrator=None, n_resamples=200, model=None
):
    """Scores of every split, calibrated; files, figures; prints the table.

    Arguments
    ---------
    folder : Path
    manifests : dict of str to Manifest
        By split.
    logits : dict of str to np.ndarray
        float [N, 2].
    head : Detection
        Which knows the priors of the logits.
    calibrator : str or Path or None
        Of an earlier run; None fits one to dev, where there is dev.
    n_resamples : int
        Of the bootstrap over speakers.
    model : str or Path
        The pretrained folder: the report has a hash of its weights.

    Raises
    ------
    InputError
        A file of another calibrator.
    """
    raw = {
        split: head.log_likelihood_ratio(values.astype(np.float64))
        for split, values in logits.items()
    }
    labels = {split: bonafide_of(manifest) for split, manifest in manifests.items()}
    fitted = _calibrator(folder, calibrator, raw, labels)
    scores = raw
    if fitted is not None:
        scores = {
            split: fitted.log_likelihood_ratio(values[:, None])
            for split, values in raw.items()
        }
    if "dev" in scores:
        curve = Thresholds.from_scores(scores["dev"], labels["dev"])
        save_thresholds(folder / THRESHOLDS_FILE, {LLR: curve})
    results = []
    for split, manifest in manifests.items():
        keys = Keys(
            folder / f"keys_{split}.tsv",
            manifest.ids.tolist(),
            labels[split],
            np.arange(len(manifest)),
        )
        write_keys(keys.path, keys)
        write_scores(folder / f"scores_{split}.tsv", keys.names, scores[split])
        systems = {RAW: raw[split]}
        if fitted is not None:
            systems[LLR] = scores[split]
        parts = {"speakers": manifest.speakers.tolist()}
        for column in ("attack", "codec"):
            if column in manifest.extra:
                parts[f"{column}s"] = manifest.extra[column].tolist()
        for system, values in systems.items():
            figures = detection_figures(
                values, labels[split], n_resamples=n_resamples, **parts
            )
            title = {"list": split, "system": system, "title": TITLES[system]}
            results.append({**title, **figures})
    about = {
        "pretrained_folder": str(model),
        "weights_sha256": sha256(weights_file(model)),
        "calibrator": None if fitted is None else str(calibrator or "dev"),
    }
    print(_write_report(folder, results, about))
    print(f"report {folder / 'results.md'}")


def _calibrator(folder, path, raw, labels):
    """An earlier one, one fitted to dev, or None; kept as calibration.json."""
    if path is not None:
        found = QualityCalibrator.load(path, [LLR])
    elif "dev" in raw:
        found = QualityCalibrator([LLR])
        with naming("calibration on dev"):
            found.fit(raw["dev"][:, None], labels["dev"])
        logger.info("calibration: %.4g llr %+.4g", found.weights[0], found.bias)
        if found.weights[0] <= 0:
            logger.warning(
                "dev: the calibration turns the scores round, as spoofs have the higher "
                "ones: the detector tells nothing"
            )
    else:
        logger.warning("no recordings of dev and no calibrator: not calibrated")
        return None
    found.save(folder / "calibration.json")
    return found


def _write_report(folder, results, about):
    """results.json and results.md → the table in Markdown."""
    table = as_markdown(results)
    parts = [table, LEGEND, "\n".join(f"- {k}: {v}" for k, v in about.items())]
    last = {result["list"]: result for result in results}  # the best calibrated
    for split, result in last.items():
        for name in ("attacks", "codecs"):
            if len(result.get(name, ())) > 1:
                parts.append(_parts_as_markdown(result[name], split, name))
    write_json(folder / "results.json", {**about, "lists": results})
    with write_atomically(folder / "results.md") as file:
        file.write("\n\n".join(parts) + "\n")
    return table


def as_markdown(results):
    """The figures of every list and system, a row each."""
    head = ["list", "scores", "bona fide", "spoofs", "minDCF", "actDCF", "Cllr"]
    rows = []
    for result in results:
        of = result["pooled"]
        rows.append(
            [
                *(result["list"], result["title"]),
                *(f"{of[name]:,}" for name in (BONAFIDE, SPOOF)),
                *(
                    _with_interval(of, name, of[name])
                    for name in ("min_dcf", "actual_dcf", "cllr")
                ),
                f"{of['min_cllr']:.4f}",
                _with_interval(of, "eer", of["eer_percent"], 100),
            ]
        )
    return _table([*head, "minCllr", "EER %"], rows)


def _with_interval(figures, name, value, scale=1):
    digits = 2 if scale == 100 else 4
    text = f"{value:.{digits}f}" + "*" * (name == "eer" and not figures["enough"])
    pair = figures.get("intervals_95", {}).get(name)
    if pair is None:
        return text
    low, high = (f"{scale * end:.{digits}f}" for end in pair)
    return f"{text} ({low}–{high})"


def _parts_as_markdown(parts, split, name):
    """Figures by attack or by codec."""
    rows = [
        [
            *(word, f"{of[BONAFIDE]:,}", f"{of[SPOOF]:,}"),
            *(
                "–" if of[key] is None else f"{of[key]:.4f}"
                for key in ("min_dcf", "actual_dcf", "cllr")
            ),
            "–"
            if of["eer_percent"] is None
            else f"{of['eer_percent']:.2f}" + "*" * (not of["enough"]),
        ]
        for word, of in parts.items()
    ]
    head = [name[:-1], "bona fide", "spoofs", "minDCF", "actDCF", "Cllr", "EER %"]
    return f"{split}, by {name[:-1]}:\n\n{_table(head, rows)}"


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
