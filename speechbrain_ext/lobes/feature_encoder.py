"""What networks of filterbank features share: features inside, one state.

    h = Network(Features(waveform))                 one state [B, T', C]

A network is a subclass with ``encode``, that calls :meth:`FeatureEncoder.take_features`
and says how many frames it leaves.
"""

from speechbrain_ext.features import KaldiFbank, VoxBlink2Features
from speechbrain_ext.lobes.encoder import Encoder, shared_copy
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.precision import valid_counts

# Name → features; the scale is that of whole numbers of 16 bits
FRONT_ENDS = {
    "wespeaker": lambda mels, dither: KaldiFbank(mels, "hamming", 32768.0, dither),
    "3dspeaker": lambda mels, dither: KaldiFbank(mels, "povey", 1.0, dither),
    "voxblink2": lambda mels, dither: VoxBlink2Features(mels, "peak"),
    "voxblink2_std": lambda mels, dither: VoxBlink2Features(mels, "deviation"),
}


def features_of(front_end, n_mels, dither, others=()):
    """The features of that name; InputError: neither one of these nor of ``others``."""
    if front_end not in FRONT_ENDS:
        known = ", ".join((*others, *FRONT_ENDS))
        raise InputError(f"front_end {front_end!r}, expected one of {known}")
    return FRONT_ENDS[front_end](n_mels, dither)


class FeatureEncoder(Encoder):
    """Waveform → (one state [B, T', C], lengths): base class of these networks.

    Attributes
    ----------
    features : torch.nn.Module
        (wavs, wav_lens) → (features [B, T, M], lengths [B]).
    feature_arguments : tuple of str
        Arguments of the constructor that say which features these are.
    """

    n_states = 1
    feature_arguments = ("front_end", "n_mels", "dither")

    def take_features(self, features):
        """Begin with these features."""
        self.features = features
        self.sample_rate = features.sample_rate
        self.min_samples = features.min_samples

    def front_end(self, wavs, wav_lens=None):
        """[B, T] → features [B, T', M], relative lengths [B]."""
        return self.features(wavs, wav_lens)

    def same_front_end(self, other):
        """Whether another network takes the same features."""
        return isinstance(other, FeatureEncoder) and all(
            other.arguments.get(name) == self.arguments[name]
            for name in self.feature_arguments
        )

    def left(self, frames):
        """Frames of the state that so many of the features make, also of a tensor."""
        return frames

    def output_lens(self, x, lens):
        """Lengths relative to the frames that are left."""
        if lens is None:
            return None
        valid = self.left(valid_counts(lens, x.shape[1]))
        return (valid / self.left(x.shape[1])).to(lens.device)

    def graph_form(self):
        """The same steps for any batch: features in one product."""
        form = shared_copy(self)
        form.features = self.features.graph_form()
        return form
