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
names; its name is new each time, so that no file ever reads another's weights.
"""

import contextlib
import os
import secrets
import shutil
import time
from pathlib import Path

from speechbrain_ext import __version__
from speechbrain_ext.errors import InputError
from speechbrain_ext.files import write_json

OPSET = 18
# protobuf ends at 2 GiB, and the graph itself needs a few MiB
SINGLE_FILE_BYTES = 2**31 - 2**26
EXTRA = "pip install 'speechbrain_ext[onnx]'"


def export_onnx(model, output, int8=False):
    """Write a speaker encoder as ONNX, checked against torch.

    Arguments
    ---------
    model : SpeakerEncoder
        On the CPU. It stays as it is.
    output : str or Path
        ``….onnx``. The report goes beside it, as ``….json``.
    int8 : bool
        Weights of the linear maps in 8 bits, a quarter of the size.

    Returns
    -------
    dict
        The report, as in the JSON file.

    Raises
    ------
    InputError
        Where the extra is not installed, ``output`` does not end in .onnx, or the
        graph's embeddings differ from the model's.
    """
    _need_extra()
    output = Path(output)
    if output.suffix != ".onnx":
        raise InputError(f"{output}: expected a name that ends in .onnx")
    from speechbrain_ext.inference.onnx_check import check_against_torch
    from speechbrain_ext.inference.onnx_quantise import quantise

    model = model.eval()
    with _folder_beside(output) as folder:
        start = time.perf_counter()
        whole = folder / "fp32.onnx"
        _save(_build(model), whole)
        report = {"export_seconds": round(time.perf_counter() - start, 2)}
        report |= check_against_torch(model, whole)
        report |= {"fp32_bytes": file_bytes(whole)}
        if int8:
            whole, figures = quantise(whole, folder)
            report |= figures
        _put_in_place(whole, output)
    report = {**_metadata(model), **report}
    write_json(output.with_suffix(".json"), report)
    return report


def file_bytes(path):
    """Size of an ONNX file and of the weights beside it."""
    parts = [Path(path).with_name(name) for name in _external_files(path)]
    return sum(part.stat().st_size for part in [Path(path), *parts])


def _need_extra():
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
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
    with torch.no_grad():
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


# -- files -----------------------------------------------------------------------------


def _save(model, path):
    import onnx_ir as ir

    sizes = [value.const_value.nbytes for value in model.graph.initializers.values()]
    large = sum(sizes) > SINGLE_FILE_BYTES
    data = f"{path.stem}.{secrets.token_hex(4)}.data" if large else None
    ir.save(model, path, external_data=data)


@contextlib.contextmanager
def _folder_beside(output):
    """A folder for what is not finished; errors in it name ``output``."""
    folder = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        error.filename = str(output)  # the name that the user knows
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _external_files(path):
    """Names of the files that hold the weights of an ONNX file."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    model = onnx.load(path, load_external_data=False)
    return {
        ExternalDataInfo(tensor).location
        for tensor in model.graph.initializer
        if uses_external_data(tensor)
    }


def _put_in_place(path, output):
    """Weights first, then the file that names them; then those of a former export."""
    former = _external_files(output) if output.is_file() else set()
    for name in _external_files(path):
        os.replace(path.with_name(name), output.with_name(name))
    os.replace(path, output)
    for name in former:
        with contextlib.suppress(OSError):
            output.with_name(name).unlink()
