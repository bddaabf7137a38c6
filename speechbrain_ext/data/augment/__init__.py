"""Changes of training crops: noise, rooms, speed."""

from speechbrain_ext.data.augment.augmenter import (
    Augmenter,
    Effect,
    Musan,
    RoomResponses,
)

__all__ = ["Augmenter", "Effect", "Musan", "RoomResponses"]
