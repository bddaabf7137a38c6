"""Waveform to all hidden states: our lobe against SpeechBrain's own.

    python benchmarks/lobe.py          # 6 layers of full width, 3 s to 8 × 3–10 s
    python benchmarks/lobe.py --toy    # 2 layers × 64, for continuous integration

The peer is ``speechbrain.integrations.huggingface.w2v_bert.W2VBert`` with the same
random weights: transformers' extractor and model, frozen, with all hidden states. The
padded batch has lengths of 3 to 10 s on both sides; the states of its valid frames must
be equal within 1e-4, as must those of single recordings.
"""

import tempfile

import torch
from harness import argument_parser, compare, report
from speechbrain.integrations.huggingface.w2v_bert import W2VBert
from transformers import (
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
)

from speechbrain_ext.features.frames import SAMPLE_RATE
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder

FULL = {"num_hidden_layers": 6}
TOY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
# seconds of each recording of a batch: whole ones make whole pairs of frames
LENGTHS, TOY_LENGTHS = ([3], [10], [3, 4, 5, 6, 7, 8, 9, 10]), ([1], [1, 2])
PEER = {"peer_name": "SpeechBrain's lobe", "source": "W2VBert"}


def main(argv=None):
    arguments = argument_parser(__doc__).parse_args(argv)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        sides = both_sides(folder, TOY if arguments.toy else FULL)
        rows = [
            compare_lengths(*sides, lengths, arguments.toy)
            for lengths in (TOY_LENGTHS if arguments.toy else LENGTHS)
        ]
    report(rows, arguments)


def both_sides(folder, sizes):
    """The same weights as our lobe and as SpeechBrain's, which reads a folder."""
    torch.manual_seed(0)
    Wav2Vec2BertModel(Wav2Vec2BertConfig(**sizes)).save_pretrained(folder)
    SeamlessM4TFeatureExtractor().save_pretrained(folder)
    peer = W2VBert(folder, save_path=folder, output_all_hiddens=True)
    return W2VBertEncoder(folder, frozen=True), peer


def compare_lengths(encoder, lobe, lengths, toy):
    """One batch of recordings of whole seconds through both → Row."""
    longest = max(lengths)
    wavs = 0.1 * torch.randn(len(lengths), longest * SAMPLE_RATE)
    lens = torch.tensor(lengths) / longest
    for wav, seconds in zip(wavs, lengths):
        wav[seconds * SAMPLE_RATE :] = 0

    def ours():
        return encoder(wavs, lens)[0]

    @torch.no_grad()
    def peer():
        return lobe(wavs, lens)

    name = f"{len(lengths)} × {min(lengths)}–{longest} s, {encoder.n_states} states"
    if min(lengths) == longest:
        name = f"{len(lengths)} × {longest} s, {encoder.n_states} states"
    frames = [encoder.example(seconds)[0].shape[1] for seconds in lengths]
    check_equal(name, torch.stack(ours()), peer(), frames)
    options = {"toy": toy, "memory": True, **PEER}
    return compare(name, ours, peer, 5, 1, **options)


def check_equal(name, ours, peer, frames):
    """States [L+1, B, T', C] on the frames of each recording."""
    apart = max(
        float((ours[:, row, :n] - peer[:, row, :n]).abs().max())
        for row, n in enumerate(frames)
    )
    if not apart < 1e-4:
        raise SystemExit(f"{name}: states differ by {apart}, expected 1e-4 at most")


if __name__ == "__main__":
    main()
