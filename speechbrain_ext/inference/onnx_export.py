"""A trained model as one ONNX file: waveform → embedding, without torch.

    model.onnx     inputs   wavs [B, T] float32, ±1 at 16 kHz, padded on the right
                            wav_lens [B] float32, relative to T; may be left out
                   output   embeddings [B, E] float32
    model.json     sizes, seconds, largest difference from torch; for int8 the cosines

Any batch size and length; a padded batch gives what its single recordings give. Before
the file takes its name it is loaded into onnxruntime and compared with the model on
recordings of several lengths: a difference above 1e-4 is an error, and nothing is
left behind. What a service needs to know is in the file's ``metadata_props``: sample
rate, embedding size, fewest samples, version.

Models of 2 GB and more keep their weights in a second file beside, which the first one
names.
"""

import contextlib
import importlib
import logging
import time
import warnings
from pathlib import Path

from speechbrain_ext import __version__
from speechbrain_ext.errors import InputError
from speechbrain_ext.files import write_json

OPSET = 18
EXTRA = "pip install 'speechbrain_ext[onnx]'"


def export_onnx(model, output, int8=False, check_files=()):
    """Write a speaker encoder as ONNX, checked against torch.

    Arguments
    ---------
    model : SpeakerEncoder
        On the CPU, in float32. It is put into eval mode, and stays as it is else.
    output : str or Path
        ``….onnx``. The report goes beside it, as ``….json``.
    int8 : bool
        Weights of the linear maps in 8 bits.
    check_files : sequence of str or Path
        Recordings (16 kHz) to compare the 8-bit model with the exact one on; none:
        made-up ones.

    Returns
    -------
    dict
        The report, as in the JSON file.

    Raises
    ------
    InputError
        Where the extra is not installed, ``output`` does not end in .onnx, the
        graph's embeddings differ from the model's, or those of 8 bits too much.
    """
    require_extra()
    output = Path(output)
    if output.suffix != ".onnx":
        raise InputError(f"{output}: expected a name that ends in .onnx")
    from speechbrain_ext.inference import onnx_files
    from speechbrain_ext.inference.onnx_check import check_against_torch, read_all
    from speechbrain_ext.inference.onnx_quantise import quantise

    model = model.eval()
    with onnx_files.folder_beside(output) as folder:
        start = time.perf_counter()
        path = onnx_files.save(_build(model), folder / "fp32.onnx")
        report = {
            **_metadata(model),
            "export_seconds": round(time.perf_counter() - start, 2),
            "fp32_bytes": onnx_files.file_bytes(path),
            **check_against_torch(model, path),
        }
        if int8:
            path, figures = quantise(path, read_all(path, check_files))
            report.update(figures)
        onnx_files.put_in_place(path, output)
    write_json(output.with_suffix(".json"), report)
    return report


def require_extra():
    """InputError where a package that exporting needs is not installed."""
    try:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"ONNX export: the package {error.name} is missing, expected the extra: "
            f"{EXTRA}"
        ) from error


def _build(model):
    """SpeakerEncoder → onnx_ir.Model whose tensors are the model's own memory."""
    import torch

    from speechbrain_ext.features import MELS, MIN_SAMPLES, STACK
    from speechbrain_ext.inference.onnx_graph import graph_parts

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
    joined.metadata_props.update({k: str(v) for k, v in _metadata(model).items()})
    return joined


def _exported(module, inputs, dims, batch, outputs):
    """One half; ``dims`` are those of its first input beside the batch."""
    import torch

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
    _forget_shapes(front.graph)
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
    import numpy as np
    import onnx_ir as ir

    wavs, lens = graph.inputs
    rows = ir.node("Shape", [wavs], {"start": 0, "end": 1}, name="rows")
    repeated = ir.node("Expand", [lens, rows.outputs[0]], name="wav_lens_of_rows")
    rows.outputs[0].name, repeated.outputs[0].name = "rows", "wav_lens_of_rows"
    lens.replace_all_uses_with(repeated.outputs[0])
    repeated.replace_input_with(0, lens)
    first = graph[0]
    graph.insert_before(first, [rows, repeated])
    lens.shape = ir.Shape(["batch_or_1"])
    lens.const_value = ir.tensor(np.ones(1, np.float32), name=lens.name)
    graph.register_initializer(lens)


def _forget_shapes(graph):
    """The halves name their symbolic sizes alike and mean others: onnxruntime infers
    them anew."""
    outputs = set(graph.outputs)
    for node in graph:
        for value in node.outputs:
            if value not in outputs:
                value.shape = None


def _metadata(model):
    """What a program that runs the file must know."""
    from speechbrain_ext.features import FRAME, HOP, MIN_SAMPLES, SAMPLE_RATE, STACK
    from speechbrain_ext.lobes.heads import ECAPA_MIN_FRAMES, WeightedSumECAPA

    least = MIN_SAMPLES
    if isinstance(model.head, WeightedSumECAPA):
        least = FRAME + HOP * (STACK * ECAPA_MIN_FRAMES - 1)
    return {
        "sample_rate": SAMPLE_RATE,
        "min_samples": least,
        "embedding_size": model.embedding_size,
        "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
        "head_parameters": sum(p.numel() for p in model.head.parameters()),
        "head": type(model.head).__name__,
        "speechbrain_ext_version": __version__,
    }
