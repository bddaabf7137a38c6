"""The contract of encoders and heads: what the rest of the package relies on.

    states, lens = encoder(wavs, wav_lens)      L+1 tensors [B, T', C], lens [B]
    embedding = head(states, lens)              [B, 1, E]

An encoder is one file: a subclass of :class:`Encoder` with ``front_end`` (where the
input is not the waveform itself), ``encode``, ``hidden_size`` and ``n_states``. All
else has a default. A network of filterbank features is an encoder with one state. Two
rules hold for all of them, and ``tests/lobes/test_encoder_contract.py`` checks them:

- A padded batch gives what its utterances give alone, in their valid frames.
- The constructor's arguments, which are recorded by themselves as ``arguments``,
  rebuild the module without its weights. So they are values that JSON holds, and a
  saved model's ``hyperparams.yaml`` is written from them.

Units that may be pruned are declared as :class:`PrunableGroup`; gates are hooked on
the modules that a group names (:mod:`speechbrain_ext.pruning.gates`), so no forward
knows of them, and modules of transformers may be pruned as they are.
"""

import copy
import functools
import inspect
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from speechbrain_ext.utils.errors import InputError, check_at_least
from speechbrain_ext.utils.precision import valid_counts

# Constructor arguments of an encoder that are not saved: how it trains, where its
# download is kept, whose weights it begins with. Whoever loads a model chooses them
# anew.
NOT_SAVED = ("frozen", "gradient_checkpointing", "savedir", "front_end_from")


class _Rebuildable(nn.Module):
    """Records the arguments of its constructor as ``arguments``, a dict."""

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recorded(cls.__init__)

    def _built(self):
        """Called once, after the constructor of the outermost class."""


def _recorded(init):
    """A constructor that notes its arguments, defaults included, before it runs."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def recorded(self, *args, **kwargs):
        outermost = "arguments" not in self.__dict__  # a subclass's come first
        if outermost:
            try:
                bound = signature.bind(self, *args, **kwargs)
            except TypeError:
                return init(self, *args, **kwargs)  # its own message names the class
            bound.apply_defaults()
            values = {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in list(bound.arguments.items())[1:]
            }
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    values.update(values.pop(name))
            for name in NOT_SAVED:
                values.pop(name, None)
            self.__dict__["arguments"] = values
        init(self, *args, **kwargs)
        if outermost:
            self._built()

    return recorded


class Encoder(_Rebuildable):
    """Waveform → (list of hidden states, lengths): base class.

    A subclass calls ``super().__init__(frozen, gradient_checkpointing)`` with what its
    own constructor takes of the two. One that cannot recompute its layers does not take
    ``gradient_checkpointing``; then asking for it is an error, never ignored.

    Attributes
    ----------
    title : str
        What a model card calls it; None: the name of the class.
    sample_rate : int
        Hz of the input.
    min_samples : int
        Length of the shortest input.
    max_samples : int or None
        That of the longest; None: any. Inference cuts longer recordings into windows,
        a training whose crops are longer does not begin.
    hidden_size, n_states : int
        Width C of the hidden states, and their number.
    arguments : dict
        Of the constructor, less :data:`NOT_SAVED`. An encoder that starts from
        pretrained weights puts the configuration (a dict) in the place of ``source``.
    lora_targets, int8_layers : tuple of str
        Last parts of the names of the linear layers that LoRA adapts by default, and of
        those for 8 bits (:mod:`speechbrain_ext.lobes.int8`), which are only called.
    """

    title = None
    sample_rate = 16000
    min_samples = 400
    max_samples = None
    hidden_size: int
    n_states: int
    lora_targets = int8_layers = ()

    def __init__(self, frozen=False, gradient_checkpointing=False):
        super().__init__()
        self.frozen = frozen
        self.gradient_checkpointing = gradient_checkpointing

    def _built(self):
        if self.frozen:
            self.freeze()

    # -- forward -------------------------------------------------------------------

    def forward(self, wavs, wav_lens=None):
        """Encode a batch of waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            [B, T], ±1 at ``sample_rate``.
        wav_lens : torch.Tensor
            [B], relative to T; None where nothing is padded.

        Returns
        -------
        states : list of torch.Tensor
            ``n_states`` tensors [B, T', C]. Only their valid frames mean anything.
        lens : torch.Tensor
            [B], relative to T'.
        """
        x, lens = self.front_end(wavs, wav_lens)
        return self.encode(x, lens), self.output_lens(x, lens)

    def front_end(self, wavs, wav_lens=None):
        """What has no weights: features, or the waveform standardised.

        Without parameters and buffers: constants are made where the input is.

        Returns
        -------
        x : torch.Tensor
            Input of :meth:`encode`, [B, T, …].
        lens : torch.Tensor
            [B], relative to its T.
        """
        if wav_lens is None:
            wav_lens = torch.ones(len(wavs), device=wavs.device)
        return wavs, wav_lens

    def same_front_end(self, other):
        """Whether ``x`` of this encoder is also what another one takes."""
        return type(self).front_end is type(other).front_end is Encoder.front_end

    def encode(self, x, lens=None):
        """What has weights: x and its lengths [B] → list of states [B, T', C].

        Distillation compares its result, DistributedDataParallel wraps it, ONNX exports
        it, and multiply-adds are counted in it.
        """
        raise NotImplementedError(f"{type(self).__name__}.encode")

    def output_lens(self, x, lens):
        """Lengths relative to T' from those relative to the T of ``x``.

        The same, unless ``encode`` shortens time otherwise than in proportion: whole
        frames of a convolution are fewer. ``lens`` may be None: nothing is padded.
        """
        return lens

    def example(self, seconds=1.0):
        """What ``encode`` gets for so many seconds of silence → (x, lens).

        Raises
        ------
        InputError
            Where that is shorter than ``min_samples``.
        """
        samples = round(seconds * self.sample_rate)
        if samples < self.min_samples:
            shortest = self.min_samples / self.sample_rate
            raise InputError(f"seconds: {seconds:g}, expected {shortest:g} or more")
        x, lens = self.front_end(torch.zeros(1, samples))
        weight = next(self.parameters())
        return x.to(weight.device, weight.dtype), lens.to(weight.device)

    # -- training ------------------------------------------------------------------

    def freeze(self, frozen=True):
        """No parameter needs a gradient, and the mode stays eval; or all train again.

        LoRA layers that are injected later train all the same.
        """
        self.frozen = frozen
        self.requires_grad_(not frozen)
        return self.train(not frozen)

    def train(self, mode=True):
        """A frozen encoder stays in eval mode; only LoRA's dropout follows ``mode``."""
        super().train(mode and not self.frozen)
        if self.frozen and mode:
            for name, module in self.named_modules():
                if "lora_dropout" in name:
                    module.train(mode)
        return self

    def set_training_options(self, frozen=False, gradient_checkpointing=False):
        """Set how it trains, as its constructor would.

        Raises
        ------
        InputError
            Gradient checkpointing of an encoder that does not take this argument.
        """
        takes = inspect.signature(type(self).__init__).parameters
        if gradient_checkpointing and "gradient_checkpointing" not in takes:
            raise InputError(
                f"gradient_checkpointing: {type(self).__name__} has none, expected "
                "False"
            )
        self.gradient_checkpointing = gradient_checkpointing
        return self.freeze(frozen)

    def checkpointed(self, layer, *inputs):
        """Run one layer; with ``gradient_checkpointing`` it runs again in backward."""
        # not only in training mode: a frozen encoder with LoRA is in eval mode
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return layer(*inputs)
        contexts = {"context_fn": lambda: (nullcontext(), _statistics_kept(layer))}
        return checkpoint(layer, *inputs, use_reentrant=False, **contexts)

    # -- pruning, profile, ONNX ----------------------------------------------------

    def truncate(self, n_states):
        """Leave out, in place, the layers behind the first ``n_states`` states.

        For a head that reads no later state: layers that nobody reads would cost their
        time, and give DistributedDataParallel parameters without a gradient. The states
        that stay are what they were, ``arguments`` rebuild the shorter encoder.

        Raises
        ------
        InputError
            An encoder that cannot; here each.
        """
        raise InputError(
            f"layers: the head reads the first {n_states} states of "
            f"{type(self).__name__}, which cannot leave out the layers behind them, "
            f"expected layers that end with {self.n_states - 1}"
        )

    def prunable_groups(self):
        """What may be removed → list of :class:`PrunableGroup`; here nothing."""
        return []

    def resized(self, widths):
        """A new encoder of other widths, with random weights.

        Arguments
        ---------
        widths : dict
            Name of every prunable group → its units. The new ``arguments`` hold them.
        """
        raise InputError(f"{type(self).__name__}: cannot be built with other widths")

    def layer_kinds(self):
        """What a profile by layers shows: name → class of modules, in order."""
        return {}

    def graph_form(self):
        """This encoder as an ONNX graph needs it; None: it cannot be exported.

        Returns
        -------
        Encoder
            Sharing the weights of this one. Its ``front_end`` and ``encode`` do the
            same steps whatever the values, the batch and the lengths are.
        """
        return None


class Head(_Rebuildable):
    """(states, lens) → [B, 1, E]: base class of heads.

    The constructor's first arguments are ``input_size`` (the encoder's ``hidden_size``)
    and ``n_states``; without an argument ``embedding_size`` a subclass says its own.
    ``prunable_groups`` and ``resized`` are as in :class:`Encoder`. ``min_frames`` is
    the number of frames that it needs.

    A head may read some of the states only, as partial MFA does (Whisper-PMFA, arXiv
    2408.15585): its constructor takes ``layers``, calls :meth:`read_states`, and
    ``forward`` begins with :meth:`chosen`.
    """

    min_frames = 1
    states_read = None  # (first, last, n_states)
    used_by = "SpeakerVerifier"  # of speechbrain_ext.inference: what loads its folder

    def read_states(self, n_states, layers=None):
        """Of ``n_states`` read ``layers``, [first, last] inclusive → how many.

        Raises
        ------
        InputError
            No such states.
        """
        check_at_least("n_states", n_states, 1)
        first, last = _checked_range(layers, n_states)
        self.states_read = (first, last, n_states)
        return last - first + 1

    def chosen(self, states):
        """The states that this head reads, of all of the encoder's."""
        first, last, n_states = self.states_read
        # an encoder that was truncated ends with the last state that is read
        if len(states) not in (n_states, last + 1):
            raise InputError(
                f"{type(self).__name__}: {len(states)} states, expected {n_states}"
            )
        return states[first : last + 1]

    @property
    def embedding_size(self):
        """Width E of the embedding."""
        return self.arguments["embedding_size"]

    def prunable_groups(self):
        """What may be removed → list of :class:`PrunableGroup`; here nothing."""
        return []

    def graph_form(self):
        """This head as an ONNX graph needs it, sharing its weights; here itself.

        Its steps are the same whatever the values, the batch and the lengths are.
        """
        return self


def _checked_range(layers, n_states):
    if layers is None:
        return 0, n_states - 1
    right = isinstance(layers, list | tuple) and len(layers) == 2
    right = right and all(type(number) is int for number in layers)
    if not (right and 0 <= layers[0] <= layers[1] < n_states):
        raise InputError(
            f"layers={layers!r}, expected [first, last] of the states 0 to "
            f"{n_states - 1}"
        )
    return tuple(layers)


class PrunableGroup(NamedTuple):
    """Like units of one module, and the tensors that belong to them.

        h = f(W_in x + b_in)          one block of rows of W_in and b_in per unit
        y = W_out (z ∘ h) + b_out     one block of columns of W_out per unit

    Heads, feed-forward units and channels all have this form (Wang et al. 2020, arXiv
    1910.04732). z is the gate. A module that declares groups has ``prunable_groups()``,
    with names relative to itself, and ``resized(widths)``.

    Arguments
    ---------
    name : str
        Dotted name of the module that holds the gate. Each of its calls draws once; f
        and W_out are called inside.
    kind : str
        What the units are: floors, options and pictures go by it.
    units, full : int
        Units there are, and those of the unpruned model; 0 units: the module is gone.
    input_weights : tuple of str
        Parameters and buffers whose first dimension runs over the units. One that is a
        multiple longer holds blocks one after another: values and gates of a GLU. One
        of as many rows as units has a row each, whatever ``unit_size`` is.
    output_weight : str
        The weight W_out of a module whose input has the units in dimension
        ``unit_dim``; its own second dimension runs over the units, and takes up their
        gates.
    inner_weights : tuple of str
        Further weights like W_out, inside f: of units that see each other. Columns
        that are a multiple of the units, also of W_out, are blocks one after another.
    output_bias : str, optional
        b_out; takes up the gate on the whole module.
    unit_size : int
        Rows of a unit: 1, or the width of a head.
    removed_with_last : tuple of str
        Modules that go with the last unit; none: one unit always stays.
    norms : tuple of str
        LayerNorms whose last dimension runs over the units, inside f: their statistics
        are those of the kept units. Their tensors are ``input_weights`` too.
    unit_dim : int
        −1 for a linear map, 1 where W_out is a convolution over [B, C, T].
    drawn_at : str, optional
        The module whose call draws the gates, where that is not ``name``: inside of it,
        behind other random numbers, as of a dropout.
    layer : int
        For reports.
    """

    name: str
    kind: str
    units: int
    full: int
    input_weights: tuple
    output_weight: str
    output_bias: str | None = None
    inner_weights: tuple = ()
    unit_size: int = 1
    removed_with_last: tuple = ()
    norms: tuple = ()
    unit_dim: int = -1
    drawn_at: str | None = None
    layer: int = 0

    def within(self, parent, layer=None):
        """The same group as seen from a module that holds this one as ``parent``."""

        def inside(names):
            return tuple(f"{parent}.{name}" for name in names)

        return self._replace(
            name=f"{parent}.{self.name}",
            input_weights=inside(self.input_weights),
            output_weight=f"{parent}.{self.output_weight}",
            inner_weights=inside(self.inner_weights),
            output_bias=self.output_bias and f"{parent}.{self.output_bias}",
            removed_with_last=inside(self.removed_with_last),
            norms=inside(self.norms),
            drawn_at=self.drawn_at and f"{parent}.{self.drawn_at}",
            layer=self.layer if layer is None else layer,
        )

    def goes_with_last(self, tensor):
        """Whether the tensor of that name is removed with the last unit."""
        return tensor.startswith(tuple(f"{name}." for name in self.removed_with_last))


class ParameterCount(NamedTuple):
    """Trained parameters and all of them."""

    trained: int
    total: int


def count_parameters(module):
    """Parameters of a module → ParameterCount."""
    parameters = list(module.parameters())
    return ParameterCount(
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        total=sum(p.numel() for p in parameters),
    )


@contextmanager
def _statistics_kept(layer):
    """BatchNorm layers that run again do not move their statistics again."""
    kind = nn.modules.batchnorm._BatchNorm  # of torch, of all processes, of ours
    norms = [(m, m.momentum) for m in layer.modules() if isinstance(m, kind)]
    try:
        for norm, _ in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, own in norms:
            norm.momentum = own


def shared_copy(module):
    """New modules around the same tensors: no weight is held twice."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def padding_mask(frames, lens):
    """[B, T'] mask, True in the padding; None where there is no padding at all.

    A graph that is compiled or exported cannot depend on the lengths: it always masks.
    """
    if lens is None:
        return None
    valid = valid_counts(lens, frames)
    if not torch.compiler.is_compiling() and bool((valid >= frames).all()):
        return None
    places = torch.arange(frames, device=lens.device)
    return places >= valid.to(lens.device).unsqueeze(1)
