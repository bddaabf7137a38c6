"""UniSpeech's speaker verification: ``wavlm_large_finetune.pth`` and its like.

    {"model": {…}}

    feature_extract.model.X                      →  the encoder, by fairseq's names
    feature_weight                               →  weights of the sum of its states
    layer1 … layer4, conv, pooling, bn, linear   →  an ECAPA-TDNN
    loss_calculator                              →  left out

Chen et al. 2021 (arXiv 2110.05777); downstreams/speaker_verification of
github.com/microsoft/UniSpeech. The waveform is standardised where the convolutions have
LayerNorms, with torch's 1e-5 in the root; the last state is normalised; the sum of the
states goes through an InstanceNorm; the ECAPA-TDNN pads with zeros and has no global
context.
"""

from speechbrain_ext.export.published.checkpoint import (
    OF_TRAINING,
    Converted,
    as_weights,
)
from speechbrain_ext.export.published.ecapa_head import UNISPEECH, read_head
from speechbrain_ext.export.published.fairseq_encoder import read_encoder
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder

TITLE = "UniSpeech's speaker verification: feature_extract.model.* and an ECAPA-TDNN"
LICENCE = (
    "licence not stated in the file; the repository it is published in "
    "(microsoft/UniSpeech) is CC BY-SA 3.0"
)

_ENCODER = "feature_extract.model."
_CLASSIFIER = "loss_calculator."


def detect(tensors):
    """Whether there is an encoder of this name."""
    return any(_place(name) is not None for name in tensors)


def _place(name):
    """What stands before ``feature_extract.model.``, or None."""
    before, found, _ = name.partition(_ENCODER)
    return before if found and (not before or before.endswith(".")) else None


def convert(checkpoint, encoder_config=None, encoder=None):
    """Convert, strictly: each tensor is used or left out for a reason.

    Arguments
    ---------
    checkpoint : Checkpoint
    encoder_config : str or Path, optional
        JSON of transformers' configuration of the encoder; None: as the shapes tell.
    encoder : str, optional
        ``hubert``, ``wav2vec2`` or ``unispeech_sat``, where no tensor tells.

    Returns
    -------
    Converted

    Raises
    ------
    InputError
        Tensors that are missing, left over, or of the wrong shape; a configuration or
        a family of another encoder.
    """
    path = checkpoint.path
    place = next(p for name in checkpoint.tensors if (p := _place(name)) is not None)
    tensors = {n.removeprefix(place): w for n, w in checkpoint.tensors.items()}
    classifier = [name for name in tensors if name.startswith(_CLASSIFIER)]
    weights = as_weights(
        {name: w for name, w in tensors.items() if name not in classifier}, path
    )
    inside = {n: w for n, w in weights.items() if n.startswith(_ENCODER)}
    front, left_out, remarks = read_encoder(
        {name.removeprefix(_ENCODER): tensor for name, tensor in inside.items()},
        path,
        _ENCODER,
        encoder,
        encoder_config,
        {},
        {"last_state": "normalised"},
    )
    others = {name: w for name, w in weights.items() if name not in inside}
    head = read_head(others, path, front, UNISPEECH)
    left_out[OF_TRAINING] = classifier
    return Converted(SpeakerEncoder(front, head).eval(), None, left_out, {}, remarks)
