"""Noise, rooms and speed."""

from speechbrain_ext.data.augment.augmenter import Augmenter, Musan, RoomResponses

__all__ = ["Augmenter", "Musan", "RoomResponses"]
