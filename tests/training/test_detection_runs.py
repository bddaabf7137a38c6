"""Runs that learn to tell spoofs: on two processes, stopped anywhere, other weights."""

import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny_training import (
    assert_same,
    in_processes,
    manifest_of,
    saved,
    tiny_brain,
    tiny_config,
    train,
    train_in_pieces,
)

from speechbrain_ext.data.manifest import write_manifest
from speechbrain_ext.lobes.heads import AdapterMFA, Detection
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.schedules import Constant
from speechbrain_ext.training import detection
from speechbrain_ext.training.brain import SpeakerBrain
from speechbrain_ext.training.data import TrainingData
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = {"spoof": 0.1, "bonafide": 0.9}


def run(
    corpus,
    folder,
    *,
    brain=SpeakerBrain,
    weights=None,
    batch_size=4,
    factor=1,
    epochs=2,
    dropout=0.1,
):
    """(Brain, loader): of seven recordings of a voice two are bona fide."""
    rank = os.environ.get("RANK", "0")
    folder.mkdir(parents=True, exist_ok=True)
    manifest = manifest_of(corpus, range(4))
    keys = ["bonafide" if n % 7 < 2 else "spoof" for n in range(len(manifest))]
    none = ["-"] * len(keys)
    extra = {"key": keys, "attack": none, "codec": none}
    path = folder / f"train{rank}.csv"
    write_manifest(path, replace(manifest, extra=extra))
    options = {"crop_seconds": (0.5, 0.5), "batch_size": batch_size, "label": "key"}
    data, term = TrainingData(path, 7, **options), detection.Detection(weights)
    torch.manual_seed(3)
    encoder = W2VBertEncoder(tiny_config(dropout))
    model = SpeakerEncoder(encoder, Detection(AdapterMFA(16, 2, 8, 16)))
    term.setup(model, data)
    torch.manual_seed(7)
    made = tiny_brain(
        corpus,
        folder,
        model,
        data,
        [term],
        brain=brain,
        epochs=epochs,
        factor=factor,
        validate=False,
        steps_between_checkpoints=0,
        opt_class=partial(torch.optim.SGD, momentum=0.9),
        lr_schedule=Constant(0.01),
    )
    return made, data.loader(0)


def _leave(corpus, folder, batch_size):
    left = []
    for weights in (None, WEIGHTS):
        options = {"weights": weights, "batch_size": batch_size, "dropout": 0.0}
        made = run(corpus, folder / str(len(left)), **options, factor=3, epochs=1)
        left.append(train(*made))
        left[-1].pop("random")
    torch.save({"left": left}, folder / f"rank{os.environ['RANK']}")


def test_two_processes_are_one(corpus, tmp_path):
    """Also where a batch of one has no bona fide recording, and with accumulation."""
    found = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        arguments = corpus, folder, 4 // world
        assert in_processes(_leave, world, *arguments) == [0] * world
        found += [saved(folder / f"rank{rank}").left for rank in range(world)]
    for one, first, second in zip(*found, strict=True):
        assert_same(first, second)
        for name, expected in one.items():
            torch.testing.assert_close(first[name], expected, atol=1e-5, rtol=1e-5)


def test_stopped_anywhere_it_ends_as_if_unbroken(corpus, tmp_path):
    options = {"weights": WEIGHTS, "epochs": 1}
    unbroken = train(*run(corpus, tmp_path / "whole", **options))
    pieces = partial(run, corpus, tmp_path / "parts", **options)
    found, places = train_in_pieces(pieces, 1)
    assert len(places) == 7
    assert_same({**found, "random": unbroken["random"]}, unbroken)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_is_not_continued_with_other_priors(corpus, tmp_path, epochs):
    """Nor is its model written: of its ratios nobody would know the priors."""
    train(*run(corpus, tmp_path, weights=WEIGHTS, epochs=1))
    expected = (
        "priors of the loss: spoof 0.7143, bonafide 0.2857, expected spoof 0.2174, "
        "bonafide 0.7826 as in the run that is continued"
    )
    with pytest.raises(InputError, match=expected):
        train(*run(corpus, tmp_path, epochs=epochs))
    doubled = {key: 2 * weight for key, weight in WEIGHTS.items()}
    train(*run(corpus, tmp_path, weights=doubled, epochs=epochs))
