"""wespeaker's ECAPA-TDNN of features: ``avg_model.pt``, a flat dictionary.

github.com/wenet-e2e/wespeaker (Wang et al. 2023, arXiv 2210.17016), with global context
(``ECAPA_TDNN_GLOB_c512``, ``_c1024``) or without. Features are Kaldi's, of whole
numbers of 16 bits and the Hamming window, without dither. ``projection``, the
classifier, is left out.
"""

from speechbrain_ext.export.published.checkpoint import (
    OF_TRAINING,
    ON_VOX1,
    Converted,
    details_of,
)
from speechbrain_ext.export.published.ecapa_model import (
    WESPEAKER,
    build,
    own_tensors,
    place_of,
)

TITLE = "wespeaker's ECAPA-TDNN: layer1 … layer4 (se_res2block), conv, pool and linear"
LICENCE = (
    "licence not stated in the file; wespeaker's documentation says CC-BY-4.0 of its "
    "VoxCeleb models"
)

# Parameters → what wespeaker's README publishes, in per cent of EER on Vox1-O / E / H
FIGURES = {
    14_657_088: "0.856 / 1.072 / 2.059; large margin, AS-norm: 0.728 / 0.929 / 1.721"
}
_CLASSIFIER = "projection."


def detect(tensors):
    """Whether there are its blocks, and no encoder of waveforms before them."""
    place = place_of(tensors, WESPEAKER)
    return place is not None and not any("frontend." in name for name in tensors)


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
    weights, others = own_tensors(checkpoint, WESPEAKER, (_CLASSIFIER,))
    model = build(weights, checkpoint.path, WESPEAKER, "wespeaker")
    mels = model.encoder.arguments["n_mels"]
    remarks = [f"Kaldi's filterbank of {mels} bins, Hamming, 16 bits"]
    details = details_of(model, FIGURES, ON_VOX1)
    left_out = {OF_TRAINING: list(others[_CLASSIFIER])}
    return Converted(model, None, left_out, details, remarks)
