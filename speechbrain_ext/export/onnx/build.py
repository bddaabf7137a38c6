"""The graph of a speaker encoder: two halves exported by torch, then joined.

    wavs, wav_lens ──front_end──▶ features, lens ──encode, head──▶ embeddings

What is exported are the graph forms of encoder and head, which share the model's
weights. In halves, because the number of frames is a formula of the number of samples,
which the exporter would carry through every layer, where it takes long and ends in
conditions that it cannot decide. The join works on the model's own memory:
``onnx.compose.merge_models`` copies all weights into one message of protobuf, which
ends at 2 GiB. ``wav_lens`` gets a default of one full row, and may be left out.
"""

import bisect
import contextlib
import logging
import warnings

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from speechbrain_ext import __version__
from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.utils.errors import InputError

OPSET = 18
FRONT = "features/"  # begins the names of the first half's nodes and weights


class FrontEnd(nn.Module):
    """wavs [B, T], wav_lens [B] → features [B, T', …], lens [B]."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, wavs, wav_lens):
        """[B, T], [B] relative → [B, T', …], [B] relative."""
        return self.encoder.front_end(wavs, wav_lens)


class Embedding(nn.Module):
    """Features [B, T', …] and their lengths [B] → embeddings [B, E]."""

    def __init__(self, encoder, head):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, features, lens):
        """[B, T', …], [B] relative → [B, E]."""
        states = self.encoder.encode(features, lens)
        return self.head(states, self.encoder.output_lens(features, lens)).squeeze(1)


def graph_halves(model):
    """SpeakerEncoder in eval mode → (FrontEnd, Embedding), which share its weights.

    Raises
    ------
    InputError
        Where its encoder has no graph form.
    """
    encoder = model.encoder.graph_form()
    if encoder is None:
        raise InputError(
            f"ONNX export: {type(model.encoder).__name__} has no graph form, expected "
            "an encoder with graph_form()"
        )
    return FrontEnd(encoder).eval(), Embedding(encoder, model.head.graph_form()).eval()


def build(model, inference=None):
    """SpeakerEncoder → onnx_ir.Model whose tensors are the model's own memory.

    ``inference``: how recordings are treated, values for keys of
    :data:`~speechbrain_ext.pretrained.INFERENCE`, kept in the metadata.
    """
    front, back = graph_halves(model)
    metadata = describe(model)
    shortest = metadata["min_samples"]
    wavs, lens = torch.zeros(3, model.encoder.sample_rate + 4 * shortest), torch.ones(3)
    with torch.no_grad():
        features, _ = front(wavs, lens)
        least = front(wavs[:, :shortest], lens)[0].shape[1]
    joined = _join(
        _exported(
            front,
            {"wavs": wavs, "wav_lens": lens},
            torch.export.Dim("samples", min=2 * shortest),
            ["features", "lens"],
        ),
        _exported(
            back,
            {"features": features, "lens": lens},
            torch.export.Dim("frames", min=max(5, 2 * least)),
            ["embeddings"],
        ),
    )
    metadata = {**(inference or {}), **metadata}
    joined.metadata_props.update({k: str(v) for k, v in metadata.items()})
    return joined


def describe(model):
    """What a program that runs the file must know → dict."""
    longest = model.encoder.max_samples
    return {
        "sample_rate": model.encoder.sample_rate,
        "min_samples": _min_samples(model),
        **({} if longest is None else {"max_samples": longest}),
        "embedding_size": model.embedding_size,
        "encoder_parameters": count_parameters(model.encoder).total,
        "head_parameters": count_parameters(model.head).total,
        "head": type(model.head).__name__,
        "speechbrain_ext_version": __version__,
    }


def _min_samples(model):
    """Samples of the shortest input of which the head gets the frames that it needs."""
    rate, shortest = model.encoder.sample_rate, model.encoder.min_samples
    if model.head.min_frames == 1:
        return shortest
    with torch.device("meta"):
        encoder = type(model.encoder)(**model.encoder.arguments).eval()

    def frames(samples):
        with torch.no_grad():
            return encoder.encode(encoder.example(samples / rate)[0])[-1].shape[1]

    # 100 ms a frame and more has no encoder of speech
    lengths = range(shortest, shortest + model.head.min_frames * rate // 10)
    return lengths[bisect.bisect_left(lengths, model.head.min_frames, key=frames)]


def _exported(module, inputs, size, outputs):
    """One half; ``size`` is the second dimension of its first input."""
    first, lens = inputs
    batch = torch.export.Dim("batch")
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module,
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=[first, lens],
            output_names=outputs,
            dynamic_shapes={first: {0: batch, 1: size}, lens: {0: batch}},
            verbose=False,
        )
    return program.model


@contextlib.contextmanager
def _quiet():
    """Without the exporter's remarks on torchvision and on names of axes."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _join(front, back):
    """Outputs of one graph become the inputs of the other; gives the first, grown."""
    graph, other = front.graph, back.graph
    _name_apart(graph)
    for value, target in zip(graph.outputs, other.inputs, strict=True):
        target.replace_all_uses_with(value)
    nodes, outputs = list(other), list(other.outputs)
    weights = list(other.initializers.values())
    other.outputs.clear()
    other.remove(nodes)
    other.initializers.clear()
    for weight in weights:
        graph.register_initializer(weight)
    graph.extend(nodes)
    graph.outputs[:] = outputs
    _make_lens_optional(graph)
    _name_sizes(graph)
    # the exporter's notes: stack traces with the paths of this machine
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph:
        values += node.outputs
        node.doc_string = None
        node.metadata_props.clear()
    for owner in (front, graph, *values):
        owner.metadata_props.clear()
    graph.name = "speaker_encoder"
    front.producer_name, front.producer_version = "speechbrain_ext", __version__
    return front


def _name_apart(graph):
    """The halves are named by one scheme, and may not share a name."""
    for weight in list(graph.initializers.values()):
        del graph.initializers[weight.name]
        weight.name = FRONT + weight.name
        graph.register_initializer(weight)
    for node in graph:
        node.name = FRONT + (node.name or "")
        for value in node.outputs:
            value.name = FRONT + value.name


def _make_lens_optional(graph):
    """A default of one full row, repeated to the batch: [1] or [B] → [B]."""
    wavs, lens = graph.inputs
    rows = ir.node("Shape", [wavs], {"start": 0, "end": 1}, name="rows")
    repeated = ir.node("Expand", [lens, rows.outputs[0]], name="wav_lens_of_rows")
    rows.outputs[0].name, repeated.outputs[0].name = "rows", "wav_lens_of_rows"
    lens.replace_all_uses_with(repeated.outputs[0])
    repeated.replace_input_with(0, lens)
    graph.insert_before(graph[0], [rows, repeated])
    lens.const_value = ir.tensor(np.ones(1, np.float32), name=lens.name)
    graph.register_initializer(lens)


def _name_sizes(graph):
    """Inputs and output have named sizes; what is between has no sizes at all.

    The halves name their symbolic sizes alike and mean others by them: onnxruntime,
    which plans its memory by these names, infers them anew.
    """
    for node in graph:
        for value in node.outputs:
            if value is not graph.outputs[0]:
                value.shape = None
    (wavs, lens), (embeddings,) = graph.inputs, graph.outputs
    wavs.shape = ir.Shape(["batch", "samples"])
    lens.shape = ir.Shape(["batch_or_1"])
    embeddings.shape = ir.Shape(["batch", embeddings.shape[1]])
