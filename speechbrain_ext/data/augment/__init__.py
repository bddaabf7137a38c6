"""Noise, rooms, channels, codecs, RawBoost, SpecAugment and speed."""

from speechbrain_ext.data.augment.augmenter import (
    Augmenter,
    Channel,
    Musan,
    RoomResponses,
    SpecAugment,
)
from speechbrain_ext.data.augment.codecs import Codec
from speechbrain_ext.data.augment.rawboost import RawBoost

__all__ = [
    "Augmenter",
    "Channel",
    "Codec",
    "Musan",
    "RawBoost",
    "RoomResponses",
    "SpecAugment",
]
