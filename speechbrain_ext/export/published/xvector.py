"""Folders of transformers' ``…ForXVector`` models: an encoder with an x-vector head.

    wavlm.X, unispeech_sat.X, …              →  encoder.X
    layer_weights, projector, tdnn.i.kernel  →  head.X
    feature_extractor                        →  head.feature_extractor (the embedding)
    classifier, objective                    →  left out

``microsoft/wavlm-base-plus-sv`` is one. The embedding is transformers' ``embeddings``.
Its last state is raw where the states are summed (transformers 5; up to 4.57 it was
normalised before, which matters for pre-norm encoders alone: see ``last_state``), and
normalised where it stands alone.
"""

import inspect

from speechbrain_ext.export.published.checkpoint import (
    OF_TRAINING,
    Converted,
    as_weights,
)
from speechbrain_ext.lobes.heads import XVector
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.lobes.wav2vec2 import UniSpeechSatEncoder, Wav2Vec2Encoder
from speechbrain_ext.lobes.wavlm import WavLMEncoder
from speechbrain_ext.utils.errors import InputError, naming
from speechbrain_ext.utils.weights import load_strictly

TITLE = "transformers' ForXVector: a folder with config.json; tdnn.*, projector.*"
LICENCE = (
    "licence not stated with the weights; the repository of Microsoft's models "
    "(microsoft/UniSpeech) is CC BY-SA 3.0"
)

# model_type → (prefix of the encoder's tensors, its class)
_ENCODERS = {
    "wavlm": ("wavlm.", WavLMEncoder),
    "unispeech-sat": ("unispeech_sat.", UniSpeechSatEncoder),
    "wav2vec2": ("wav2vec2.", Wav2Vec2Encoder),
    "wav2vec2-bert": ("wav2vec2_bert.", W2VBertEncoder),
}
_CLASSIFIER = ("classifier.", "objective.")
# Argument of the head → key of the configuration.
_SIZES = {
    "embedding_size": "xvector_output_dim",
    "channels": "tdnn_dim",
    "kernels": "tdnn_kernel",
    "dilations": "tdnn_dilation",
}


def detect(tensors):
    """Whether there is an x-vector head."""
    return "tdnn.0.kernel.weight" in tensors and "projector.weight" in tensors


def convert(checkpoint, last_state=None):
    """Convert, strictly: each tensor is used or left out for a reason.

    Arguments
    ---------
    checkpoint : Checkpoint
        Of a folder.
    last_state : str, optional
        ``raw`` or ``normalised``; None: as transformers 5 does.

    Returns
    -------
    Converted

    Raises
    ------
    InputError
        No configuration; an encoder that is not supported; tensors that are missing,
        left over, or of the wrong shape.
    """
    path, config = checkpoint.path, checkpoint.config
    kind = config.get("model_type")
    if kind not in _ENCODERS:
        raise InputError(
            f"{path}: model_type {kind!r} in its configuration, expected a folder with "
            f"config.json, of {', '.join(_ENCODERS)}"
        )
    prefix, encoder_class = _ENCODERS[kind]
    summed = bool(config.get("use_weighted_layer_sum", False))
    if last_state is None:
        tied = config.get("tie_last_hidden_states", False)
        last_state = "raw" if summed and not tied else "normalised"
    options = {"last_state": last_state}
    if "last_state" not in inspect.signature(encoder_class).parameters:
        options = {}
    encoder = encoder_class(str(path), **options)
    # of the class that transformers would build: to_dict leaves defaults in
    sizes = {name: encoder.arguments["source"].get(k) for name, k in _SIZES.items()}
    with naming(path):
        head = XVector(
            encoder.hidden_size, encoder.n_states, weighted_sum=summed, **sizes
        )
    rest = {k: w for k, w in checkpoint.tensors.items() if not k.startswith(prefix)}
    left_out = [name for name in rest if name.startswith(_CLASSIFIER)]
    own = {name: w for name, w in rest.items() if name not in left_out}
    load_strictly(head, as_weights(own, path), str(path))
    return Converted(
        SpeakerEncoder(encoder, head).eval(),
        None,
        {OF_TRAINING: left_out},
        {"last_state": last_state},
        [],
    )
