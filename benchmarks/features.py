"""Features of a batch: this package against transformers' and torchaudio's.

    python benchmarks/features.py             # 64 × 3 s: a training batch
    python benchmarks/features.py --toy       # small, for continuous integration

The peer of w2v-BERT's is ``SeamlessM4TFeatureExtractor``, which the published code
calls in forward: frame by frame through numpy in one thread. Those of networks of
features are torchaudio's functions, which their public code calls for each recording:
``compliance.kaldi``, and ``MelSpectrogram`` behind pre-emphasis. Both sides get the
same waveforms and give the same figures, which is checked first. Where other programs
hold the cores, threads of one operation wait for each other: measure on a quiet machine
or with ``--threads 1``.
"""

import torch
import torch.nn.functional as F
from harness import argument_parser, compare, report
from torchaudio.compliance import kaldi
from torchaudio.transforms import MelSpectrogram
from transformers import SeamlessM4TFeatureExtractor

from speechbrain_ext.features import (
    KaldiFbank,
    ReDimNetFeatures,
    VoxBlink2Features,
)
from speechbrain_ext.features.frames import SAMPLE_RATE
from speechbrain_ext.features.w2v_bert import W2VBertFeatures

PEER = {"peer_name": "transformers", "source": "SeamlessM4TFeatureExtractor"}
MARKS = {(64, 3): 5.0}
MEL_MARK = 3.0


def main(argv=None):
    arguments = argument_parser(__doc__).parse_args(argv)
    torch.set_num_threads(arguments.threads)
    sizes = [(4, 1)] if arguments.toy else [(64, 3), (1, 3), (1, 60)]
    rows = [compare_size(*size, arguments.toy) for size in sizes]
    sizes = [(4, 1)] if arguments.toy else [(64, 3), (20, 10)]
    rows += [
        compare_mel(name, *size, batched, arguments.toy)
        for name in PUBLIC
        for size in sizes
        for batched in (True, False)
    ]
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


def of_kaldi(wavs):
    """As wespeaker has them: a waveform [1, T] → [F, M]."""
    features = kaldi.fbank(2**15 * wavs, num_mel_bins=80, window_type="hamming")
    return features - features.mean(0)


REDIMNET_MEL = MelSpectrogram(
    *(SAMPLE_RATE, 512, 400, 160, 20, 7600),
    n_mels=72,
    window_fn=torch.hamming_window,
)
EMPHASIS = torch.tensor([[[-0.97, 1.0]]])


def of_redimnet(wavs):
    """As its layers/features.py has them: the same."""
    wavs = F.conv1d(F.pad(wavs.unsqueeze(1), (1, 0), "reflect"), EMPHASIS).squeeze(1)
    features = (REDIMNET_MEL(wavs) + 1e-6).log()
    return (features - features.mean(-1, keepdim=True))[0].t()


VOXBLINK2_MEL = MelSpectrogram(SAMPLE_RATE, 512, 400, 160, n_mels=80)


def of_voxblink2(wavs):
    """As its featCal has them: the same."""
    wavs = wavs / (wavs.abs().max() + 1e-4 / 2**15)
    wavs = torch.cat([wavs[:, :1], wavs[:, 1:] - 0.97 * wavs[:, :-1]], dim=1)
    features = (VOXBLINK2_MEL(wavs) + 1e-6).log()
    return (features - features.mean(-1, keepdim=True))[0].t()


# Features → ours, the public code's, and what it calls
PUBLIC = {
    "Kaldi's filterbank": (
        *(KaldiFbank(80, "hamming", 2.0**15), of_kaldi),
        "compliance.kaldi.fbank",
    ),
    "ReDimNet's features": (
        *(ReDimNetFeatures(), of_redimnet),
        "transforms.MelSpectrogram",
    ),
    "VoxBlink2's features": (
        *(VoxBlink2Features(), of_voxblink2),
        "transforms.MelSpectrogram",
    ),
}


def compare_mel(name, batch, seconds, batched, toy):
    """Those of ``batch`` utterances of ``seconds`` s → Row.

    Ours as one batch, or one by one, as the peer always.
    """
    ours, public, source = PUBLIC[name]
    torch.manual_seed(0)
    wavs = 0.1 * torch.randn(batch, seconds * SAMPLE_RATE)

    def run_ours():
        with torch.no_grad():
            return torch.cat(
                [ours(some)[0] for some in wavs.split(len(wavs) if batched else 1)]
            )

    def run_peer():
        return torch.stack([public(wav[None]) for wav in wavs])

    check_equal(run_ours(), run_peer())
    mark = None if toy else MEL_MARK
    about = {"peer_name": "torchaudio", "source": source, "toy": toy, "mark": mark}
    label = f"{name}, {batch} × {seconds} s{'' if batched else ', one by one'}"
    return compare(label, run_ours, run_peer, 9, **about)


def check_equal(mine, theirs):
    """Features of both sides."""
    difference = (mine - theirs).abs().max()
    if not difference < 1e-3:
        raise SystemExit(f"features differ by {difference}, expected 1e-3 at most")


if __name__ == "__main__":
    main()
