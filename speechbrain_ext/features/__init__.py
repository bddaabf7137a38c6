"""Waveform → input of an encoder, batched, differentiable, on any device."""

from speechbrain_ext.features.kaldi import KaldiFbank
from speechbrain_ext.features.nemo import NemoFeatures
from speechbrain_ext.features.redimnet import ReDimNetFeatures
from speechbrain_ext.features.speechbrain import SpeechBrainFbank
from speechbrain_ext.features.voxblink2 import VoxBlink2Features
from speechbrain_ext.features.w2v_bert import W2VBertFeatures
from speechbrain_ext.features.whisper import WhisperFeatures

__all__ = [
    "KaldiFbank",
    "NemoFeatures",
    "ReDimNetFeatures",
    "SpeechBrainFbank",
    "VoxBlink2Features",
    "W2VBertFeatures",
    "WhisperFeatures",
]
