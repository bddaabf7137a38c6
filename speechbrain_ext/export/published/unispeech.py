"""UniSpeech's speaker verification: ``wavlm_large_finetune.pth`` and its like.

    {"model": {…}}

    feature_extract.model.X              →  encoder, by fairseq's names
    feature_weight                       →  head.layer_weights
    layer1 … layer4, conv, pooling, bn, linear  →  head, an ECAPA-TDNN
    loss_calculator                      →  left out

Chen et al. 2021 (arXiv 2110.05777); downstreams/speaker_verification of
github.com/microsoft/UniSpeech. The waveform is standardised where the convolutions have
LayerNorms, with torch's 1e-5 in the root; the last state is normalised; the sum of the
states goes through an InstanceNorm, and the ECAPA-TDNN pads with zeros and has no
global context.
"""
