"""Heads: all hidden states of an encoder → one embedding or decision per utterance."""

from speechbrain_ext.lobes.heads.detection import Detection
from speechbrain_ext.lobes.heads.ecapa import ECAPAPooling
from speechbrain_ext.lobes.heads.lap import LAP
from speechbrain_ext.lobes.heads.mfa import MFA, AdapterMFA, ConformerMFA, LayerAdapter
from speechbrain_ext.lobes.heads.mhfa import CAMHFA, MHFA
from speechbrain_ext.lobes.heads.pooling import AttentiveStatisticsPooling
from speechbrain_ext.lobes.heads.statistics import ASP, TSTP, WeightedSumLinear
from speechbrain_ext.lobes.heads.weighted_ecapa import WeightedSumECAPA
from speechbrain_ext.lobes.heads.xvector import XVector

__all__ = [
    "ASP",
    "CAMHFA",
    "LAP",
    "MFA",
    "MHFA",
    "TSTP",
    "AdapterMFA",
    "AttentiveStatisticsPooling",
    "ConformerMFA",
    "Detection",
    "ECAPAPooling",
    "LayerAdapter",
    "WeightedSumECAPA",
    "WeightedSumLinear",
    "XVector",
]
