"""wespeaker's models on SSL encoders: ``avg_model.pt``, a flat dictionary.

    encoder                             head                        waveform  last state
    frontend.upstream.upstream.model.X  layer1 … linear: ECAPA-TDNN as s3prl  normalised
    model.X                             back_end.X: MHFA            as it is  raw
    model.X                             back_end.X: CA-MHFA         · 32768   raw
    projection                          left out

X of an encoder is fairseq's name. The first is github.com/wenet-e2e/wespeaker (Wang et
al. 2023, arXiv 2210.17016) by s3prl, which standardises the waveform where the
convolutions have LayerNorms and repeats the last frame, so that there is one for each
320 samples begun; the sum of the states has its mean over time taken off. The others
are github.com/BUTSpeechFIT/wespeaker_ssl_public and JunyiPeng00/Wespeaker_SSL (Peng et
al. 2022, arXiv 2210.01273, and 2024, arXiv 2409.15234); the latter's waveforms are
whole numbers of 16 bits. That factor is put into the first convolution's weight.
"""

import math

from speechbrain_ext.export.published.checkpoint import (
    OF_TRAINING,
    Converted,
    UnderNames,
    as_weights,
)
from speechbrain_ext.export.published.ecapa_head import WESPEAKER, read_head
from speechbrain_ext.export.published.fairseq_encoder import read_encoder
from speechbrain_ext.lobes.heads import CAMHFA, MHFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.weights import load_strictly

TITLE = (
    "wespeaker on SSL encoders: frontend.upstream.upstream.model.* and an ECAPA-TDNN, "
    "or model.* and back_end.* (MHFA, CA-MHFA)"
)
LICENCE = (
    "licence not stated in the file; wespeaker's documentation says CC-BY-4.0 of its "
    "VoxCeleb models, and the encoder that it starts from has its own"
)

_S3PRL = "frontend.upstream.upstream.model."
_MODEL, _BACK_END = "model.", "back_end."
_KNOWN = (f"{_S3PRL}post_extract_proj.weight", f"{_BACK_END}pooling_fc.weight")
_CLASSIFIER = "projection."
_PCM = 32768.0
_NAMES = {
    "key_weights": "weights_k",
    "value_weights": "weights_v",
    "keys": "cmp_linear_k",
    "values": "cmp_linear_v",
    "attention": "att_head",
    "bottleneck": "pooling_fc",
}


def detect(tensors):
    """Whether there is an encoder or a head of these names."""
    return any(_S3PRL in name or _BACK_END in name for name in tensors)


def convert(checkpoint, encoder_config=None, encoder=None, input_scale=None):
    """Convert, strictly: each tensor is used or left out for a reason.

    Arguments
    ---------
    checkpoint : Checkpoint
    encoder_config : str or Path, optional
        JSON of transformers' configuration of the encoder; None: as the shapes tell.
    encoder : str, optional
        ``hubert``, ``wav2vec2`` or ``unispeech_sat``, where no tensor tells.
    input_scale : float, optional
        By which a waveform of ±1 is multiplied; None: 32768 for CA-MHFA, else 1.

    Returns
    -------
    Converted

    Raises
    ------
    InputError
        Tensors that are missing, left over, or of the wrong shape; a head that is not
        known; a configuration or a family of another encoder.
    """
    path = checkpoint.path
    tensors, classifier = _own_tensors(checkpoint)
    weights = as_weights(tensors, path)
    of_s3prl = any(name.startswith(_S3PRL) for name in weights)
    prefix = _S3PRL if of_s3prl else _MODEL
    inside = {n: w for n, w in weights.items() if n.startswith(prefix)}
    others = {n: w for n, w in weights.items() if n not in inside}
    scale = _scale(input_scale, others)
    options, keys = {"last_state": "raw", "standardise": False}, {}
    if of_s3prl:
        options, keys = {"last_state": "normalised"}, {"repeat_last": True}
    first = f"{prefix}feature_extractor.conv_layers.0.0.weight"
    if scale != 1 and first in inside:
        inside[first] = inside[first] * scale
    front, left_out, remarks = read_encoder(
        {name.removeprefix(prefix): tensor for name, tensor in inside.items()},
        path,
        prefix,
        encoder,
        encoder_config,
        keys,
        options,
    )
    if of_s3prl:
        head = read_head(others, path, front, WESPEAKER)
    else:
        head = _mhfa(others, path, front)
    if not front.standardise:
        remarks.append(f"waveforms of ±1 are multiplied by {scale:g} (--input_scale)")
    left_out[OF_TRAINING] = classifier
    details = {"input_scale": scale}
    model = SpeakerEncoder(front, head).eval()
    return Converted(model, None, left_out, details, remarks)


def _own_tensors(checkpoint):
    """(tensors by names without what stands before them, names of the classifier)."""
    path, names = checkpoint.path, checkpoint.tensors
    known = [(name, end) for name in names for end in _KNOWN if name.endswith(end)]
    if not known:
        raise InputError(
            f"{path}: weights do not fit: missing {_KNOWN[0]} (s3prl's encoder) or "
            f"{_KNOWN[1]} (MHFA)"
        )
    place = known[0][0].removesuffix(known[0][1])
    own = {name.removeprefix(place): tensor for name, tensor in names.items()}
    classifier = [name for name in own if name.startswith(_CLASSIFIER)]
    return {n: w for n, w in own.items() if n not in classifier}, classifier


def _scale(given, head):
    """By which waveforms are multiplied."""
    if given is None:
        weight = head.get(f"{_BACK_END}att_head.weight")
        return _PCM if weight is not None and weight.dim() == 4 else 1.0
    if not (math.isfinite(given) and given > 0):
        raise InputError(f"input_scale: {given}, expected a number above 0")
    return float(given)


def _mhfa(tensors, path, encoder):
    """MHFA, or CA-MHFA where the query is a convolution."""

    def shape(name, dimensions):
        name = f"{_BACK_END}{name}.weight"
        found = tuple(tensors[name].shape) if name in tensors else ()
        if len(found) not in dimensions or not all(found):
            raise InputError(
                f"{path}: weights do not fit: missing {name}, or of another shape: "
                f"{found}"
            )
        return found

    query = shape("att_head", (2, 4))
    sizes = {
        "input_size": encoder.hidden_size,
        "n_states": encoder.n_states,
        "embedding_size": shape("pooling_fc", (2,))[0],
        "heads": query[0],
        "compression_size": shape("cmp_linear_v", (2,))[0],
    }
    if len(query) == 2:
        head = MHFA(**sizes)
    else:
        name = f"{_BACK_END}att_head.weight"
        if query[2] % 2 == 0 or query[1] != 1:
            raise InputError(
                f"{path}: {name} {query}: {query[2]} taps, expected an odd number, of "
                "one channel"
            )
        head = CAMHFA(**sizes, kernel=query[2])
        # [G, 1, taps, width] over a map of keys → [G, width, taps] over keys
        tensors = {**tensors, name: tensors[name][:, 0].transpose(1, 2)}

    def name_in_file(name):
        module, dot, tensor = name.partition(".")
        return f"{_BACK_END}{_NAMES[module]}{dot}{tensor}"

    load_strictly(UnderNames(head, name_in_file), tensors, str(path))
    return head
