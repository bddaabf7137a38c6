"""Features of a batch: this package against transformers' and torchaudio's.

    python benchmarks/features.py             # 64 × 3 s: a training batch
    python benchmarks/features.py --toy       # small, for continuous integration

The peer of w2v-BERT's is ``SeamlessM4TFeatureExtractor``, which the published code
calls in forward: frame by frame through numpy in one thread. That of ``KaldiFbank`` is
``torchaudio.compliance.kaldi``, which public networks of features call for each
recording. Both get the same waveforms and give the same figures, which is checked
first. Where other programs hold the cores, threads of one operation wait for each
other: measure on a quiet machine or with ``--threads 1``.
"""

import torch
from harness import argument_parser, compare, report
from torchaudio.compliance import kaldi
from transformers import SeamlessM4TFeatureExtractor

from speechbrain_ext.features import KaldiFbank
from speechbrain_ext.features.frames import SAMPLE_RATE
from speechbrain_ext.features.w2v_bert import W2VBertFeatures

PEER = {"peer_name": "transformers", "source": "SeamlessM4TFeatureExtractor"}
MARKS = {(64, 3): 5.0}
KALDI = {"peer_name": "torchaudio", "source": "compliance.kaldi.fbank"}
KALDI_MARK = 3.0


def main(argv=None):
    arguments = argument_parser(__doc__).parse_args(argv)
    torch.set_num_threads(arguments.threads)
    sizes = [(4, 1)] if arguments.toy else [(64, 3), (1, 3), (1, 60)]
    rows = [compare_size(*size, arguments.toy) for size in sizes]
    sizes = [(4, 1)] if arguments.toy else [(1, 3), (1, 10), (64, 3)]
    rows += [compare_kaldi(*size, arguments.toy) for size in sizes]
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

    check_equal(run_ours(), run_peer()[:, : run_ours().shape[1]])
    options = {"toy": toy, "memory": True, "mark": MARKS.get((batch, seconds)), **PEER}
    return compare(f"features {batch} × {seconds} s", run_ours, run_peer, 9, **options)


def compare_kaldi(batch, seconds, toy):
    """Kaldi's filterbank of as many utterances, as wespeaker has it → Row."""
    ours = KaldiFbank(80, "hamming", 2.0**15)
    torch.manual_seed(0)
    wavs = 0.1 * torch.randn(batch, seconds * SAMPLE_RATE)
    options = {"num_mel_bins": 80, "window_type": "hamming"}

    def run_ours():
        with torch.no_grad():
            return ours(wavs)[0]

    def run_peer():
        rows = [kaldi.fbank(2**15 * wav[None], **options) for wav in wavs]
        return torch.stack([row - row.mean(0) for row in rows])

    check_equal(run_ours(), run_peer())
    about = {"toy": toy, "mark": None if toy else KALDI_MARK, **KALDI}
    name = f"Kaldi's filterbank, {batch} × {seconds} s"
    return compare(name, run_ours, run_peer, 9, **about)


def check_equal(mine, theirs):
    """Features of both sides."""
    difference = (mine - theirs).abs().max()
    if not difference < 1e-3:
        raise SystemExit(f"features differ by {difference}, expected 1e-3 at most")


if __name__ == "__main__":
    main()
