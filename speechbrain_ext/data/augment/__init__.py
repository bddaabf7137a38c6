"""Noise, rooms, channels and speed."""

from speechbrain_ext.data.augment.augmenter import (
    Augmenter,
    Channel,
    Musan,
    RoomResponses,
)

__all__ = ["Augmenter", "Channel", "Musan", "RoomResponses"]
