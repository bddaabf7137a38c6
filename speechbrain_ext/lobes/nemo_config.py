"""The configuration of NeMo's Conformer: its sections, checked before building.

Keys and defaults are NeMo's. What a key chooses that is not built here is refused by
its name and value; what changes nothing, or training alone, is passed over.
``layer_widths`` is ours, for pruned models: [heads, units of the first feed-forward
part, of the second, channels of the convolution] of every layer.
"""

import math
from typing import Literal, NamedTuple

from pydantic import NonNegativeFloat, PositiveInt

from speechbrain_ext.features import NemoFeatures
from speechbrain_ext.utils.arguments import check_arguments
from speechbrain_ext.utils.errors import InputError, naming

# What the configuration may choose in NeMo, but has no choice of here: key → values.
BUILT = {
    "encoder": {
        "self_attention_model": ("rel_pos",),
        "untie_biases": (True,),
        "att_context_size": (None, [-1, -1], [[-1, -1]]),
        "causal_downsampling": (False, None),
        "reduction": (None, ""),
        "subsampling": ("striding", "dw_striding", None),
        "conv_norm_type": ("batch_norm", "layer_norm"),
    },
    "preprocessor": {
        "frame_splicing": (1,),
        "exact_pad": (False,),
        "use_torchaudio": (False,),
    },
}
# What changes nothing, or training alone.
WITHOUT_EFFECT = {
    "encoder": (
        *("att_context_style", "att_context_probs", "pos_emb_max_len"),
        *("subsampling_conv_chunking_factor", "reduction_position"),
        *("reduction_factor", "stochastic_depth_drop_prob", "stochastic_depth_mode"),
        *("stochastic_depth_start_layer", "global_tokens", "global_tokens_spacing"),
        *("global_attn_separate", "use_pytorch_sdpa", "use_pytorch_sdpa_backends"),
        *("sync_max_audio_length", "conv_dual_mode", "feat_out"),
    ),
    "preprocessor": (
        *("dither", "pad_to", "pad_value", "rng", "nb_augmentation_prob"),
        *("nb_max_freq", "stft_conv", "stft_exact_pad", "max_duration", "use_grads"),
    ),
}
TARGETS = {
    "encoder": "ConformerEncoder",
    "preprocessor": "AudioToMelSpectrogramPreprocessor",
}
# Where a section is not there at all: what NeMo's Conformer recipes say.
RECIPE = {"window_size": 0.025, "n_fft": 512}
# NeMo's defaults of what its class of features takes.
PREPROCESSOR = {
    "sample_rate": 16000,
    "window_size": 0.02,
    "window_stride": 0.01,
    "n_window_size": None,
    "n_window_stride": None,
    "window": "hann",
    "normalize": "per_feature",
    "n_fft": None,
    "preemph": 0.97,
    "features": 64,
    "lowfreq": 0,
    "highfreq": None,
    "log": True,
    "log_zero_guard_type": "add",
    "log_zero_guard_value": 2**-24,
    "mag_power": 2.0,
    "mel_norm": "slaney",
}


class Settings(NamedTuple):
    """What is built, by NeMo's keys and with its defaults."""

    feat_in: PositiveInt
    n_layers: PositiveInt
    d_model: PositiveInt
    subsampling: str | None = "striding"
    subsampling_factor: PositiveInt = 4
    subsampling_conv_channels: int = -1
    ff_expansion_factor: PositiveInt = 4
    n_heads: PositiveInt = 4
    xscaling: bool = True
    conv_kernel_size: PositiveInt = 31
    conv_norm_type: str = "batch_norm"
    conv_context_size: list[int] | Literal["causal"] | None = None
    use_bias: bool = True
    dropout: NonNegativeFloat = 0.1
    dropout_pre_encoder: NonNegativeFloat = 0.1
    dropout_emb: NonNegativeFloat = 0.1
    dropout_att: NonNegativeFloat = 0.0
    layer_widths: list[list[int]] | None = None

    @property
    def stages(self):
        """Convolutions that halve time; 0: a linear map alone."""
        return int(math.log2(self.subsampling_factor)) if self.subsampling else 0

    @property
    def full_width(self):
        """Width of an unpruned layer."""
        ffn = self.d_model * self.ff_expansion_factor
        return Width(self.n_heads, ffn, ffn, self.d_model)

    @property
    def widths(self):
        """Of all layers."""
        own = self.layer_widths or [self.full_width] * self.n_layers
        return [Width(*width) for width in own]

    @property
    def context(self):
        """Frames that a depthwise convolution sees before and behind."""
        if self.conv_context_size == "causal":
            return self.conv_kernel_size - 1, 0
        half = (self.conv_kernel_size - 1) // 2
        return tuple(self.conv_context_size or (half, half))


class Width(NamedTuple):
    """Units of one layer's parts; 0 leaves that part out."""

    heads: int
    ffn1: int
    ffn2: int
    conv: int


def check_sections(sections):
    """Sections of a file → (those that rebuild the encoder, Settings, NemoFeatures).

    InputError: what is not built here, by its key and value.
    """
    encoder = _known("encoder", sections["encoder"])
    check_arguments("encoder", Settings, kwargs=encoder)
    settings = Settings(**encoder)
    _check_settings(settings)
    given = sections["preprocessor"] or {**RECIPE, "features": settings.feat_in}
    given = _in_samples(_known("preprocessor", given))
    check_arguments("preprocessor", NemoFeatures, kwargs=given)
    with naming("preprocessor"):
        features = NemoFeatures(**given)
    feat_out, bins = sections["encoder"].get("feat_out"), given["features"]
    if feat_out not in (None, -1, 0, settings.d_model):
        raise InputError(f"encoder.feat_out {feat_out!r} is not built, expected -1")
    if bins != settings.feat_in:
        raise InputError(
            f"encoder.feat_in {settings.feat_in}, expected preprocessor.features {bins}"
        )
    # what is NeMo's default stays away: not all floats survive a YAML file's reading
    own = {k: v for k, v in given.items() if PREPROCESSOR[k] != v}
    return {"encoder": encoder, "preprocessor": own}, settings, features


def _known(section, values):
    """The keys that mean something here; InputError: one that is not built."""
    target = str(values.get("_target_") or TARGETS[section])
    if target.rpartition(".")[2] != TARGETS[section]:
        raise InputError(f"{section}._target_ {target}, expected {TARGETS[section]}")
    for key, built in BUILT[section].items():
        if key in values and values[key] not in built:
            raise InputError(
                f"{section}.{key} {values[key]!r} is not built, expected {built[0]!r}"
            )
    read = set(Settings._fields) if section == "encoder" else set(PREPROCESSOR)
    aside = {"_target_", *WITHOUT_EFFECT[section], *BUILT[section]} - read
    for key, value in values.items():
        if key not in read | aside and value:
            raise InputError(f"{section}.{key} {value!r} is not known here")
    return {key: value for key, value in values.items() if key in read}


def _in_samples(values):
    """The section preprocessor with NeMo's defaults, windows in samples."""
    values = {**PREPROCESSOR, **values}
    rate = values["sample_rate"]
    for name in ("window_size", "window_stride"):
        seconds, samples = values.pop(name), values[f"n_{name}"]
        if samples is None:
            values[f"n_{name}"] = _samples(name, seconds, rate)
    if values["normalize"] not in ("per_feature", "all_features"):
        values["normalize"] = None
    return values


def _samples(name, seconds, rate):
    try:
        return int(seconds * rate)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"preprocessor.{name} {seconds!r}, expected seconds"
        ) from error


def _check_settings(settings):
    """InputError: sizes that do not fit each other."""
    width, heads = settings.d_model, settings.n_heads
    factor, kernel = settings.subsampling_factor, settings.conv_kernel_size
    channels, context = settings.subsampling_conv_channels, settings.context
    around = len(context) == 2 and min(context) >= 0 and sum(context) == kernel - 1
    for key, right, expected in (
        ("d_model", width % heads == 0, f"a multiple of n_heads {heads}"),
        ("d_model", width % 2 == 0, "an even number"),
        ("subsampling_factor", factor & (factor - 1) == 0, "a power of 2"),
        ("subsampling_conv_channels", channels == -1 or channels > 0, "-1, or above 0"),
        ("conv_kernel_size", kernel % 2 == 1, "an odd number"),
        (
            "conv_context_size",
            around,
            f"null, causal or two numbers that sum to {kernel - 1}",
        ),
        (
            "layer_widths",
            _are_widths(settings),
            f"{settings.n_layers} lists of numbers up to {list(settings.full_width)}",
        ),
    ):
        if not right:
            value = getattr(settings, key)
            raise InputError(f"encoder.{key} {value!r}, expected {expected}")


def _are_widths(settings):
    own, full = settings.layer_widths, settings.full_width
    return own is None or (
        len(own) == settings.n_layers
        and all(len(row) == len(full) for row in own)
        and all(0 <= n <= most for row in own for n, most in zip(row, full))
    )
