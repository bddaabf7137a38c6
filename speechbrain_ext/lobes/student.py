"""What students of large encoders begin with: a small front end, perhaps a teacher's.

    x₀ = Linear(LN(FrontEnd(waveform)))          50 frames a second

Either convolutions over the waveform, those of WavLM Base where nothing else is said,
as Heo et al. 2025 have them (arXiv 2509.14136): 512 channels, no biases, GroupNorm on
the first layer alone, exact GELU; or the mel features of w2v-BERT 2.0, of
which a student of that encoder need not learn anything and which are nearly free.
"""

import copy

from torch import nn

from speechbrain_ext.features.w2v_bert import W2VBertFeatures
from speechbrain_ext.lobes.encoder import Encoder, padding_mask
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.lobes.wav2vec2 import WaveformEncoder, check_convolutions
from speechbrain_ext.lobes.waveform_convolutions import FeatureExtractor, input_samples
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.weights import load_strictly, read_source

# Keys of a configuration that belong to the convolutions over the waveform.
FRONT_END = (
    *("conv_dim", "conv_kernel", "conv_stride", "conv_bias", "full_conv_dim"),
    *("feat_extract_norm", "feat_extract_activation", "conv_scale", "variance_floor"),
)
# What its front end shares with convolutions: 80 mels of 400 samples every 160, frames
# stacked by two.
FEATURES = {"conv_dim": [80, 160], "conv_kernel": [400, 2], "conv_stride": [160, 2]}
FRONT_ENDS = ("convolutions", "w2v_bert")


class Student(WaveformEncoder):
    """A small encoder of waveforms: what students have in common.

    Arguments
    ---------
    source : str, Path, configuration or dict
        As of :class:`~speechbrain_ext.lobes.wav2vec2.WaveformEncoder`; a dict with the
        values that are not the default's: ``{hidden_size: 384, num_hidden_layers: 6}``.
        Beside sizes it may have ``front_end: w2v_bert``, the features of w2v-BERT 2.0
        in place of ``convolutions``, and ``normalise_variance`` of these features.
    front_end_from : SpeakerEncoder or Encoder
        Whose convolutions it begins with, standardised waveforms included, or whose
        features and their projection, where it is a w2v-BERT; its configuration takes
        the place of the student's own.
    frozen, gradient_checkpointing, savedir, last_state, standardise
        As of the same class.

    Raises
    ------
    InputError
        ``front_end_from`` an encoder without such a front end, or beside weights.
    """

    def __init__(
        self,
        source,
        frozen: bool = False,
        gradient_checkpointing: bool = False,
        savedir: str | None = None,
        *,
        last_state: str = "normalised",
        standardise: bool | None = None,
        front_end_from: nn.Module | None = None,
    ):
        teacher = front_end_from
        if not isinstance(teacher, Encoder):  # whose own ``encoder`` is its layers
            teacher = getattr(teacher, "encoder", teacher)
        if teacher is not None:
            source = self._with_front_end(source, savedir, teacher)
            standardise = getattr(teacher, "standardise", False)  # None: as norms say
        super().__init__(
            source,
            frozen,
            gradient_checkpointing,
            savedir,
            last_state=last_state,
            standardise=standardise,
        )
        if teacher is not None:
            self._copy_front_end(teacher)

    def _with_front_end(self, source, savedir, teacher):
        if not isinstance(teacher, WaveformEncoder | W2VBertEncoder):
            raise InputError(
                f"front_end_from: {type(teacher).__name__}, expected an encoder with "
                "convolutions over the waveform, as WavLM, HuBERT or wav2vec 2.0, or "
                "a w2v-BERT"
            )
        config, weights = read_source(source, self.config_class, savedir, self.prefix)
        if weights is not None:
            raise InputError(
                f"front_end_from: {source} has weights of its own, expected a "
                "configuration alone"
            )
        features = getattr(teacher, "features", None)  # a student's may be w2v-BERT's
        config.front_end = "convolutions" if features is None else "w2v_bert"
        if features is not None:
            config.normalise_variance = features.normalise_variance
            for key, value in FEATURES.items():
                setattr(config, key, list(value))
            return config
        for key in FRONT_END:
            if hasattr(teacher.config, key):
                setattr(config, key, copy.copy(getattr(teacher.config, key)))
        return config

    def _copy_front_end(self, teacher):
        weights = {
            name: tensor
            for name, tensor in teacher.state_dict().items()
            if name.startswith(("feature_extractor.", "feature_projection."))
        }
        own = self.state_dict()
        fits = {
            name: tensor
            for name, tensor in weights.items()
            if name in own and own[name].shape == tensor.shape
        }
        if "feature_projection.projection.weight" not in fits:
            fits.pop("feature_projection.projection.bias", None)
        others = tuple(name for name in own if name not in fits)
        load_strictly(self, fits, "front_end_from", allow_missing=others)

    def build_front_end(self):
        """Make what is before the projection."""
        self.features = None
        if self.config.front_end == "w2v_bert":
            self.features = W2VBertFeatures(self.config.normalise_variance)
        else:
            super().build_front_end()

    def check_front_end(self, source):
        """InputError: a front end that is not built here."""
        config = self.config = copy.deepcopy(self.config)  # the caller's stays as it is
        if not isinstance(value := config.normalise_variance, bool):
            raise InputError(f"normalise_variance: {value!r}, expected true or false")
        if config.front_end == "w2v_bert":
            # what a configuration says of convolutions that are not there
            usual = type(config)()
            for key, value in FEATURES.items():
                given = list(getattr(config, key))
                if given not in (value, list(getattr(usual, key))):
                    raise InputError(
                        f"{key}: {given}, expected none with front_end w2v_bert"
                    )
                setattr(config, key, list(value))
            for key in ("repeat_last", "conv_scale", "full_conv_dim"):
                if value := getattr(config, key, None):
                    raise InputError(
                        f"{key}: {value}, expected none with front_end w2v_bert"
                    )
        elif config.front_end != "convolutions":
            expected = ", ".join(FRONT_ENDS)
            raise InputError(
                f"front_end: {config.front_end!r}, expected one of {expected}"
            )
        check_convolutions(config, source)
        if hasattr(config, "num_feat_extract_layers"):  # transformers compares it
            config.num_feat_extract_layers = len(config.conv_dim)

    @property
    def min_samples(self):
        """Samples of two frames, which half of the rate needs."""
        return input_samples(2, self.config.conv_kernel, self.config.conv_stride)

    def front_end(self, wavs, wav_lens=None):
        """The waveform as it is or standardised, or features; relative lengths [B]."""
        x, lens = super().front_end(wavs, wav_lens)
        # of lengths that are not given features look for no padding: no wait for a GPU
        return (x, lens) if self.features is None else self.features(x, wav_lens)

    def projected(self, x, lens):
        """As of :class:`WaveformEncoder`; of features, they take the waveform's place.

        Without the valid samples, that nothing behind needs.
        """
        if self.features is None:
            return super().projected(x, lens)
        x = x.to(next(self.feature_projection.parameters()).dtype)
        padding = padding_mask(x.shape[1], lens)
        x = self.feature_projection(x)
        if padding is not None:
            x = x.masked_fill(padding.unsqueeze(-1), 0.0)
        return x, None, padding

    def output_lens(self, x, lens):
        """Valid frames of every row, relative to those of the longest."""
        return lens if self.features is not None else super().output_lens(x, lens)

    def same_front_end(self, other):
        """Whether another encoder takes the same waveform, or the same features."""
        if self.features is None:
            return super().same_front_end(other)
        features = getattr(other, "features", None)
        return isinstance(features, W2VBertFeatures) and (
            self.standardise == getattr(other, "standardise", False)
            and self.features.normalise_variance == features.normalise_variance
        )

    def front_end_kinds(self):
        """What a profile by layers shows of the front end."""
        if self.features is None:
            return {"convolutions": FeatureExtractor}
        return {"features": W2VBertFeatures}

    def graph_form(self):
        """As of :class:`WaveformEncoder`, features in one product."""
        form = super().graph_form()
        if self.features is not None:
            form.features = self.features.graph_form()
        return form

    def convolution_groups(self):
        """None of features."""
        return [] if self.features is not None else super().convolution_groups()

    def resize_convolutions(self, config, widths):
        """Nothing of features."""
        if self.features is None:
            super().resize_convolutions(config, widths)


def check_keys(config, *others):
    """InputError: a key that means nothing would leave its default in force."""
    usual = type(config)()
    known = {*vars(usual), *usual.to_dict(), *FRONT_END, *others}
    if unknown := sorted(set(vars(config)) - known):
        raise InputError(
            f"{unknown[0]}: unknown, expected keys of {type(config).__name__}"
        )
