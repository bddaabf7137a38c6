"""Published checkpoints → model folders, whichever of the formats they are in."""

import importlib
import inspect
import logging
import pkgutil
from pathlib import Path

from speechbrain_ext.export import published
from speechbrain_ext.export.published.checkpoint import EXPECTED, read_checkpoint
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import sha256
from speechbrain_ext.utils.weights import SHOWN

logger = logging.getLogger(__name__)


def convert_released(
    checkpoint,
    output_dir,
    encoder_config=None,
    kind=None,
    *,
    lora_alpha=None,
    licence=None,
):
    """Convert a published checkpoint to a folder that ``load_pretrained`` reads.

    Every tensor is used, or left out for a stated reason (the classifier of training,
    of which no file holds the speakers' names, among them): the log and
    ``training.json`` list them. Tensors stay mapped to the file: besides what LoRA
    merges, and what is not float32, none is copied.

    Arguments
    ---------
    checkpoint : str or Path
        The published file.
    output_dir : str or Path
        The folder; replaced where it is such a folder already.
    encoder_config : str or Path
        The configuration of the encoder (JSON). None derives the widths of every layer
        from the weights, and takes what they do not tell from w2v-BERT 2.0.
    kind : str
        The format, one of :func:`formats`; None tells it by the tensors.
    lora_alpha : float
        Scale of LoRA that is not merged; None takes the published 2 · rank.
    licence : str
        Of the weights, for ``training.json``; None takes what the format says.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        Where the file is no such checkpoint, or tensors are missing, left over, of the
        wrong shape or not finite; nothing is written then.
    """
    path, folder = Path(checkpoint), Path(output_dir)
    _check_apart(folder, path, encoder_config)
    content = read_checkpoint(path)
    kind = _kind_of(content, kind)
    format_ = formats()[kind]
    options = {"encoder_config": encoder_config, "lora_alpha": lora_alpha}
    options = {key: value for key, value in options.items() if value is not None}
    if unused := set(options) - set(inspect.signature(format_.convert).parameters):
        raise InputError(f"{sorted(unused)[0]}: no option of {kind} ({format_.TITLE})")
    model, epoch, left_out, details, remarks = format_.convert(content, **options)
    training = {
        "speakers": [],  # no classifier goes with these weights
        "n_speeds": 1,
        "epoch": epoch,
        "converted_from": {
            "kind": kind,
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
            "licence": licence or format_.LICENCE,
            "encoder_config": encoder_config and Path(encoder_config).name,
            "left_out": {reason: len(names) for reason, names in left_out.items()},
            **details,
        },
    }
    save_pretrained(folder, model, training=training)
    sizes = [
        sum(p.numel() for p in m.parameters()) for m in (model.encoder, model.head)
    ]
    remarks = [
        f"{type(model.head).__name__}, embeddings of {model.embedding_size}; "
        f"{sizes[0]:,} + {sizes[1]:,} parameters (encoder + head), "
        f"{model.encoder.n_states - 1} layers of {model.encoder.hidden_size}",
        *remarks,
    ]
    for reason, names in left_out.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        remarks.append(f"left out, {reason}: {names[0]}{more}")
    for line in remarks:
        logger.info("%s: %s", path.name, line)
    return folder


def formats():
    """Name → module of every format that can be converted."""
    names = [found.name for found in pkgutil.iter_modules(published.__path__)]
    modules = {n: importlib.import_module(f"{published.__name__}.{n}") for n in names}
    return {name: found for name, found in modules.items() if hasattr(found, "detect")}


def _kind_of(content, kind):
    """The format by its own name, or by the tensors that it has."""
    known = formats()
    if kind is not None and kind not in known:
        raise InputError(f"kind {kind!r}, expected one of {', '.join(known)}")
    candidates = known if kind is None else [kind]
    fitting = [name for name in candidates if known[name].detect(content.tensors)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InputError(
            f"{content.path}: its tensors fit {' and '.join(fitting)}; choose by kind"
        )
    names = ", ".join(list(content.tensors)[:SHOWN]) or "none"
    titles = "; ".join(known[name].TITLE for name in candidates)
    raise InputError(
        f"{content.path}: {len(content.tensors)} tensors, {names}, are not of "
        f"{'any known format' if kind is None else kind} ({titles}); {EXPECTED}"
    )


def _check_apart(folder, *files):
    """The folder is replaced as a whole: what is converted must not lie in it."""
    for file in files:
        if file and folder.resolve() in Path(file).resolve().parents:
            raise InputError(
                f"{folder}: holds {Path(file).name}, which would be lost when the "
                "folder is replaced; expected another folder"
            )
