"""Features of a batch: this package against transformers' extractor.

    python benchmarks/features.py             # 64 × 3 s: a training batch
    python benchmarks/features.py --toy       # small, for continuous integration

The peer is ``SeamlessM4TFeatureExtractor``, which the published code calls in forward:
frame by frame through numpy in one thread. Both get the same waveforms and give the
same figures, which is checked first. Where other programs hold the cores, threads of
one operation wait for each other: measure on a quiet machine or with ``--threads 1``.
"""

import torch
from harness import argument_parser, compare, report
from transformers import SeamlessM4TFeatureExtractor

from speechbrain_ext.features.frames import SAMPLE_RATE
from speechbrain_ext.features.w2v_bert import W2VBertFeatures

PEER = {"peer_name": "transformers", "source": "SeamlessM4TFeatureExtractor"}
MARKS = {(64, 3): 5.0}


def main(argv=None):
    arguments = argument_parser(__doc__).parse_args(argv)
    torch.set_num_threads(arguments.threads)
    sizes = [(4, 1)] if arguments.toy else [(64, 3), (1, 3), (1, 60)]
    rows = [compare_size(*size, arguments.toy) for size in sizes]
    report(rows, arguments)


def compare_size(batch, seconds, toy):
    """Both on ``batch`` utterances of ``seconds`` s → Row."""
    ours, peer = W2VBertFeatures(), SeamlessM4TFeatureExtractor()
    torch.manual_seed(0)
    wavs = 0.1 * torch.randn(batch, seconds * SAMPLE_RATE)
    arrays = list(wavs.numpy())

    def run_ours():
        with torch.no_grad():
            return ours(wavs)[0]

    def run_peer():
        batch = peer(arrays, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        return batch["input_features"]

    mine, theirs = run_ours(), run_peer()[:, : run_ours().shape[1]]
    difference = (mine - theirs).abs().max()
    if not difference < 1e-3:
        raise SystemExit(f"features differ by {difference}, expected 1e-3 at most")
    options = {"toy": toy, "memory": True, "mark": MARKS.get((batch, seconds)), **PEER}
    return compare(f"features {batch} × {seconds} s", run_ours, run_peer, 9, **options)


if __name__ == "__main__":
    main()
