"""Figures that public code printed, made once on one processor.

The transforms of two processors round a float32 spectrum differently: by a share of the
loudest bin, which in the logarithm of a quiet one shows a thousand times. So features
are compared within what a transform may round, and networks on the same features.
"""

import numpy as np
import torch
from released_checkpoints import embed, embed_batch

from speechbrain_ext.utils.precision import valid_counts


class GoldenPeer:
    """One folder: waveforms [T], features [T', M] and embeddings of three signals."""

    def __init__(self, folder, transposed=False):
        with np.load(folder / "outputs.npz") as arrays:
            self.arrays = {name: torch.tensor(arrays[name]) for name in arrays}
        self.wavs = self.of("wav")
        self.features = [
            array.t().contiguous() if transposed else array for array in self.of("feat")
        ]

    def of(self, name):
        """The arrays of that name, one of each signal."""
        return [self.arrays[f"{name}{number}"] for number in range(3)]

    def give_features(self, encoder):
        """From now on the front end finds the features of the public code."""
        known = {len(w): f for w, f in zip(self.wavs, self.features, strict=True)}
        assert len(known) == 3

        def front_end(wavs, wav_lens=None):
            lens = torch.ones(len(wavs)) if wav_lens is None else wav_lens
            some = [known[int(n)] for n in valid_counts(lens, wavs.shape[1])]
            features = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
            frames = torch.tensor([len(found) for found in some])
            return features, frames / features.shape[1]

        encoder.front_end = front_end

    def assert_embeddings(self, verifier):
        """Alone, padded and through the verifier: within 1e-4 of the golden features.

        From the waveform within 1e-2: ten times what a transform rounds, a fortieth
        of what another window or scale does.
        """
        model, golden = verifier.mods.speaker_encoder, torch.stack(self.of("emb"))

        def check(bound):
            one_by_one = [verifier.encode_batch(wav[None])[0, 0] for wav in self.wavs]
            for found in (
                embed(model, self.wavs),
                embed_batch(model, self.wavs),
                torch.stack(one_by_one).cpu(),
            ):
                torch.testing.assert_close(found, golden, atol=bound, rtol=0)

        check(1e-2)
        self.give_features(model.encoder)
        check(1e-4)


def rounding(energy):
    """What ln of the energies [T', M] of two float32 transforms may differ by.

    A bin of amplitude a beside the loudest, A, is off by 2 ε A / a, ε the error of an
    FFT of 512 values: √log₂ 512 = 3 rounding errors of 6e-8 on average, ten times that
    at worst. Two processors were up to 0.7 of half of this apart.
    """
    loudest = energy.amax(1, keepdim=True)
    return 1e-5 + 4e-6 * (loudest / energy).sqrt()


def assert_within(found, expected, bound):
    """No element [T', M] is further off than its own bound."""
    assert found.shape == expected.shape == bound.shape
    excess = (found - expected).abs() / bound
    frame, mel = divmod(int(excess.argmax()), excess.shape[1])
    assert excess.max() <= 1, f"frame {frame}, bin {mel}: {excess.max():.2f} of bound"
