"""EER and minDCF: this package against SpeechBrain, on the same scores in one run.

    python benchmarks/metrics.py          # 5,000 and 20,000 trials, and 580,000 of ours
    python benchmarks/metrics.py --toy    # small sizes, for continuous integration

The peer is ``speechbrain.utils.metric_stats``: its EER counts all trials anew at each
threshold and its minDCF builds a table of thresholds × trials (1.6 GB at 20,000),
so both grow with the square of the list and cannot be run at the size of VoxCeleb1-E:
there, ours stand beside a second each. The published code's ``deeplab.metric.eer``
sorts once, as ours do, and looks for the lowest cost in a loop of Python: both metrics
of it at full size, where its folder is given. All of it in one thread of numpy where
``OMP_NUM_THREADS=1``.

The figures of spoofing detection stand beside two seconds at the size of ASVspoof 5's
evaluation, by attack and codec; and where ``--asvspoof5`` gives a clone of
github.com/asvspoof-challenge/asvspoof5, beside its evaluation package, pooled.
"""

import runpy
import sys
import time
from pathlib import Path

import numpy as np
import torch
from harness import LeftOut, argument_parser, beside_limit, compare, report
from speechbrain.utils.metric_stats import EER, minDCF

from speechbrain_ext.scoring.detection import detection_figures
from speechbrain_ext.scoring.metrics import cllr, equal_error_rate, min_dcf

SIZES, MIN_DCF_LIMIT, FULL_SIZE = (5_000, 20_000), 5_000, 580_000
TOY_SIZES, TOY_FULL_SIZE = (500, 1_000), 20_000
SECONDS, REPEATS = 1.0, 5  # what is allowed at full size
DETECTION, TOY_DETECTION, DETECTION_SECONDS = 680_774, 20_000, 2.0
PEER, SOURCE = "SpeechBrain", "speechbrain.utils.metric_stats"


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--asvspoof5", metavar="FOLDER", help="the challenge's code")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    rows = []
    for size in TOY_SIZES if arguments.toy else SIZES:
        rows.append(compare_eer(size, arguments.toy))
        if size <= MIN_DCF_LIMIT:
            rows.append(compare_min_dcf(size, arguments.toy))
    size = TOY_FULL_SIZE if arguments.toy else FULL_SIZE
    rows += [full_size(metric, size) for metric in (equal_error_rate, min_dcf, cllr)]
    rows += [compare_published(size, arguments), *detection_rows(arguments)]
    report(rows, arguments)


def compare_eer(size, toy):
    scores, labels = make_scores(size)
    targets, others = split(scores, labels)

    def ours():
        return equal_error_rate(scores, labels)

    def peer():
        return EER(targets, others)

    # SpeechBrain takes the nearest point, not the crossing: up to one step apart.
    check_equal(f"EER of {size:,} trials", ours()[0], peer()[0], tolerance=2 / size)
    options = {"toy": toy, "memory": True, "peer_name": PEER, "source": f"{SOURCE}.EER"}
    return compare(f"EER of {size:,} trials", ours, peer, 3, 1, **options)


def compare_min_dcf(size, toy):
    scores, labels = make_scores(size)
    targets, others = split(scores, labels)

    def ours():
        return min_dcf(scores, labels)

    def peer():
        return minDCF(targets, others)

    # SpeechBrain's cost is not normalised by min(P, 1 - P) = 0.01.
    name = f"minDCF of {size:,} trials"
    check_equal(name, ours()[0], peer()[0] / 0.01, tolerance=1e-4)
    about = {"peer_name": PEER, "source": f"{SOURCE}.minDCF"}
    return compare(name, ours, peer, 3, 1, toy=toy, memory=True, **about)


def full_size(metric, size):
    """One of ours at the size of VoxCeleb1-E → Row beside its limit."""
    scores, labels = make_scores(size)
    seconds = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        metric(scores, labels)
        seconds.append(time.perf_counter() - start)
    name = f"{metric.__name__} of {size:,} trials"
    return beside_limit(name, "s", seconds[1:], SECONDS)


def compare_published(size, arguments):
    """EER and minDCF together, as the published code computes them → Row."""
    about = {"peer_name": "published code", "source": "deeplab.metric.eer"}
    name = f"EER and minDCF of {size:,} trials"
    if not arguments.published:
        return LeftOut(name, about["peer_name"])
    file = Path(arguments.published, "deeplab/metric/eer.py")
    published = runpy.run_path(str(file))["compute_eer"]
    scores, labels = make_scores(size)
    targets, others = scores[labels == 1], scores[labels == 0]

    def ours():
        return equal_error_rate(scores, labels)[0], min_dcf(scores, labels)[0]

    def peer():
        eer, _, cost, _ = published(targets, others)
        return eer, cost

    for metric, mine, theirs in zip(("EER", "minDCF"), ours(), peer(), strict=True):
        check_equal(f"{metric} of {size:,} trials", mine, theirs, tolerance=1e-4)
    options = {"toy": arguments.toy, "memory": True, **about}
    return compare(name, ours, peer, 5, 1, **options)


def detection_rows(arguments):
    """Detection figures beside their limit, and beside the challenge's package."""
    size = TOY_DETECTION if arguments.toy else DETECTION
    scores, labels = make_scores(size)
    scores, number = scores.astype(np.float64), np.arange(size)
    attacks = [f"A{n}" for n in (17 + number // 2 % 16).tolist()]
    codecs = [f"C{n:02d}" for n in (number // 32 % 12).tolist()]
    seconds = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        detection_figures(scores, labels, attacks, codecs)
        seconds.append(time.perf_counter() - start)
    name = f"detection by attack and codec of {size:,} scores"
    yield beside_limit(name, "s", seconds[1:], DETECTION_SECONDS)
    name = f"minDCF, actDCF, Cllr and EER of {size:,} scores"
    about = {"peer_name": "ASVspoof 5", "source": "evaluation-package"}
    if not arguments.asvspoof5:
        yield LeftOut(name, about["peer_name"], "give --asvspoof5 FOLDER")
        return
    sys.path.insert(0, str(Path(arguments.asvspoof5, about["source"])))
    from calculate_metrics import calculate_minDCF_EER_CLLR_actDCF as published

    keys = np.where(labels == 1, "bonafide", "spoof")

    def ours():
        return detection_figures(scores, labels)["pooled"]

    def peer():
        return published(scores, keys, "", printout=False)

    found = ours()
    mine = (found["min_dcf"], found["cllr"], found["actual_dcf"])
    cost, eer, *others = peer()
    for metric, *both in zip(("minDCF", "Cllr", "actDCF"), mine, (cost, *others)):
        check_equal(f"{metric} of {size:,} scores", *both, tolerance=1e-6)
    check_equal("EER", found["eer_percent"] / 100, eer, tolerance=1e-4)
    yield compare(name, ours, peer, 5, 1, toy=arguments.toy, memory=True, **about)


def check_equal(name, ours, peer, tolerance):
    if not abs(ours - peer) <= tolerance:
        raise SystemExit(
            f"{name}: {ours} here, {peer} there, expected {tolerance} apart"
        )


def make_scores(size):
    """Two Gaussians, 3 deviations apart: EER about 6.7 %."""
    random = np.random.default_rng(0)
    labels = np.arange(size) % 2
    return (random.standard_normal(size) + 3 * labels).astype(np.float32), labels


def split(scores, labels):
    scores = torch.from_numpy(scores)
    return scores[labels == 1], scores[labels == 0]


if __name__ == "__main__":
    main()
