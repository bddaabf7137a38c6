"""AS-norm and metrics at the size of VoxCeleb1-H and CN-Celeb, on made-up embeddings.

    OMP_NUM_THREADS=2 python benchmarks/scoring.py    # full size, 1 to 5 minutes
    python benchmarks/scoring.py --toy                # small, for CI

Rows against a limit: AS-norm (top 300 of 5,994), EER and minDCF of 550,894 trials over
137,924 utterances of 256 dimensions, in a fresh process, whose memory counts with its
input; EER and minDCF of 3,484,292 trials.

Rows against a peer, which must give the same scores on the trials it is timed on; its
time per trial is taken times the number of trials:

* SpeechBrain's per-trial s-norm (its VoxCeleb script speaker_verification_cosine.py, in
  our own words): both sides of each trial against the whole cohort, with torch. Its
  standard deviation divides by N - 1, so its scores count times sqrt(N / (N - 1)).
* numpy, each trial's two rows of cohort scores sorted in full.
* numpy, one row per utterance sorted in full: the same work but for the selection. The
  matrix product, which both need, bounds this ratio at about 3.

The threads of a matrix product wait for each other after each block: where other
programs hold the cores, ours takes ten times as long and the last ratio falls below 1.
"""

import json
import math
import time

import numpy as np
import torch
from harness import (
    argument_parser,
    beside_limit,
    compare,
    in_new_process,
    peak_memory,
    report,
    summarise,
)

from speechbrain_ext.scoring.metrics import equal_error_rate, min_dcf
from speechbrain_ext.scoring.normalization import as_norm, cohort_statistics

# trials, utterances, dimensions, cohort, top N
VOX1_H, TOY_VOX1_H = (550_894, 137_924, 256, 5_994, 300), (2_000, 500, 32, 200, 30)
CN_CELEB, TOY_CN_CELEB = 3_484_292, 20_000
SECONDS, MEBIBYTES, METRICS_SECONDS = 60, 4096, 5  # what is allowed
SUBSET, TOY_SUBSET = (100, 4096, 8192), (10, 20, 100)  # timed of each peer
ROUNDS = 3
PER_TRIAL = {
    "peer_name": "SpeechBrain",
    "source": "s-norm of its speaker_verification_cosine.py, in our own words",
    "mark": 50.0,
}
FULL_SORT = {"peer_name": "numpy", "source": "np.sort"}


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--alone", action="store_true", help="ours at full size only")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    size = TOY_VOX1_H if arguments.toy else VOX1_H
    if arguments.alone:
        print(json.dumps(measure_alone(size)))
        return
    rounds = 1 if arguments.toy else ROUNDS
    options = ["--toy"] * arguments.toy
    alone = [in_new_process(__file__, "--alone", *options) for _ in range(rounds)]
    rows = [
        *rows_of_limits(alone, size, rounds, arguments.toy),
        *rows_of_peers([run["as_norm"] for run in alone], size, rounds, arguments.toy),
    ]
    report(rows, arguments)


def make_embeddings(trials, utterances, dimensions, cohort, top_n):
    """Random vectors, trials and labels → vectors, cohort, trials, labels."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((utterances, dimensions), dtype=np.float32)
    members = random.standard_normal((cohort, dimensions), dtype=np.float32)
    pairs = random.integers(0, utterances, (trials, 2), dtype=np.int32)
    return vectors, members, pairs, np.arange(trials) % 2


def measure_alone(size):
    """Time of AS-norm and of everything, s, and memory with the input, MiB."""

    def run():
        vectors, cohort, trials, labels = make_embeddings(*size)
        start = time.perf_counter()
        scores = as_norm(vectors, vectors, cohort, trials, top_n=size[-1])
        normalised = time.perf_counter() - start
        equal_error_rate(scores, labels), min_dcf(scores, labels)
        return {"as_norm": normalised, "all": time.perf_counter() - start}

    seconds, memory = peak_memory(run)
    return {**seconds, "memory": memory / 2**20}


def rows_of_limits(alone, size, rounds, toy):
    """Figures of fresh processes, and the metrics of CN-Celeb, beside their limits."""
    trials = TOY_CN_CELEB if toy else CN_CELEB
    random = np.random.default_rng(0)
    labels = np.arange(trials) % 2
    scores = (random.standard_normal(trials) + 3 * labels).astype(np.float32)
    metrics = []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        equal_error_rate(scores, labels), min_dcf(scores, labels)
        metrics.append(time.perf_counter() - start)
    name = f"AS-norm, EER, minDCF of {size[0]:,} trials"
    memory = [run["memory"] for run in alone]
    return [
        beside_limit(name, "s", [run["all"] for run in alone], SECONDS),
        beside_limit(f"{name}, memory", "MiB", memory, MEBIBYTES),
        beside_limit(
            f"EER, minDCF of {trials:,} trials", "s", metrics[1:], METRICS_SECONDS
        ),
    ]


def rows_of_peers(seconds, size, rounds, toy):
    """AS-norm of the whole list, ``seconds``, beside what its peers would take."""
    vectors, cohort, trials, _ = make_embeddings(*size)
    top_n = size[-1]
    few, more, utterances = TOY_SUBSET if toy else SUBSET
    rows = []
    for name, peer, subset, about in (
        ("s-norm per trial", speechbrain_per_trial, trials[:few], PER_TRIAL),
        (
            "full sort per trial",
            numpy_per_trial,
            trials[:more],
            {**FULL_SORT, "mark": 5.0},
        ),
    ):
        ours = as_norm(vectors, vectors, cohort, subset, top_n)
        theirs = []
        for _ in range(1 + rounds):
            start = time.perf_counter()
            scores = peer(vectors, cohort, subset, top_n)
            theirs.append((time.perf_counter() - start) / len(subset) * len(trials))
        check_equal(name, ours, scores)
        name = f"AS-norm of {len(trials):,} trials, {name} ({len(subset):,} timed)"
        rows.append(summarise(name, "s", seconds, theirs[1:], **about))
    some = vectors[:utterances]

    def ours():
        return cohort_statistics(some, cohort, top_n).mean

    def full_sort():
        return numpy_statistics(unit(some), unit(cohort), top_n)[0]

    name = f"cohort statistics of {len(some):,} utterances, full sort"
    check_equal(name, ours(), full_sort())
    options = {"toy": toy, "memory": True, **FULL_SORT}
    return [*rows, compare(name, ours, full_sort, rounds, warmup=1, **options)]


def check_equal(name, ours, theirs):
    difference = np.abs(ours - theirs).max()
    if not difference < 1e-4:
        raise SystemExit(f"{name}: {difference} apart, expected 1e-4 at most")


def speechbrain_per_trial(vectors, cohort, trials, top_n):
    """One trial at a time, its embeddings repeated to the size of the cohort."""
    similarity = torch.nn.CosineSimilarity(dim=-1, eps=1e-6)
    embeddings = torch.from_numpy(vectors).unsqueeze(1)  # [U, 1, E], as it keeps them
    members = torch.from_numpy(cohort).unsqueeze(1)  # [K, 1, E]
    scores = []
    for enrol, test in embeddings[torch.from_numpy(trials)]:
        score = similarity(enrol, test)[0]
        normalised = []
        for side in (enrol, test):
            repeated = side.repeat(len(members), 1, 1)
            found = similarity(repeated, members)
            top = torch.topk(found, k=top_n, dim=0)[0]
            deviation = torch.std(top, dim=0)
            normalised.append((score - torch.mean(top, dim=0)) / deviation)
        scores.append(0.5 * (normalised[0] + normalised[1]))
    return torch.cat(scores).numpy() * math.sqrt(top_n / (top_n - 1))


def numpy_per_trial(vectors, cohort, trials, top_n):
    """The definition in numpy, all trials of the subset at once."""
    cohort = unit(cohort)
    enrol, test = (unit(vectors[rows]) for rows in trials.T)
    scores = (enrol * test).sum(axis=1)
    total = 0
    for side in (enrol, test):
        mean, std = numpy_statistics(side, cohort, top_n)
        total += (scores - mean) / std
    return total / 2


def numpy_statistics(vectors, cohort, top_n):
    top = np.sort(vectors @ cohort.T, axis=1)[:, -top_n:]
    return top.mean(axis=1), top.std(axis=1)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
