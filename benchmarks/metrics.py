"""EER and minDCF: this package against SpeechBrain, on the same scores in one run.

    python benchmarks/metrics.py          # 5,000 and 20,000 trials, and 580,000 of ours
    python benchmarks/metrics.py --toy    # small sizes, for continuous integration

The peer is ``speechbrain.utils.metric_stats``: its EER counts all trials anew at each
threshold and its minDCF builds a table of thresholds × trials (1.6 GB at 20,000),
so both grow with the square of the list and cannot be run at the size of VoxCeleb1-E.
Figures are medians after a warm-up, on one core where ``OMP_NUM_THREADS=1``.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from speechbrain.utils.metric_stats import EER, minDCF

from speechbrain_ext.scoring.metrics import cllr, equal_error_rate, min_dcf

SIZES, MIN_DCF_LIMIT, FULL_SIZE = (5_000, 20_000), 5_000, 580_000
TOY_SIZES, TOY_FULL_SIZE = (500, 1_000), 20_000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="small sizes, for CI")
    toy = parser.parse_args().toy
    torch.set_num_threads(1)
    for size in TOY_SIZES if toy else SIZES:
        compare_eer(size)
        if size <= MIN_DCF_LIMIT:
            compare_min_dcf(size)
    full_size(TOY_FULL_SIZE if toy else FULL_SIZE)


def compare_eer(size):
    scores, labels = make_scores(size)
    targets, others = split(scores, labels)
    ours, (value, *_) = median_seconds(lambda: equal_error_rate(scores, labels), 5)
    theirs, (peer, *_) = median_seconds(lambda: EER(targets, others), 3)
    # SpeechBrain takes the nearest point, not the crossing: up to one step apart.
    report("EER", size, ours, theirs, value, peer, tolerance=2 / size)


def compare_min_dcf(size):
    scores, labels = make_scores(size)
    targets, others = split(scores, labels)
    ours, (value, *_) = median_seconds(lambda: min_dcf(scores, labels), 5)
    theirs, (peer, *_) = median_seconds(lambda: minDCF(targets, others), 3)
    # SpeechBrain's cost is not normalised by min(P, 1 - P) = 0.01.
    report("minDCF", size, ours, theirs, value, peer / 0.01, tolerance=1e-4)


def full_size(size):
    scores, labels = make_scores(size)
    for metric in (equal_error_rate, min_dcf, cllr):
        seconds, (value, *_) = median_seconds(lambda m=metric: m(scores, labels), 5)
        print(f"{metric.__name__:16} {size:>8,} trials: {seconds:.2g} s ({value:.5f})")


def report(name, size, ours, theirs, value, peer, tolerance):
    if abs(value - peer) > tolerance:
        raise SystemExit(f"{name}: {value} here, {peer} in SpeechBrain")
    print(
        f"{name:16} {size:>8,} trials: {ours:.2g} s, SpeechBrain {theirs:.2g} s, "
        f"ratio {theirs / ours:,.0f} ({value:.5f}, SpeechBrain {peer:.5f})"
    )


def make_scores(size):
    """Two Gaussians, 3 deviations apart: EER about 6.7 %."""
    random = np.random.default_rng(0)
    labels = np.arange(size) % 2
    return (random.standard_normal(size) + 3 * labels).astype(np.float32), labels


def split(scores, labels):
    scores = torch.from_numpy(scores)
    return scores[labels == 1], scores[labels == 0]


def median_seconds(function, repeats):
    """Median of ``repeats`` timed calls after one to warm up; and the result."""
    result = function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


if __name__ == "__main__":
    main()
