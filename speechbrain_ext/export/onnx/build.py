"""The graph of a speaker encoder: two halves exported by torch, then joined.

    wavs, wav_lens ──features──▶ features, lens ──encoder, head──▶ embeddings

What is exported is :mod:`speechbrain_ext.export.onnx.graph`; why in two halves is
said there. ``wav_lens`` gets a default of one full row, and may be left out.
"""

import contextlib
import logging
import warnings

import numpy as np
import onnx_ir as ir
import torch

from speechbrain_ext import __version__
from speechbrain_ext.export.onnx.graph import graph_parts
from speechbrain_ext.features import FRAME, HOP, MELS, MIN_SAMPLES, SAMPLE_RATE, STACK

OPSET = 18


def build(model):
    """SpeakerEncoder → onnx_ir.Model whose tensors are the model's own memory."""
    features, embedding = graph_parts(model)
    batch = torch.export.Dim("batch")
    front = _exported(
        features,
        {"wavs": torch.zeros(3, 4 * MIN_SAMPLES), "wav_lens": torch.ones(3)},
        {1: torch.export.Dim("samples", min=2 * MIN_SAMPLES)},
        batch,
        ["features", "lens"],
    )
    back = _exported(
        embedding,
        {"features": torch.zeros(3, 40, MELS * STACK), "lens": torch.ones(3)},
        {1: torch.export.Dim("frames", min=5)},
        batch,
        ["embeddings"],
    )
    joined = _join(front, back)
    joined.metadata_props.update({k: str(v) for k, v in describe(model).items()})
    return joined


def describe(model):
    """What a program that runs the file must know."""
    frames = getattr(model.head, "min_frames", 1)
    return {
        "sample_rate": SAMPLE_RATE,
        "min_samples": FRAME + HOP * (STACK * frames - 1),
        "embedding_size": model.embedding_size,
        "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
        "head_parameters": sum(p.numel() for p in model.head.parameters()),
        "head": type(model.head).__name__,
        "speechbrain_ext_version": __version__,
    }


def _exported(module, inputs, dims, batch, outputs):
    """One half; ``dims`` are those of its first input beside the batch."""
    first, lens = inputs
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module,
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=[first, lens],
            output_names=outputs,
            dynamic_shapes={first: {0: batch, **dims}, lens: {0: batch}},
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
    _name_apart(front, "features/")
    for value, target in zip(front.graph.outputs, back.graph.inputs, strict=True):
        target.replace_all_uses_with(value)
    nodes = list(back.graph)
    outputs = list(back.graph.outputs)
    back.graph.outputs.clear()
    back.graph.remove(nodes)
    weights = list(back.graph.initializers.values())
    back.graph.initializers.clear()
    for weight in weights:
        front.graph.register_initializer(weight)
    front.graph.extend(nodes)
    front.graph.outputs[:] = outputs
    _make_lens_optional(front.graph)
    _name_sizes(front.graph)
    _forget_origins(front)
    front.graph.name = "speaker_encoder"
    front.producer_name, front.producer_version = "speechbrain_ext", __version__
    return front


def _name_apart(model, prefix):
    """The halves are named by one scheme, and may not share a name."""
    inputs = set(model.graph.inputs)
    for weight in list(model.graph.initializers.values()):
        del model.graph.initializers[weight.name]
        weight.name = prefix + weight.name
        model.graph.register_initializer(weight)
    for node in model.graph:
        node.name = prefix + (node.name or "")
        for value in node.outputs:
            if value not in inputs:
                value.name = prefix + value.name


def _make_lens_optional(graph):
    """A default of one full row, repeated to the batch: [1] or [B] → [B]."""
    wavs, lens = graph.inputs
    rows = ir.node("Shape", [wavs], {"start": 0, "end": 1}, name="rows")
    repeated = ir.node("Expand", [lens, rows.outputs[0]], name="wav_lens_of_rows")
    rows.outputs[0].name, repeated.outputs[0].name = "rows", "wav_lens_of_rows"
    lens.replace_all_uses_with(repeated.outputs[0])
    repeated.replace_input_with(0, lens)
    first = graph[0]
    graph.insert_before(first, [rows, repeated])
    lens.const_value = ir.tensor(np.ones(1, np.float32), name=lens.name)
    graph.register_initializer(lens)


def _name_sizes(graph):
    """What a user sees has names; what is between has no sizes at all.

    The halves name their symbolic sizes alike and mean others by them: onnxruntime,
    which plans its memory by these names, infers them anew.
    """
    for node in graph:
        for value in node.outputs:
            if value is not graph.outputs[0]:
                value.shape = None
    wavs, lens = graph.inputs
    _rename_sizes(wavs, "batch", "samples")
    _rename_sizes(lens, "batch_or_1")
    _rename_sizes(graph.outputs[0], "batch")


def _forget_origins(model):
    """Without the exporter's notes: stack traces with the paths of this machine."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph:
        values += node.outputs
        node.doc_string = None
        node.metadata_props.clear()
    for owner in (model, graph, *values):
        owner.metadata_props.clear()


def _rename_sizes(value, *names):
    value.shape = ir.Shape([*names, *list(value.shape)[len(names) :]])
