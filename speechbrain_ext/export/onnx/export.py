"""A trained model as one ONNX file: waveform → embedding, without torch.

    model.onnx     inputs   wavs [B, T] float32, ±1 at 16 kHz, padded on the right
                            wav_lens [B] float32, relative to T; may be left out
                   output   embeddings [B, E] float32; of a detector logits [B, 2]
    model.json     sizes, seconds, largest difference from torch; for int8 the cosines
    silero_vad.onnx    of the package silero-vad, for OnnxSpeakerEncoder to find speech
                       by, with its licence (MIT) in silero_vad.LICENSE.txt

Any batch size and length; a padded batch gives what its single recordings give. Before
the file takes its name it is loaded into onnxruntime and compared with the model on
recordings of several lengths: a difference above 1e-4 is an error, and nothing is
left behind. What a service needs to know is in the file's ``metadata_props``: sample
rate, embedding size, fewest samples, windows, what counts as speech, version; of a
detector also a and b of its log-likelihood ratio, a (z_b − z_s) + b.

Models of 2 GB and more keep their weights in a second file beside, which the first one
names.
"""

import importlib
import importlib.metadata
import time
from pathlib import Path

import numpy as np

from speechbrain_ext.inference.onnx_runner import VAD_FILE
from speechbrain_ext.inference.speech import silero_file
from speechbrain_ext.pretrained import INFERENCE
from speechbrain_ext.utils.errors import InputError, how_to_install
from speechbrain_ext.utils.files import write_atomically, write_json

SILERO = "silero_vad_16k_sequence.onnx"  # in that package: many windows in a call


def export_onnx(
    model, output, int8=False, check_files=(), inference=None, calibrator=None
):
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
    inference : dict, optional
        How recordings are treated: keys of
        :data:`~speechbrain_ext.pretrained.INFERENCE`, as in the model's folder; absent
        ones have their values there.
    calibrator : QualityCalibrator, optional
        Of a detector's ratio.

    Returns
    -------
    dict
        The report, as in the JSON file.

    Raises
    ------
    InputError
        Where the extra is not installed, ``output`` does not end in .onnx, the
        encoder has no graph form, the graph's embeddings differ from the model's, or
        those of 8 bits too much.
    """
    require_extra()
    output = Path(output)
    if output.suffix != ".onnx":
        raise InputError(f"{output}: expected a name that ends in .onnx")
    # these need the extra
    from speechbrain_ext.export.onnx import check as onnx_files
    from speechbrain_ext.export.onnx.build import build, describe
    from speechbrain_ext.export.onnx.check import check_against_torch, read_all
    from speechbrain_ext.export.onnx.quantise import quantise

    model = model.eval()
    with onnx_files.folder_beside(output) as folder:
        start = time.perf_counter()
        treated = {**INFERENCE, **(inference or {})}
        del treated["as_norm_top_n"]  # of scores, which the file has none of
        treated |= _ratio(model, calibrator)
        path = onnx_files.save(build(model, treated), folder / "fp32.onnx")
        report = {
            **describe(model),
            "export_seconds": round(time.perf_counter() - start, 2),
            "fp32_bytes": onnx_files.file_bytes(path),
            **check_against_torch(model, path),
        }
        if int8:
            path, figures = quantise(path, read_all(path, check_files))
            report.update(figures)
        onnx_files.put_in_place(path, output)
    _write_detector(output)
    write_json(output.with_suffix(".json"), report)
    return report


def _ratio(model, calibrator):
    """What a detector's file says of its logits; of an encoder nothing."""
    if model.head.used_by != "SpoofingDetector":
        return {}
    scale, offset = 1.0, float(model.head.log_likelihood_ratio(np.zeros(2)))
    if calibrator is not None:
        (weight,) = calibrator.weights.tolist()
        scale, offset = weight, weight * offset + calibrator.bias
    return {"output": "logits", "llr_scale": scale, "llr_offset": offset}


def _write_detector(output):
    """Silero's speech detector, and its licence, beside a model."""
    licence = importlib.metadata.distribution("silero-vad").read_text(
        "licenses/LICENSE"
    )
    with write_atomically(output.with_name("silero_vad.LICENSE.txt")) as file:
        file.write(licence)
    with write_atomically(output.with_name(VAD_FILE), "wb") as file:
        file.write(silero_file(SILERO).read_bytes())


def require_extra():
    """InputError where a package that exporting needs is not installed."""
    try:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"ONNX export: the package {error.name} is missing, expected the extra: "
            f"{how_to_install('onnx')}"
        ) from error
