"""3D-Speaker's ECAPA-TDNN: ``ecapa_tdnn.bin``, a flat dictionary.

Its tensors are SpeechBrain's, name by name; its features are Kaldi's of waveforms of ±1
and Povey's window. Names of the file, of its folder or of what lies there tell the two
apart. github.com/modelscope/3D-Speaker (Chen et al. 2024, arXiv 2403.19971).
"""

import re

from speechbrain_ext.export.published.checkpoint import Converted, details_of, named_so
from speechbrain_ext.export.published.ecapa_model import (
    SPEECHBRAIN,
    build,
    own_tensors,
    place_of,
)

TITLE = "3D-Speaker's ECAPA-TDNN: blocks, mfa, asp and fc, of Kaldi's features"
LICENCE = (
    "licence not stated in the file; the repository it is published in "
    "(modelscope/3D-Speaker) is Apache-2.0"
)

_SAYS_SO = re.compile(r"3d-?speaker|modelscope|speech_ecapa|ecapa_tdnn|\.bin$")


def detect(tensors):
    """Whether there are SpeechBrain's blocks, which are its own."""
    return place_of(tensors, SPEECHBRAIN) is not None


def said_beside(path):
    """Whether names of the file, its folder or what lies there say that it is one."""
    return named_so(path, _SAYS_SO, "configuration.json")


def convert(checkpoint):
    """Convert, strictly: each tensor is used.

    Arguments
    ---------
    checkpoint : Checkpoint

    Returns
    -------
    Converted

    Raises
    ------
    InputError
        Tensors that are missing, left over, or of the wrong shape.
    """
    weights, _ = own_tensors(checkpoint, SPEECHBRAIN, ())
    model = build(weights, checkpoint.path, SPEECHBRAIN, "3dspeaker")
    mels = model.encoder.arguments["n_mels"]
    remarks = [f"Kaldi's filterbank of {mels} bins, Povey, ±1"]
    return Converted(model, None, {}, details_of(model, {}), remarks)
