"""ONNX files on disk: whole or absent, with or without a file of weights beside.

protobuf ends at 2 GiB. Larger models keep their weights in a second file, which the
first one names; that name is new each time, so that replacing the first file replaces
the model, and no file ever reads another's weights.
"""

import contextlib
import os
import secrets
import shutil

SINGLE_FILE_BYTES = 2**31 - 2**26  # the graph itself needs some of it


def is_large(n_bytes):
    """Whether weights of this size need a file of their own."""
    return n_bytes > SINGLE_FILE_BYTES


def save(model, path):
    """Write an ``onnx_ir.Model`` → ``path``.

    What it reads from a file of its own until now does not stay there: other models
    would be written over that.
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
