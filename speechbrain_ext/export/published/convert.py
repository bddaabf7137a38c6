"""Published checkpoints of arXiv 2510.04213 → a pretrained folder.

    front.encoder.X  →  encoder.X        (base_model.model. of peft taken off)
    X of the head    →  head.X
    W, A, B of LoRA  →  W + (α/r)·B·A

Weighted sum + ECAPA-TDNN, MFA, Adapter-MFA, with LoRA, merged or not, and pruned ones:
which it is shows in the names and shapes of the tensors. Embeddings stay the same.
"""

import logging
import math
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from speechbrain_ext.adaptation import inject_lora, merge_lora
from speechbrain_ext.export.published.checkpoint import read_released
from speechbrain_ext.export.published.shapes import (
    ENCODER,
    INTERMEDIATE,
    Shapes,
    encoder_config,
    head_for,
    left_over,
)
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import (
    W2VBertEncoder,
    full_shape,
    layer_shapes,
    read_config,
)
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.files import sha256
from speechbrain_ext.utils.weights import load_strictly

logger = logging.getLogger(__name__)

# The published training configurations say r 64, α 128; no weight tells α.
PUBLISHED_ALPHA_PER_RANK = 2
LICENCE = (
    "licence not stated in the file; the code published with it is CC BY-NC-SA 4.0"
)
LORA = re.compile(r"\.lora_([AB])(?:\.\w+)?\.weight$")
COUNTER = "num_batches_tracked"


class Lora(NamedTuple):
    """LoRA found in a checkpoint: its rank, its alpha, the last names of its layers."""

    rank: int
    alpha: float
    layers: list


def convert_released(
    checkpoint, output_dir, encoder_config=None, lora_alpha=None, licence=LICENCE
):
    """Convert a published checkpoint to a folder that ``load_pretrained`` reads.

    Every tensor is used, or left out for a stated reason (the classifier of training,
    of which no file holds the speakers' names, among them): the log and
    ``training.json`` list them. Tensors stay mapped to the file: besides what LoRA
    merges, and what is not float32, none is copied.

    Arguments
    ---------
    checkpoint : str or Path
        The published .pth file.
    output_dir : str or Path
        The folder; replaced where it is such a folder already.
    encoder_config : str or Path
        The configuration of the encoder (JSON). None derives the widths of every layer
        from the weights, and takes what they do not tell from w2v-BERT 2.0.
    lora_alpha : float
        Scale of LoRA that is not merged; None takes the published 2 · rank.
    licence : str
        Of the weights, for ``training.json``.

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
    checkpoint, folder = Path(checkpoint), Path(output_dir)
    _check_apart(folder, checkpoint, encoder_config)
    released = read_released(checkpoint)
    model, lora = build_released(
        released.weights, str(checkpoint), encoder_config, lora_alpha
    )
    training = {
        "speakers": [],  # no classifier goes with these weights
        "n_speeds": 1,
        "epoch": released.epoch,
        "converted_from": {
            "file": checkpoint.name,
            "bytes": checkpoint.stat().st_size,
            "sha256": sha256(checkpoint),
            "licence": licence,
            "encoder_config": encoder_config and Path(encoder_config).name,
            "lora": lora and lora._asdict(),
            "left_out": {
                reason: len(names) for reason, names in released.left_out.items()
            },
        },
    }
    save_pretrained(folder, model, training=training)
    for line in describe(model, lora, released.left_out):
        logger.info("%s: %s", checkpoint.name, line)
    if encoder_config is None and _is_pruned(model):
        logger.warning(
            "%s: no encoder configuration was given: these widths are what its tensors "
            "show",
            checkpoint.name,
        )
    return folder


def build_released(weights, source, encoder_config=None, lora_alpha=None):
    """Tensors of the published model → our model, LoRA merged.

    Arguments
    ---------
    weights : dict of str to torch.Tensor
        Name in the published model → float32 tensor. The model takes these tensors
        themselves.
    source : str
        Their file, for messages.
    encoder_config, lora_alpha
        As in :func:`convert_released`.

    Returns
    -------
    model : SpeakerEncoder
        For its weights, widths and arguments alone: it was built without memory.
    lora : Lora
        Or None.
    """
    weights = {_own_name(name): tensor for name, tensor in weights.items()}
    config = _configuration(weights, source, encoder_config)
    lora = _find_lora(weights, source, lora_alpha)
    with torch.device("meta"):
        with naming(encoder_config or source):
            encoder = W2VBertEncoder(config)
        head = head_for(weights, config, source)
        if lora:
            inject_lora(encoder, lora.rank, lora.alpha, target_modules=lora.layers)
    widths = (
        f"; widths are those in {encoder_config}"
        if encoder_config
        else "; widths were derived from the file: if the model was pruned, give its "
        "encoder configuration"
    )
    try:
        _load(encoder, head, weights, source)
    except InputError as error:
        if encoder_config and left_over(weights, config, source):
            widths += f", which says that some were removed: this is as {INTERMEDIATE}"
        raise InputError(f"{error}{widths}") from error
    if lora:
        merge_lora(encoder)
    return SpeakerEncoder(encoder, head).eval(), lora


def describe(model, lora, left_out):
    """What was found in a checkpoint → lines for the log."""
    encoder, head = model.encoder, model.head
    shapes = layer_shapes(encoder.config)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (encoder, head)]
    yield (
        f"{type(head).__name__}, embeddings of {model.embedding_size}; "
        f"{sizes[0]:,} + {sizes[1]:,} parameters (encoder + head), "
        f"{len(shapes)} layers of {encoder.hidden_size}"
    )
    if lora:
        yield (
            f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}, on "
            f"{', '.join(lora.layers)}: merged"
        )
    if _is_pruned(model):
        for name in ("heads", "ffn1", "ffn2", "conv"):
            yield f"pruned, {name} by layer: {[getattr(s, name) for s in shapes]}"
    for reason, names in left_out.items():
        yield f"left out, {reason}: {names[0]}" + (
            f" and {len(names) - 1} more" if len(names) > 1 else ""
        )


def _is_pruned(model):
    config = model.encoder.config
    return any(shape != full_shape(config) for shape in layer_shapes(config))


def _check_apart(folder, *files):
    """The folder is replaced as a whole: what is converted must not lie in it."""
    for file in files:
        if file and folder.resolve() in Path(file).resolve().parents:
            raise InputError(
                f"{folder}: holds {Path(file).name}, which would be lost when the "
                "folder is replaced; expected another folder"
            )


def _own_name(name):
    """Without what peft puts before and into names."""
    name = name.replace(f"{ENCODER}base_model.model.", ENCODER, 1)
    return LORA.sub(r".lora_\1.default.weight", name)


def _configuration(weights, source, path):
    if path is None:
        return encoder_config(weights, source)
    config = read_config(path)
    with naming(path):
        try:
            layer_shapes(config)
        except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            raise InputError(
                f"widths of another form than the published lists per layer ({error})"
            ) from error
    return config


def _find_lora(weights, source, alpha):
    names = [name for name in weights if LORA.search(name)]
    if not names:
        if alpha is not None:
            raise InputError(
                f"{source}: no LoRA tensors, expected some where lora_alpha is given"
            )
        return None
    rank = Shapes({}, source)
    rank.by_name = {name: tuple(weights[name].shape) for name in names}
    rank = rank.need("", *((name, ".lora_B." in name) for name in names))
    alpha = PUBLISHED_ALPHA_PER_RANK * rank if alpha is None else alpha
    if not (math.isfinite(alpha) and alpha > 0):
        raise InputError(f"lora_alpha: {alpha}, expected a number above 0")
    layers = sorted({LORA.sub("", name).rsplit(".", 1)[-1] for name in names})
    return Lora(rank, float(alpha), layers)


def _load(encoder, head, weights, source):
    """Both parts, by the names that the file has."""
    front = nn.Module()
    front.front = nn.Module()
    front.front.encoder = encoder
    for name in head.state_dict():
        if name.endswith(COUNTER):  # counts batches of training only
            weights.setdefault(name, torch.tensor(0))
    mine = {name: w for name, w in weights.items() if name.startswith(ENCODER)}
    others = {name: w for name, w in weights.items() if name not in mine}
    load_strictly(front, mine, source, assign=True)
    load_strictly(head, others, source, assign=True)
