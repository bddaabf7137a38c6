"""A tiny model's folder with its classifier, and ways to damage a file of it."""

import os
import pickle

import torch
from tiny_training import tiny_config

from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.pretrained import save_pretrained

SPEAKERS = ["anna", "bert", "carl", "dora"]


def make_model(head=AdapterMFA, seed=0, **options):
    torch.manual_seed(seed)
    encoder = W2VBertEncoder(tiny_config())
    return SpeakerEncoder(encoder, head(16, 2, embedding_size=8, **options))


def make_classifier(n_classes=12):
    torch.manual_seed(1)
    return ArcFace(8, n_classes)


def training(speakers=SPEAKERS, n_speeds=3):
    return {"speakers": list(speakers), "n_speeds": n_speeds, "epoch": 4}


def save_tiny(folder):
    """A saved model of 4 speakers at 3 speeds."""
    return save_pretrained(folder, make_model(), make_classifier(), training())


class Malice:
    def __reduce__(self):
        return os.system, ("touch malice",)


def garbage(path):
    path.write_bytes(b"\x80\x00garbage")


def empty(path):
    path.write_bytes(b"")


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def hostile(path):
    path.write_bytes(pickle.dumps(Malice(), protocol=2))


def remove(path):
    path.unlink()


DAMAGES = [garbage, empty, truncate, hostile, remove]
