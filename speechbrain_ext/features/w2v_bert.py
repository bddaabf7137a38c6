"""Waveform → w2v-BERT 2.0 input, batched, differentiable, on any device.

Kaldi's log-mel filterbank f (:mod:`speechbrain_ext.features.kaldi`) of Povey's window
and a waveform of 16 bits, normalised and stacked, as transformers'
``SeamlessM4TFeatureExtractor`` computes it:

    z = (f − mean_t f) / √(var_t f + 1e−7)  per utterance and mel bin, N−1
    input[t] = (z[2t], z[2t+1])        two frames stacked: 160 values at 50 Hz
"""

import torch

from speechbrain_ext.features.frames import FRAME, HOP
from speechbrain_ext.features.kaldi import KaldiFbank

MIN_SAMPLES = FRAME + HOP  # two frames


class W2VBertFeatures(KaldiFbank):
    """The 160-dimensional input of w2v-BERT 2.0.

    Up to the spectrum it is float64, as the extractor is: beside a loud tone the quiet
    mel bins are less than float32's rounding of it, which the logarithm would show. For
    a device without float64, as Apple's GPUs, the CPU computes them.

    Arguments
    ---------
    normalise_variance : bool
        As w2v-BERT 2.0 does. False takes the mean off only: the spread of a mel bin
        tells speakers apart in short clean recordings, and an encoder that starts from
        random weights may learn from it.

    Example
    -------
    >>> features, lens = W2VBertFeatures()(torch.rand(2, 16000) - 0.5)
    >>> features.shape, lens
    (torch.Size([2, 49, 160]), tensor([1., 1.]))
    """

    stacked = 2
    dtype = torch.float64

    def __init__(self, normalise_variance=True):
        super().__init__(scale=2.0**15)
        self.normalise_variance = normalise_variance

    def finished(self, log_mel, frames):
        """[B, F, 80], valid frames [B] or None: all → [B, F / 2, 160]."""
        total = log_mel.shape[1] // self.stacked
        normalised = super().finished(log_mel, frames)
        shape = (log_mel.shape[0], total, self.stacked * log_mel.shape[2])
        features = normalised[:, : total * self.stacked].reshape(shape)
        if frames is not None:
            # the last frame of an odd number has no partner
            places = torch.arange(total, device=log_mel.device)
            inside = places < (frames // self.stacked)[:, None]
            features = features * inside.unsqueeze(-1)
        return features
