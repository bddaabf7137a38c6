"""An exported graph with 8-bit weights in its linear maps.

    x W ≈ s_x s_w[c] (x̂ − z_x) Ŵ[:, c],      x̂ uint8, Ŵ int8

One scale s_w per output channel, from the weights alone; s_x and z_x per call, from the
values that come: onnxruntime's dynamic quantisation, which needs no recordings to
calibrate on. Features, convolutions and norms stay as they are.

Ŵ keeps to −64 … 64: without VNNI, x86 processors add two products x̂ Ŵ in 16 bits, which
whole bytes would overflow, on such a machine only and without a word. Measured on one
product of 150 × 1024 × 4096, relative error and seconds against fp32's: 1.8 % and 0.19
in this way, 1.3 % and 0.26 with all of int8, 1.2 % and 0.91 with uint8 weights; weights
alone in blocks of 128, computing in fp32: 0.6 % and 3.2.
"""

import logging
import statistics
import time

from speechbrain_ext.export.onnx.build import FRONT
from speechbrain_ext.export.onnx.check import (
    compare_embeddings,
    file_bytes,
    graph_alone,
    is_large,
    recordings,
    save,
    speech_like,
)
from speechbrain_ext.utils.errors import InputError

MIN_COSINE = 0.99
TIMED_SECONDS, TIMED_CALLS = 3, 5
LINEAR = ("MatMul", "Gemm")


def quantise(path, wavs=None, min_cosine=MIN_COSINE):
    """Write the 8-bit form of an ONNX file beside it, compared with it.

    Arguments
    ---------
    path : Path
        Of :func:`speechbrain_ext.export.onnx.export.export_onnx`, without int8.
    wavs : list of np.ndarray
        [T], recordings to compare on; None makes some up.
    min_cosine : float
        Between the embeddings of one recording, the least that is accepted.

    Returns
    -------
    Path
        The new file.
    dict
        ``int8_bytes``, ``fp32_seconds`` and ``int8_seconds`` for 3 s of audio,
        ``worst_cosine``, ``mean_cosine``, ``worst_score_change``, ``compared_on``.

    Raises
    ------
    InputError
        Where an embedding's cosine is below ``min_cosine``.
    """
    small = _quantised(path)
    exact, rounded = graph_alone(path), graph_alone(small)
    made_up = wavs is None
    if made_up:
        wavs = recordings(exact)
    figures = {
        "int8_bytes": file_bytes(small),
        "fp32_seconds": _seconds(exact),
        "int8_seconds": _seconds(rounded),
        "compared_on": f"{len(wavs)} {'made-up' if made_up else 'given'} recordings",
        **compare_embeddings(exact, rounded, wavs),
    }
    if not figures["worst_cosine"] >= min_cosine:
        raise InputError(
            f"int8: an embedding with a cosine of {figures['worst_cosine']:.4f} to its "
            f"fp32 one, expected {min_cosine:g} or more ({figures['compared_on']})"
        )
    return small, figures


def _quantised(path):
    import onnx
    import onnx_ir
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path, load_external_data=False)
    # the quantiser transposes weights and leaves the shapes that are noted of them
    del model.graph.value_info[:]
    bare, raw = path.with_name("bare.onnx"), path.with_name("raw.onnx")
    onnx.save(model, bare)
    logging.getLogger().addFilter(_quiet)
    try:
        quantize_dynamic(
            bare,
            raw,
            op_types_to_quantize=list(LINEAR),
            nodes_to_quantize=_linear_maps(model.graph),
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            use_external_data_format=is_large(file_bytes(path)),
        )
    finally:
        logging.getLogger().removeFilter(_quiet)
    model = onnx_ir.load(raw)
    model.metadata_props.pop("onnx.infer", None)  # the quantiser's own note
    model.metadata_props["weights"] = "int8"
    return save(model, path.with_name("int8.onnx"))


def _quiet(record):
    """onnxruntime advises to simplify the graph first: it is simple already."""
    return "pre-process" not in record.getMessage()


def _linear_maps(graph):
    """Names of the nodes that multiply by a learned matrix."""
    # of stacked matrices, those of groups, onnxruntime takes no scales by column
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    names = [
        node.name
        for node in graph.node
        if node.op_type in LINEAR
        and node.input[1] in weights
        and not node.name.startswith(FRONT)
    ]
    # the quantiser first splits a Gemm into a sum and a product of this name
    return [*names, *(f"{name}_MatMul" for name in names)]


def _seconds(encoder):
    """Median seconds for 3 s of audio, onnxruntime's own number of threads."""
    wav = speech_like(TIMED_SECONDS * encoder.sample_rate, encoder.sample_rate, 0)
    encoder.embed(wav)
    seconds = []
    for _ in range(TIMED_CALLS):
        start = time.perf_counter()
        encoder.embed(wav)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
