"""VoxBlink2's ECAPA-TDNN: ``model_pt.pt`` or ``model_ft.pt``, flat, under ``module``.

    conv1, layer1 … layer4, attention, bn5, fc6, bn6     the network
    featCal.fbankCal                     mel filters and window: checked, left out

github.com/VoxBlink2/ScriptsForVoxBlink2 (Lin et al. 2024, arXiv 2407.11510), after
clovaai's: a block sees the sum of all before it, and the embedding has a BatchNorm.
Waveforms are divided by their deviation.
"""

from speechbrain_ext.export.published.checkpoint import Converted, details_of
from speechbrain_ext.export.published.ecapa_model import (
    VOXBLINK2,
    build,
    own_tensors,
    place_of,
)
from speechbrain_ext.export.published.resnet_model import FEATURES, ResNetFile
from speechbrain_ext.export.published.voxblink2_resnet import FEATURES as CONSTANTS
from speechbrain_ext.export.published.voxblink2_resnet import (
    IN_TWO_STAGES,
    LICENCE,
    checked_features,
)
from speechbrain_ext.utils.errors import InputError

__all__ = ["LICENCE", "TITLE", "convert", "detect"]

TITLE = "VoxBlink2's ECAPA-TDNN: conv1, layer1 … layer4, attention, fc6 and bn6"

FIGURES = "1.728 / 0.675"  # of 1024 channels, as the README publishes
_CHANNELS = [1024, 1024, 1024, 1024, 1536]


def detect(tensors):
    """Whether there are its blocks."""
    return place_of(tensors, VOXBLINK2) is not None


def convert(checkpoint):
    """Convert, strictly: each tensor is used or left out for a reason.

    Arguments
    ---------
    checkpoint : Checkpoint

    Returns
    -------
    Converted

    Raises
    ------
    InputError
        Tensors that are missing, left over, or of the wrong shape; other features.
    """
    path = checkpoint.path
    weights, others = own_tensors(checkpoint, VOXBLINK2, (FEATURES,))
    constants = others[FEATURES]
    n_mels = checked_features(ResNetFile(weights, constants, [], path, ""))
    model = build(weights, path, VOXBLINK2, "voxblink2_std")
    arguments = model.encoder.arguments
    if n_mels not in (None, arguments["n_mels"]):
        raise InputError(
            f"{path}: mel filters of {n_mels} bins before a network of "
            f"{arguments['n_mels']}"
        )
    remarks = [
        f"mel spectrum of {arguments['n_mels']} bins of a waveform over its deviation"
    ]
    details = details_of(model, {})
    if arguments["channels"] == _CHANNELS:
        details["published_figures"] = IN_TWO_STAGES + FIGURES
    left_out = {CONSTANTS: list(constants)}
    return Converted(model, None, left_out, details, remarks)
