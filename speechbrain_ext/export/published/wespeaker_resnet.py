"""wespeaker's ResNets and SimAM-ResNets of features: ``avg_model.pt``, flat.

    conv1 … layer4, seg_1 (seg_bn_1, seg_2), pool      ResNet with TSTP or ASTP
    front, pooling.attention, bottleneck               ResNet with SimAM and ASP
    projection                                         left out

github.com/wenet-e2e/wespeaker (Wang et al. 2023, arXiv 2210.17016). Features are
Kaldi's, of whole numbers of 16 bits and the Hamming window, without dither. With two
embedding layers the embedding is the second one, as its extraction takes.
"""

from speechbrain_ext.export.published.checkpoint import ON_VOX1, Converted, details_of
from speechbrain_ext.export.published.resnet_model import (
    build,
    has_features,
    left_out,
    place_of,
    read_file,
)

TITLE = (
    "wespeaker's ResNets: conv1, layer1 … layer4 and seg_1; with SimAM: front.*, "
    "pooling.attention.* and bottleneck"
)
LICENCE = (
    "licence not stated in the file; wespeaker's documentation says CC-BY-4.0 of its "
    "VoxCeleb models, and that of the dataset (CC BY-NC-SA 4.0) of the SimAM-ResNets, "
    "which start from VoxBlink2"
)

# Parameters → what wespeaker's README publishes, in per cent of EER on Vox1-O / E / H
FIGURES = {
    6_634_336: "0.867 / 1.049 / 1.959",
    23_792_224: "0.569 / 0.774 / 1.464; large margin, AS-norm: 0.505 / 0.676 / 1.213",
    28_626_016: "0.595 / 0.756 / 1.433; large margin, AS-norm: 0.447 / 0.657 / 1.183",
    25_213_760: "large margin: 0.415 / 0.615 / 1.121",
    50_232_896: "large margin: 0.229 / 0.458 / 0.868",
}


def detect(tensors):
    """Whether there is a ResNet without VoxBlink2's features."""
    return place_of(tensors) is not None and not has_features(tensors)


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
    file = read_file(checkpoint)
    model = build(file, "wespeaker")
    arguments = model.encoder.arguments
    remarks = [f"Kaldi's filterbank of {arguments['n_mels']} bins, Hamming, 16 bits"]
    if file.trunk:
        kind = type(model.encoder).__name__
        remarks.append(f"{kind}: as the pooling tells; SimAM has no tensors")
    details = details_of(model, FIGURES, ON_VOX1)
    return Converted(model, None, left_out(file, ""), details, remarks)
