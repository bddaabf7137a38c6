"""Whose voice of 5,000 is it: one matrix product against a loop over the voices.

    OMP_NUM_THREADS=2 python benchmarks/identify.py    # 5,000 voices of 192 values
    python benchmarks/identify.py --toy                # small, for CI

One recording, which is embedded already, against all enrolled voices, whose part is
computed once. The peers must give the same scores:

* the cosine by SpeechBrain's ``similarity`` (torch's CosineSimilarity), voice by voice,
  as ``SpeakerRecognition.verify_batch`` takes it;
* cosine, AS-norm and likelihood ratio by this package's scores of one trial, voice by
  voice, as ``compare`` takes them; on a few of the voices, times their number.
"""

import time

import numpy as np
import torch
from harness import argument_parser, compare, report, summarise

from speechbrain_ext.scoring.backend import Backend, TrialSide, fit_calibrator
from speechbrain_ext.scoring.calibration.trials import draw_pairs
from speechbrain_ext.scoring.cohort import speaker_means

# voices, values, cohort speakers, top N, voices timed one by one
FULL, TOY = (5_000, 192, 5_994, 300, 100), (50, 16, 40, 10, 5)
SAME = 1e-4  # of float32 scores


def main(argv=None):
    arguments = argument_parser(__doc__).parse_args(argv)
    torch.set_num_threads(arguments.threads)
    size = TOY if arguments.toy else FULL
    report([by_cosine(*size, arguments.toy), by_all(*size, arguments.toy)], arguments)


def make(number, width, seed):
    """Made-up embeddings with their seconds."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((number, width), dtype=np.float32)
    return TrialSide(vectors, random.uniform(2, 10, number))


def by_cosine(number, width, *others):
    """The cosine alone → Row."""
    voices, test, backend = make(number, width, 0), make(1, width, 1), Backend()
    enrolled = backend.prepare(voices)
    similarity = torch.nn.CosineSimilarity(dim=-1, eps=1e-6)
    models, probe = torch.from_numpy(voices.vectors), torch.from_numpy(test.vectors[0])

    def ours():
        return backend.scores_of_all(enrolled, backend.prepare(test))["cosine"][:, 0]

    def peer():
        return np.array([similarity(model, probe).item() for model in models])

    check_equal(ours(), peer())
    return compare(
        f"cosines of {number:,} voices",
        *(ours, peer),
        toy=others[-1],
        peer_name="SpeechBrain",
        source="similarity of SpeakerRecognition, voice by voice",
    )


def by_all(number, width, cohort, top_n, timed, toy):
    """Cosine, AS-norm and likelihood ratio → Row."""
    voices, test = make(number, width, 0), make(1, width, 1)
    backend = backend_of(width, cohort, top_n)
    enrolled, some = backend.prepare(voices), range(0, number, number // timed)
    trial, seconds = np.array([[0, 0]]), ([], [])

    def ours():
        return backend.scores_of_all(enrolled, backend.prepare(test))["llr"][:, 0]

    def peer():
        sides = (TrialSide(*(column[[row]] for column in voices[:2])) for row in some)
        return [backend.scores(side, test, trial)["llr"][0] for side in sides]

    check_equal(ours()[list(some)], peer())
    for _ in range(2 if toy else 7):
        for side, function in enumerate((ours, peer)):
            start = time.perf_counter()
            function()
            seconds[side].append(time.perf_counter() - start)
    peers = [number / len(some) * taken for taken in seconds[1]]
    name = f"cosine, AS-norm and likelihood ratio of {number:,} voices"
    about = {"peer_name": "a loop", "source": "scores of compare, voice by voice"}
    return summarise(name, "s", seconds[0], peers, **about)


def backend_of(width, cohort, top_n):
    """A cohort, and a calibrator of its scores, both of made-up embeddings."""
    members = make(cohort, width, 2).vectors
    names = np.array([f"c{row:05d}" for row in range(cohort)])
    backend = Backend(speaker_means(members, names), top_n=top_n)
    side, speakers = make(40, width, 3), np.repeat([f"s{n}" for n in range(10)], 4)
    return fit_calibrator(backend, side, speakers, draw_pairs(speakers, 1000), l2=0.1)


def check_equal(ours, peer):
    """Both sides did the same work, or the figures mean nothing."""
    worst = np.abs(np.asarray(ours) - np.asarray(peer)).max()
    if not worst < SAME:
        raise SystemExit(f"scores differ by {worst:.2g}, expected less than {SAME:g}")


if __name__ == "__main__":
    main()
