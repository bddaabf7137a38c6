"""A speaker encoder in a form that one fixed graph can hold, whatever its input's size.

Where the model chooses by the values of its input, the graph computes the general case:

    blocks of queries                 all queries at once
    no mask where nothing is padded   always a mask
    frames a few at a time, FFT       all frames in one product, x_f · P (below)
    ECAPA-TDNN row by row             borders reflected at the end of every row

All steps of the features up to the spectrum are linear in the 400 samples x_f of a
frame: removal of the mean, pre-emphasis, window, 2^15 and the transform are one matrix
P [400, 2·257]. It is float64 as they are, so that a quiet mel bin beside a loud tone
comes out the same.

The graph's modules share their parameters with the model, which stays as it is.
"""

import contextlib
import copy
import functools

import torch
from speechbrain.lobes.models import ECAPA_TDNN
from speechbrain.lobes.models.ECAPA_TDNN import Conv1d
from torch import nn

from speechbrain_ext.features import (
    FFT,
    FRAME,
    HOP,
    MEL_FLOOR,
    PREEMPHASIS,
    STACK,
    W2VBertFeatures,
    filterbank,
)
from speechbrain_ext.lobes.conformer import RelativeKeyAttention
from speechbrain_ext.lobes.heads import WeightedSumECAPA
from speechbrain_ext.lobes.relative_attention import fused

INSTANCE_NORM_EPS = 1e-5  # torch's own


def graph_parts(model):
    """The two halves of a speaker encoder in graph form.

    Exported one by one and then joined: the number of frames is a formula of the
    number of samples, which the exporter would carry through every layer, where it
    takes long and ends in conditions that it cannot decide.

    Arguments
    ---------
    model : SpeakerEncoder
        In eval mode.

    Returns
    -------
    features : GraphFeatures
        wavs [B, T], wav_lens [B] → features [B, T', 160], lens [B].
    embedding : EmbeddingGraph
        features, lens → [B, E].
    """
    model = _in_graph_form(_shared_copy(model)).eval()
    return model.encoder.features, EmbeddingGraph(model)


class EmbeddingGraph(nn.Module):
    """Features [B, T', 160] and their lengths [B] → embeddings [B, E]."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features, lens):
        """[B, T', 160], [B] relative → [B, E]."""
        states = self.model.encoder.encode_features(features, lens)
        return self.model.head(states, lens).squeeze(1)


class GraphFeatures(W2VBertFeatures):
    """The same features, all frames in one matrix product."""

    def __init__(self, features):
        super().__init__(features.normalise_variance)
        mel, _ = filterbank(torch.device("cpu"))
        self.register_buffer("projection", spectrum_matrix(), persistent=False)
        self.register_buffer("mel", mel, persistent=False)

    def forward(self, wavs, wav_lens):
        """wavs [B, T], wav_lens [B] → features [B, T', 160], lens [B]."""
        samples = torch.round(wav_lens.double() * wavs.shape[1]).long()
        inside = torch.arange(wavs.shape[1], device=wavs.device) < samples.unsqueeze(1)
        log_mel = self._log_mel(wavs.where(inside, 0.0))
        frames = 1 + (samples - FRAME) // HOP
        features = self._normalised(log_mel, frames)
        return features, frames // STACK / features.shape[1]

    def _log_mel(self, wavs):
        """[B, T] → [B, F, 80]."""
        spectrum = torch.matmul(_frames(wavs).double(), self.projection)
        real, imaginary = spectrum.float().square().chunk(2, dim=-1)
        return torch.matmul(real + imaginary, self.mel).clamp(min=MEL_FLOOR).log()


class WholeAttention(RelativeKeyAttention):
    """All queries in one block: the number of blocks would be that of the example."""

    attend = staticmethod(functools.partial(fused, block=None))


class MaskedECAPA(WeightedSumECAPA):
    """Rows of different lengths at once, each as if it were alone."""

    def forward(self, states, lens):
        """L+1 states [B, T, C], lens [B] relative → [B, 1, E]."""
        total = self.weighted_sum(states)
        frames = torch.round(lens.double() * total.shape[1]).long()
        inside = torch.arange(total.shape[1], device=total.device) < frames[:, None]
        normalised = _instance_norm(total, inside.unsqueeze(-1), frames.view(-1, 1, 1))
        with _row_ends(self.ecapa_tdnn, frames):
            # half a frame less: ECAPA-TDNN compares lens · T with whole numbers
            return self.ecapa_tdnn(normalised, (frames - 0.5) / total.shape[1])


class RowReflectingConv1d(Conv1d):
    """ECAPA-TDNN's convolution, reflecting at the end of each row, not of the batch."""

    frames = None  # [B], valid ones; set by the head for each forward

    def _manage_padding(self, x, kernel_size, dilation, stride):
        """[B, C, T] → [B, C, T + 2p]."""
        border = dilation * (kernel_size - 1) // 2
        place = torch.arange(-border, x.shape[-1] + border, device=x.device).abs()
        last = self.frames.unsqueeze(1) - 1
        place = torch.where(place > last, 2 * last - place, place).clamp(min=0)
        return x.gather(2, place.unsqueeze(1).expand(-1, x.shape[1], -1))


def spectrum_matrix():
    """P: what takes a frame of samples to its windowed spectrum.

    Returns
    -------
    torch.Tensor
        [400, 2·257], float64: real parts, then imaginary ones.
    """
    _, window = filterbank(torch.device("cpu"))
    frames = torch.eye(FRAME, dtype=torch.float64)
    frames = frames - frames.mean(1, keepdim=True)
    before = nn.functional.pad(frames, (1, 0))[:, :-1]
    emphasised = frames - PREEMPHASIS * before  # the window is 0 at the first sample
    spectrum = torch.fft.rfft(emphasised * window[:FRAME], n=FFT)
    return torch.cat([spectrum.real, spectrum.imag], dim=1)


def _frames(wavs):
    """[B, T] → overlapping frames, [B, F, 400].

    F is rounded up to pairs, so that stacking them leaves no frame over; the frame
    beyond the end holds nothing of use and lies in the padding of every row.
    """
    samples = wavs.shape[1]
    pairs = (samples - FRAME + STACK * HOP) // (STACK * HOP)
    starts = torch.arange(STACK * pairs, device=wavs.device) * HOP
    places = starts.unsqueeze(1) + torch.arange(FRAME, device=wavs.device)
    return wavs[:, places.clamp(max=samples - 1)]


def _instance_norm(x, inside, count):
    """Zero mean, unit variance over the frames inside: [B, T, C] → the same."""
    mean = torch.where(inside, x, 0.0).sum(1, keepdim=True) / count
    centred = torch.where(inside, x - mean, 0.0)
    variance = centred.square().sum(1, keepdim=True) / count
    return centred * (variance + INSTANCE_NORM_EPS).rsqrt()


@contextlib.contextmanager
def _row_ends(ecapa, frames):
    """Let ECAPA-TDNN know where its rows end, in a way that holds for any batch.

    SpeechBrain's own ``length_to_mask`` would make the batch size of the example a
    constant of the graph.
    """
    convolutions = [m for m in ecapa.modules() if isinstance(m, RowReflectingConv1d)]
    own = ECAPA_TDNN.length_to_mask
    ECAPA_TDNN.length_to_mask = _length_to_mask
    try:
        for convolution in convolutions:
            convolution.frames = frames
        yield
    finally:
        ECAPA_TDNN.length_to_mask = own
        for convolution in convolutions:
            convolution.frames = None


def _length_to_mask(lengths, max_len, device):
    """Lengths [B] in frames → [B, max_len], True where valid."""
    return torch.arange(max_len, device=device) < lengths.unsqueeze(1)


def _shared_copy(model):
    """New modules around the same tensors: 580 M parameters are not held twice."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _in_graph_form(model):
    """Put the forms of this file in the place of the model's own; in place."""
    model.encoder.features = GraphFeatures(model.encoder.features)
    for module in model.modules():
        if type(module) is RelativeKeyAttention:
            module.__class__ = WholeAttention
        elif type(module) is WeightedSumECAPA:
            module.__class__ = MaskedECAPA
        elif type(module) is Conv1d and module.kernel_size > 1:
            module.__class__ = RowReflectingConv1d
    return model
