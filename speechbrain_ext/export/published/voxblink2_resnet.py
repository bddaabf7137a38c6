"""VoxBlink2's ResNets: ``model_pt.pt`` or ``model_ft.pt``, flat, under ``module``.

    front.X, pooling.attention, bottleneck     the network
    featCal.fbankCal                           mel filters and window: checked, left out

github.com/VoxBlink2/ScriptsForVoxBlink2 (Lin et al. 2024, arXiv 2407.11510). Pooling
and blocks tell the network: attention over basic blocks is a SimAM-ResNet's. Waveforms
are divided by their peak; by their deviation for basic blocks without SimAM.
"""

import torch

from speechbrain_ext.export.published.checkpoint import Converted, details_of
from speechbrain_ext.export.published.resnet_model import (
    build,
    has_features,
    left_out,
    place_of,
    read_file,
)
from speechbrain_ext.features.voxblink2 import voxblink2_filterbank
from speechbrain_ext.utils.errors import InputError

TITLE = "VoxBlink2's ResNets: front.*, bottleneck and featCal.* (mel filters)"
LICENCE = (
    "licence not stated in the file; VoxBlink2's data and checkpoints are CC BY-NC-SA "
    "4.0"
)

# Parameters → what the README publishes
FIGURES = {
    21_538_240: "1.728 / 0.553",
    57_666_496: "1.132 / 0.457",
    98_937_408: "0.707 / 0.228",
}
IN_TWO_STAGES = "EER on Vox1-O in %, trained on VoxBlink2 / then on VoxCeleb2: "
FEATURES = "constants of the features, which are computed"
_MEL = "featCal.fbankCal.mel_scale.fb"
_WINDOW = "featCal.fbankCal.spectrogram.window"


def detect(tensors):
    """Whether there is a ResNet with VoxBlink2's features."""
    return place_of(tensors) is not None and has_features(tensors)


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
    file = read_file(checkpoint)
    n_mels = checked_features(file)
    attention = any(name.startswith("pooling.") for name in file.weights)
    bottleneck = any(".conv3." in name for name in file.weights)
    by = "peak" if attention or bottleneck else "deviation"
    model = build(file, "voxblink2" if by == "peak" else "voxblink2_std", n_mels)
    kind = type(model.encoder).__name__
    remarks = [
        f"{kind}: as the pooling tells; SimAM has no tensors",
        f"mel spectrum of {n_mels} bins of a waveform over its {by}",
    ]
    details = details_of(model, FIGURES, IN_TWO_STAGES)
    return Converted(model, None, left_out(file, FEATURES), details, remarks)


def checked_features(file):
    """Mel bins M; InputError: constants that are not those of our features."""
    fitting = {_MEL: 2, _WINDOW: 1}
    for name, tensor in file.features.items():
        if fitting.get(name) != tensor.dim():
            raise InputError(
                f"{file.path}: {name} {tuple(tensor.shape)} is not of VoxBlink2's "
                f"features, expected {_MEL} and {_WINDOW}"
            )
    if _MEL not in file.features:
        return None
    n_mels = max(1, file.features[_MEL].shape[1])
    _, mel, window = voxblink2_filterbank(n_mels, torch.device("cpu"))
    left = (len(window) - 400) // 2
    for name, own in ((_MEL, mel), (_WINDOW, window[left : left + 400])):
        given = file.features.get(name, own)
        if given.shape != own.shape or (given - own).abs().max() > 1e-3:
            raise InputError(
                f"{file.path}: {name} {tuple(given.shape)} is not that of 25 ms, Hann, "
                f"0 to 8 kHz (HTK) at 16 kHz, {tuple(own.shape)}"
            )
    return n_mels
