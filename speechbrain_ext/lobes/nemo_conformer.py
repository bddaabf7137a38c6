"""NVIDIA NeMo's Conformer encoder as a SpeechBrain lobe: waveform → all hidden states.

    h₀ = √C · Linear(Convolutions(features)),   h_l = Layer_l(h_{l−1}),   l = 1 … L

Gulati et al. 2020 (arXiv 2005.08100) in the shape of NeMo's recipe Conformer-CTC; with
separable convolutions it is FastConformer (Rekesh et al. 2023, arXiv 2305.05084). Names
of parameters are NeMo's. Layer drop, spectrogram masks and dither, which only its
training has, are left out: all states are there in training too.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ext.features import NemoFeatures
from speechbrain_ext.lobes.attention import fused
from speechbrain_ext.lobes.cpu_inference import Linear
from speechbrain_ext.lobes.encoder import Encoder, shared_copy
from speechbrain_ext.lobes.nemo_config import check_sections
from speechbrain_ext.lobes.nemo_layers import (
    ConformerLayer,
    ConvolutionModule,
    FeedForward,
    ShiftedAttention,
    Subsampling,
)
from speechbrain_ext.lobes.shifted_attention import distances
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.nemo_file import read_nemo
from speechbrain_ext.utils.precision import valid_counts
from speechbrain_ext.utils.weights import load_strictly

# Beginnings of the names of what else a recogniser's file holds.
LEFT_ASIDE = (
    *("decoder.", "ctc_decoder.", "joint.", "loss.", "preprocessor."),
    *("spec_augment.", "spec_augmentation.", "encoder.pos_enc."),
)


class NemoConformerEncoder(Encoder):
    """Waveform → (L+1 hidden states, lengths).

    Arguments
    ---------
    source : str, Path or dict
        A ``.nemo`` file, a folder with one or with its two members unpacked, a hub id
        (``nvidia/stt_en_conformer_ctc_large``), or a configuration alone, as a dict or
        its YAML or JSON file, with sections ``encoder`` and ``preprocessor``: random
        weights, no download.
    frozen : bool
        Parameters need no gradient, and the module stays in eval mode whatever
        ``.train()`` says, BatchNorm included. LoRA layers injected later train all the
        same.
    gradient_checkpointing : bool
        Recompute each layer in backward: less memory, about a third more time.
    savedir : str
        Where downloads from the hub are kept; None takes the hub's own cache.

    Example
    -------
    >>> encoder = {"feat_in": 80, "n_layers": 2, "d_model": 32}
    >>> encoder = NemoConformerEncoder({"encoder": encoder}).eval()
    >>> states, lens = encoder(torch.rand(2, 16000) - 0.5)
    >>> len(states), states[-1].shape
    (3, torch.Size([2, 25, 32]))
    """

    title = "NeMo Conformer"
    lora_targets = ("linear_q", "linear_v")
    int8_layers = (
        *("linear_q", "linear_k", "linear_v", "linear_out", "linear1", "linear2"),
        *("pointwise_conv1", "pointwise_conv2"),
    )

    def __init__(
        self, source, frozen=False, gradient_checkpointing=False, savedir=None
    ):
        super().__init__(frozen, gradient_checkpointing)
        sections, weights = read_nemo(source, savedir)
        kind = "encoder configuration" if isinstance(source, dict) else str(source)
        with naming(kind):
            config, self.settings, self.features = check_sections(sections)
        self.arguments["source"] = config
        self.sample_rate = self.features.sample_rate
        self.min_samples = self.features.min_samples
        settings = self.settings
        if settings.stages:
            self.pre_encode = Subsampling(settings)
        else:
            self.pre_encode = Linear(settings.feat_in, settings.d_model)
        self.pre_dropout = nn.Dropout(settings.dropout_pre_encoder)
        self.layers = nn.ModuleList(
            ConformerLayer(settings, width) for width in settings.widths
        )
        if weights is not None:
            self._load(weights, kind)

    def _load(self, weights, source):
        """The encoder's part of a recogniser's tensors."""
        for name, own in zip(("fb", "window"), self._constants()):
            given = weights.get(f"preprocessor.featurizer.{name}")
            if given is not None and not (
                given.squeeze().shape == own.shape
                and (given.squeeze() - own).abs().max() <= 0.01 * own.max()
            ):
                raise InputError(
                    f"{source}: preprocessor.featurizer.{name} {tuple(given.shape)} is "
                    f"not what the section preprocessor describes, {tuple(own.shape)}"
                )
        if not any(name.startswith("encoder.") for name in weights):
            weights = {f"encoder.{name}": value for name, value in weights.items()}
        weights = {
            name.removeprefix("encoder."): value
            for name, value in weights.items()
            if not name.startswith(LEFT_ASIDE)
        }
        load_strictly(self, weights, source)

    def _constants(self):
        """Mel filters [M, bins] and window, as a NeMo file has them."""
        _, mel, window = self.features.constants(torch.device("cpu"))
        left = (self.features.fft - self.features.frame) // 2
        return mel.t(), window[left : left + self.features.frame]

    @property
    def hidden_size(self):
        """Width C of the hidden states."""
        return self.settings.d_model

    @property
    def n_states(self):
        """L + 1: the subsampled input and every layer's output."""
        return len(self.layers) + 1

    def front_end(self, wavs, wav_lens=None):
        """[B, T] → features [B, T', M], relative lengths [B]."""
        return self.features(wavs, wav_lens)

    def encode(self, x, lens=None):
        """Features [B, T, M] and their lengths → L+1 states [B, T', C]."""
        x = x.to(self.layers[0].norm_out.weight.dtype)
        valid = None if lens is None else valid_counts(lens, x.shape[1]).to(x.device)
        if valid is not None and not torch.compiler.is_compiling():
            valid = None if bool((valid >= x.shape[1]).all()) else valid
        stem = (x, valid) if self.settings.stages else (x,)
        x = self.pre_encode(*stem)
        padding = None
        if valid is not None:
            places = torch.arange(x.shape[1], device=x.device)
            padding = places >= self._subsampled(valid).unsqueeze(1)
        if self.settings.xscaling:
            x = x * math.sqrt(self.hidden_size)
        states = [x]
        table = distances(x.shape[1], self.hidden_size, x)
        table = F.dropout(table, self.settings.dropout_emb, self.training)
        x = self.pre_dropout(x)
        for layer in self.layers:
            x = self.checkpointed(layer, x, table, padding)
            states.append(x)
        return states

    def _subsampled(self, frames):
        """Frames that are left of so many, a number or a tensor of them."""
        for _ in range(self.settings.stages):
            frames = (frames + 1) // 2
        return frames

    def output_lens(self, x, lens):
        """Lengths relative to the subsampled frames."""
        if lens is None:
            return None
        valid = self._subsampled(valid_counts(lens, x.shape[1]))
        return (valid / self._subsampled(x.shape[1])).to(lens.device)

    def truncate(self, n_states):
        """Leave out the layers behind the first ``n_states`` states, in place."""
        layers, config = n_states - 1, self.arguments["source"]
        widths = self.settings.layer_widths
        changes = {"n_layers": layers, "layer_widths": widths and widths[:layers]}
        self.settings = self.settings._replace(**changes)
        encoder = {**config["encoder"], **changes}
        self.arguments["source"] = {**config, "encoder": encoder}
        del self.layers[layers:]

    def same_front_end(self, other):
        """Whether another encoder takes the same features."""
        return isinstance(other, NemoConformerEncoder) and (
            self.arguments["source"]["preprocessor"]
            == other.arguments["source"]["preprocessor"]
        )

    def layer_kinds(self):
        """Classes that a profile by layers shows."""
        stem = {"subsampling": Subsampling} if self.settings.stages else {}
        return {
            "features": NemoFeatures,
            **stem,
            "feed-forward": FeedForward,
            "attention": ShiftedAttention,
            "convolution": ConvolutionModule,
        }

    def graph_form(self):
        """All frames in one product, all queries in one block, always a mask."""
        form = shared_copy(self)
        form.features = self.features.graph_form()
        for module in form.modules():
            if isinstance(module, ShiftedAttention):
                # the number of blocks would be that of the example
                module.attend = functools.partial(fused, block=None)
        return form

    def prunable_groups(self):
        """What may be removed → list of PrunableGroup, for ``pruning``."""
        return [
            group.within(f"layers.{number}", number)
            for number, layer in enumerate(self.layers)
            for group in layer.prunable_groups(self.settings)
        ]

    def resized(self, widths):
        """A new encoder of other widths, with random weights.

        ``widths`` is name of every prunable group → its units; its ``arguments`` keep
        them.
        """
        parts = ("self_attn", "feed_forward1", "feed_forward2", "conv")
        layers = [
            [widths[f"layers.{number}.{part}"] for part in parts]
            for number in range(len(self.layers))
        ]
        config = self.arguments["source"]
        encoder = {**config["encoder"], "layer_widths": layers}
        return type(self)(
            {**config, "encoder": encoder},
            frozen=self.frozen,
            gradient_checkpointing=self.gradient_checkpointing,
        )
