"""Published checkpoints → model folders, whichever of the formats they are in."""

import importlib
import inspect
import logging
import pkgutil
from pathlib import Path

from speechbrain_ext.export import published
from speechbrain_ext.export.published.checkpoint import EXPECTED, read_checkpoint
from speechbrain_ext.lobes.encoder import Encoder
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import sha256, write_folder_atomically, write_json
from speechbrain_ext.utils.weights import SHOWN, is_hub_id, save_weights

logger = logging.getLogger(__name__)

# What an encoder alone is written as, beside config.json.
ENCODER_WEIGHTS = "model.safetensors"
CONVERSION = "conversion.json"


def convert_released(
    checkpoint,
    output_dir,
    encoder_config=None,
    kind=None,
    *,
    lora_alpha=None,
    encoder=None,
    last_state=None,
    input_scale=None,
    licence=None,
):
    """Convert a published checkpoint to a folder that ``load_pretrained`` reads.

    Every tensor is used, or left out for a stated reason (the classifier of training,
    of which no file holds the speakers' names, among them): the log and
    ``training.json`` list them. Tensors stay mapped to the file: besides what LoRA
    merges, and what is not float32, none is copied.

    Of a checkpoint without a head the encoder alone is written: ``config.json``,
    ``model.safetensors`` and ``conversion.json``, which its class takes as ``source``.

    Arguments
    ---------
    checkpoint : str or Path
        The published file; or a folder of transformers, here or on the hub.
    output_dir : str or Path
        The folder; replaced where it is such a folder already.
    encoder_config : str or Path
        The configuration of the encoder (JSON). None derives the widths of every layer
        from the weights, and takes what they do not tell from the published models.
    kind : str
        The format, one of :func:`formats`; None tells it by the tensors.
    lora_alpha : float
        Scale of LoRA that is not merged; None takes the published 2 · rank.
    encoder : str
        Family of the encoder where the tensors do not tell it: ``hubert``,
        ``wav2vec2``, ``unispeech_sat`` or ``wavlm``.
    last_state : str
        ``raw`` or ``normalised``, the last state that the head was trained on; None
        takes what the published code of the format does.
    input_scale : float
        By which the published code multiplies a waveform of ±1; None takes what the
        format says.
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
    folder = Path(output_dir)
    _check_apart(folder, checkpoint, encoder_config)
    content = read_checkpoint(checkpoint)
    kind = _kind_of(content, kind)
    format_ = formats()[kind]
    options = {
        "encoder_config": encoder_config,
        "lora_alpha": lora_alpha,
        "encoder": encoder,
        "last_state": last_state,
        "input_scale": input_scale,
    }
    options = {key: value for key, value in options.items() if value is not None}
    if unused := set(options) - set(inspect.signature(format_.convert).parameters):
        raise InputError(f"{sorted(unused)[0]}: no option of {kind} ({format_.TITLE})")
    model, epoch, left_out, details, remarks = format_.convert(content, **options)
    left_out = {reason: names for reason, names in left_out.items() if names}
    name = checkpoint if is_hub_id(checkpoint) else content.path.name
    hashes = [sha256(file) for file in content.files]
    conversion = {
        "kind": kind,
        "file": name,
        "bytes": sum(file.stat().st_size for file in content.files),
        "sha256": hashes[0] if len(hashes) == 1 else hashes,
        "licence": licence or format_.LICENCE,
        "encoder_config": encoder_config and Path(encoder_config).name,
        "left_out": {reason: len(names) for reason, names in left_out.items()},
        **details,
    }
    if isinstance(model, Encoder):
        _save_encoder(folder, model, conversion)
    else:
        training = {
            "speakers": [],  # no classifier goes with these weights
            "n_speeds": 1,
            "epoch": epoch,
            "converted_from": conversion,
        }
        save_pretrained(folder, model, training=training)
    for reason, names in left_out.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        remarks = [*remarks, f"left out, {reason}: {names[0]}{more}"]
    for line in (_summary(model), *remarks):
        logger.info("%s: %s", name, line)
    return folder


def _summary(model):
    """Class, sizes and layers of what was converted, in a line."""
    encoder = model if isinstance(model, Encoder) else model.encoder
    layers = f"{encoder.n_states - 1} layers of {encoder.hidden_size}"
    if encoder.n_states == 1:
        layers = f"frames of {encoder.hidden_size}"
    count = sum(p.numel() for p in encoder.parameters())
    if encoder is model:
        return f"{type(model).__name__} alone; {count:,} parameters, {layers}"
    of_head = sum(p.numel() for p in model.head.parameters())
    return (
        f"{type(model.head).__name__}, embeddings of {model.embedding_size}; "
        f"{count:,} + {of_head:,} parameters (encoder + head), {layers}"
    )


def _save_encoder(folder, encoder, conversion):
    """Write an encoder as its class takes it as ``source``, whole or not at all."""
    ours = (folder / CONVERSION).is_file()
    if folder.exists() and not ours and not (folder.is_dir() and _empty(folder)):
        raise InputError(f"{folder}: exists and is not the folder of an encoder")
    with write_folder_atomically(folder) as new:
        write_json(new / "config.json", encoder.arguments["source"])
        standardise = {"do_normalize": encoder.arguments["standardise"]}
        write_json(new / "preprocessor_config.json", standardise)
        save_weights(encoder.state_dict(), new / ENCODER_WEIGHTS)
        write_json(new / CONVERSION, conversion)


def _empty(folder):
    return not any(folder.iterdir())


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
    if len(fitting) > 1:  # the same tensors: names and what lies there may tell
        said = [
            name
            for name in fitting
            if getattr(known[name], "said_beside", lambda path: False)(content.path)
        ]
        fitting = said if len(said) == 1 else fitting
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


def _check_apart(folder, *sources):
    """The folder is replaced as a whole: what is converted must not lie in it."""
    for source in sources:
        if source and Path(source).exists():
            place = Path(source).resolve()
            if folder.resolve() in (place, *place.parents):
                raise InputError(
                    f"{folder}: holds {place.name}, which would be lost when the "
                    "folder is replaced; expected another folder"
                )
