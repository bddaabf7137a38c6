"""wespeaker's CAM++: ``avg_model.pt``, a flat dictionary.

Its tensors are those of 3D-Speaker, with ``projection``, the classifier, beside them;
the features are of whole numbers of 16 bits in a Hamming window, and the pooling adds
1e-7 to variances. github.com/wenet-e2e/wespeaker (Wang et al. 2023, arXiv 2210.17016).
"""

import re
from pathlib import Path

from speechbrain_ext.export.published.checkpoint import named_so
from speechbrain_ext.export.published.three_d_speaker import campplus, is_campplus

TITLE = "wespeaker's CAM++: xvector.* and projection.*"
LICENCE = (
    "licence not stated in the file; wespeaker's documentation says CC-BY-4.0 of its "
    "VoxCeleb models"
)

# Parameters → what wespeaker's README publishes, in per cent of EER
FIGURES = {
    7_176_224: "EER on Vox1-O / E / H in %: 0.803 / 0.932 / 1.860; large margin: "
    "0.707 / 0.845 / 1.664; and AS-norm: 0.659 / 0.803 / 1.569"
}

_SAYS_SO = re.compile(r"wespeaker|avg_model")
_CONFIG = re.compile(r"^model_args:", re.MULTILINE)


def detect(tensors):
    """Whether there are layers of CAM++."""
    return is_campplus(tensors)


def said_beside(path):
    """Whether names of the file or its folder, or a config.yaml there, say so."""
    if named_so(path, _SAYS_SO):
        return True
    config = Path(path).absolute().parent / "config.yaml"
    try:
        return bool(_CONFIG.search(config.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


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
        Tensors that are missing, left over, or of the wrong shape.
    """
    return campplus(checkpoint, "wespeaker", 1e-7, FIGURES)
