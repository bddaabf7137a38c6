"""ONNX files on disk, and what they compute: against torch and in 8 bits.

A file is whole or absent. protobuf ends at 2 GiB: larger models keep their weights in a
second file, which the first one names. That name is new each time, so that replacing
the first file replaces the model, and no file ever reads another's weights.

    difference = max |onnx − torch| / max(1, max |torch|)      over all recordings
    cosine     = onnx · int8 / (‖onnx‖ ‖int8‖)                 the least of them
    score change = |cos(int8_i, int8_j) − cos(onnx_i, onnx_j)| the largest over pairs

The recordings are made up: noise with the tilt and the syllables' rhythm of speech, at
levels from a whisper to full scale, some of them padded in one batch. A model sees
worse in real life only through what it was trained on, which a graph does not change;
the 8-bit figures do depend on the audio, and are worth measuring again on one's own.
"""

import contextlib
import os
import secrets
import shutil

import numpy as np

from speechbrain_ext.inference.onnx_runner import OnnxSpeakerEncoder, cosine
from speechbrain_ext.utils.errors import InputError

SINGLE_FILE_BYTES = 2**31 - 2**26  # the graph itself needs some of it
TOLERANCE = 1e-4
SECONDS = (0.5, 1.0, 1.7003, 3.0, 3.0101, 6.0)  # and the shortest that it takes
BATCH = 4


# -- files -----------------------------------------------------------------------------


def is_large(n_bytes):
    """Whether weights of this size need a file of their own."""
    return n_bytes > SINGLE_FILE_BYTES


def save(model, path):
    """Write an ``onnx_ir.Model`` → ``path``.

    Small weights that are still in a file beside are taken into it.
    """
    import onnx_ir

    weights = model.graph.initializers.values()
    large = is_large(sum(weight.const_value.nbytes for weight in weights))
    data = f"{secrets.token_hex(4)}.data" if large else None
    if not large:
        onnx_ir.external_data.load_to_model(model)
    onnx_ir.save(model, path, external_data=data)
    return path


def file_bytes(path):
    """Size of an ONNX file and of the weights beside it."""
    parts = [path.with_name(name) for name in external_files(path)]
    return sum(part.stat().st_size for part in [path, *parts])


def external_files(path):
    """Names of the files that hold weights of an ONNX file → set of str."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    model = onnx.load(path, load_external_data=False)
    return {
        ExternalDataInfo(tensor).location
        for tensor in model.graph.initializer
        if uses_external_data(tensor)
    }


def put_in_place(path, output):
    """Move a model's files to ``output``; at any moment one model there is whole.

    Weights come first, then the file that names them; those of a former export go
    last. A folder on another disk than ``path`` is an error, as it cannot be renamed.
    """
    former = _former_weights(output)
    for name in external_files(path):
        os.replace(path.with_name(name), output.with_name(name))
    os.replace(path, output)
    for name in former:
        with contextlib.suppress(OSError):
            output.with_name(name).unlink()


def _former_weights(output):
    """Files of weights that only the model at ``output`` names."""
    if not output.is_file():
        return set()
    try:
        names = external_files(output)
    except Exception:  # whatever it is, it is no model of ours and has no weights
        return set()
    return {name for name in names if name == os.path.basename(name)}


@contextlib.contextmanager
def folder_beside(output):
    """A folder for what is not finished, removed in the end.

    Errors of writing in it name ``output``, which is what the user knows.
    """
    folder = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        if error.filename is None or str(folder) in str(error.filename):
            error.filename = str(output)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- what they compute -----------------------------------------------------------------


def check_against_torch(model, path):
    """Run both on the same recordings.

    Arguments
    ---------
    model : SpeakerEncoder
        In eval mode.
    path : str or Path
        Its ONNX file.

    Returns
    -------
    dict
        ``max_difference`` and ``checked_seconds``.

    Raises
    ------
    InputError
        Where the file is not valid ONNX, or the difference is above 1e-4.
    """
    import onnx
    import torch

    onnx.checker.check_model(str(path))
    encoder = graph_alone(path, threads=torch.get_num_threads())
    wavs = recordings(encoder)
    with torch.inference_mode():
        expected = np.concatenate(
            [model(torch.from_numpy(wav)[None]).squeeze(1).numpy() for wav in wavs]
        )
    found = encoder.embed(wavs, BATCH)
    scale = max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(found - expected).max()) / scale
    if not difference <= TOLERANCE:
        raise InputError(
            f"exported graph: embeddings differ from torch's by {difference:.2g}, "
            f"expected {TOLERANCE:g} at most"
        )
    return {
        "max_difference": difference,
        "checked_seconds": [len(wav) / encoder.sample_rate for wav in wavs],
    }


class _AnyOutput(OnnxSpeakerEncoder):
    """Of embeddings, and of a detector's logits."""

    output = None


def graph_alone(path, threads=None):
    """The runner of a file, for recordings as they are: all of them, in one window."""
    encoder = _AnyOutput(path, threads, speech_detection=False)
    encoder.settings["window_seconds"] = float("inf")
    return encoder


def compare_embeddings(exact, rounded, wavs):
    """Least cosine and largest change of a score (0 without a pair) of two encoders."""
    one, other = exact.embed(wavs, BATCH), rounded.embed(wavs, BATCH)
    first, second = np.triu_indices(len(wavs), 1)
    change = cosine(other[first], other[second]) - cosine(one[first], one[second])
    return {
        "worst_cosine": float(cosine(one, other).min()),
        "mean_cosine": float(cosine(one, other).mean()),
        "worst_score_change": float(np.abs(change).max(initial=0.0)),
    }


def read_all(path, files):
    """Recordings for the model at ``path`` → list of [T]; None where there are none."""
    if not files:
        return None
    encoder = graph_alone(path)
    return [encoder.read(file) for file in files]


def recordings(encoder):
    """Made-up ones from the shortest that a runner takes to 6 s → list of [T]."""
    rate, shortest, longest = (
        *(encoder.sample_rate, encoder.min_samples),
        encoder.max_samples or np.inf,
    )
    lengths = [shortest, *(min(round(s * rate), longest) for s in SECONDS)]
    return [
        speech_like(max(length, shortest), rate, seed)
        for seed, length in enumerate(lengths)
    ]


def speech_like(samples, sample_rate, seed):
    """Noise with a spectral tilt, swelling four times a second: [T] float32."""
    from scipy.signal import lfilter

    random = np.random.default_rng(seed)
    tilt = random.uniform(0.5, 0.97)
    wav = lfilter([1.0], [1.0, -tilt], random.standard_normal(samples))
    phase = 2 * np.pi * (4 * np.arange(samples) / sample_rate + random.uniform())
    wav = wav * (0.55 + 0.45 * np.sin(phase))
    peak = 10 ** random.uniform(-3, 0)
    return (peak * wav / np.abs(wav).max()).astype(np.float32)
