"""Students learn speakers and a teacher's states at once: term and distances."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_encoder import noise, randomise, waveform_config
from tiny_training import (
    assert_same,
    manifest_of,
    tiny_brain,
    train,
    write_corpus,
)
from torch import nn
from transformers import WhisperConfig

from speechbrain_ext.data.manifest import write_manifest
from speechbrain_ext.lobes.heads import MFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.sv_mixer import SVMixerEncoder
from speechbrain_ext.lobes.wavlm import WavLMEncoder
from speechbrain_ext.lobes.whisper import WhisperEncoder
from speechbrain_ext.losses import ArcFace, aligned, prediction_loss, squared_loss
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.schedules import Constant
from speechbrain_ext.training.brain import SpeakerBrain, read_steps
from speechbrain_ext.training.data import TrainingData
from speechbrain_ext.training.distillation import Distillation, Projections
from speechbrain_ext.training.terms import Classification
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def student():
    """A mixer of 12 frames, 40 ms each, and a head."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "group_size": 8, "frames": 12}
    convolutions = {"conv_dim": [6, 8], "conv_kernel": [40, 16], "conv_stride": [40, 8]}
    encoder = SVMixerEncoder({**sizes, **convolutions})
    return SpeakerEncoder(encoder, MFA(16, 3, 8, pooling_size=4))


def teacher():
    """Whisper of 8 channels, 50 frames a second."""
    config = WhisperConfig(d_model=8, encoder_layers=1, encoder_attention_heads=1)
    return randomise(WhisperEncoder(config))


# -- distances -------------------------------------------------------------------------


def test_squares_and_predictions_by_hand():
    student, teacher = ([noise(2, 5, 4, seed=s + k) for s in (0, 1)] for k in (0, 2))
    lens = torch.tensor([1.0, 0.6])
    valid = [(0, slice(0, 5)), (1, slice(0, 3))]
    rows = [
        [torch.cat([s[v] for v in valid]) for s in states]
        for states in (student, teacher)
    ]
    means = [(a - b).square().mean() for a, b in zip(*rows)]
    found = squared_loss(student, teacher, lens)
    torch.testing.assert_close(found.mse, torch.stack(means))
    torch.testing.assert_close(found.loss, sum(means) / 2)
    total = 0
    for a, b in zip(*rows):
        cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
        total += (a - b).abs().mean() + 0.5 * (1 + (-cosine).exp()).log().mean()
    found = prediction_loss(student, teacher, lens, cosine_weight=0.5)
    torch.testing.assert_close(found.loss, total / 2)
    with pytest.raises(InputError, match="1 states of the student, expected"):
        squared_loss(student[:1], teacher)


def test_other_frame_rates_are_aligned():
    state = torch.arange(20.0).view(1, 10, 2)
    assert torch.equal(aligned(state, 10), state)
    assert torch.equal(aligned(state, 9), state[:, :9])
    longer = aligned(state, 11)
    assert torch.equal(longer[:, :10], state)
    assert torch.equal(longer[:, 10], state[:, 9])
    halved = aligned(state, 5)
    assert torch.equal(halved, (state[:, ::2] + state[:, 1::2]) / 2)
    assert torch.equal(aligned(state, 4), halved[:, :4])
    stretched = aligned(state, 23)
    expected = F.interpolate(state.mT, size=23, mode="linear").mT
    assert torch.equal(stretched, expected)


# -- the term --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("voices"))


def run(corpus, folder, distillation, epochs=1):
    """(Brain, loader) of a student with two terms."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "train.csv"
    write_manifest(manifest, manifest_of(corpus, range(4)))
    data = TrainingData(manifest, 7, crop_seconds=(0.5, 0.5), batch_size=7)
    model, classify = student(), Classification(partial(ArcFace, inter_topk=2))
    terms = [classify, distillation] if distillation else [classify]
    for term in terms:
        term.setup(model, data)
    torch.manual_seed(7)
    made = tiny_brain(
        corpus,
        folder,
        model,
        data,
        terms,
        brain=SpeakerBrain,
        epochs=epochs,
        factor=1,
        validate=False,
        steps_between_checkpoints=0,
        step_log=folder / "steps.csv",
        lr_schedule=Constant(0.003),
    )
    return made, data.loader(0)


def heads_on_the_last():
    layers = [[-1, 0], [-1, 1]]
    return Distillation(teacher(), layers, "mlp", prediction_loss)


TERMS = {
    "last state": lambda: Distillation(teacher(), [[-1, -1]], True, squared_loss),
    "heads": heads_on_the_last,
}


@pytest.mark.parametrize("name", TERMS)
def test_a_student_comes_nearer_and_a_run_continues_exactly(voices, tmp_path, name):
    whole = train(*run(voices, tmp_path / "whole", TERMS[name](), 3))
    steps = read_steps(tmp_path / "whole/steps.csv")
    measure = {"last state": "mse", "heads": "l1"}[name]
    thirds = np.array_split(steps[measure], 3)
    assert np.mean(thirds[2]) < np.mean(thirds[0])
    train(*run(voices, tmp_path / "parts", TERMS[name](), 1))
    assert_same(train(*run(voices, tmp_path / "parts", TERMS[name](), 3)), whole)


def test_without_a_teacher_the_term_adds_nothing(voices, tmp_path):
    alone = train(*run(voices, tmp_path / "alone", None))
    assert_same(train(*run(voices, tmp_path / "none", Distillation(None))), alone)


def test_a_teacher_by_its_folder_and_by_itself(tmp_path):
    encoder = randomise(WavLMEncoder(waveform_config("wavlm")))
    model = SpeakerEncoder(encoder, MFA(48, 4, 8))
    folder = save_pretrained(tmp_path / "model", model)
    found = [Distillation(t).teacher for t in (str(folder), model, encoder)]
    assert {type(one) for one in found} == {WavLMEncoder}
    with pytest.raises(InputError, match="nowhere"):
        Distillation(str(tmp_path / "nowhere"))


def test_other_widths_need_projections(voices, tmp_path):
    with pytest.raises(InputError, match="student of width 16, teacher of 8, expected"):
        run(voices, tmp_path, Distillation(teacher(), [[-1, -1]]))
    with pytest.raises(InputError, match=r"layers \[-1, 2\], expected \[student's, "):
        run(voices, tmp_path, Distillation(teacher(), [[-1, 2]], True))
    with pytest.raises(InputError, match=r"layers \[\], expected a pair"):
        run(voices, tmp_path, Distillation(teacher(), [], True))
    with pytest.raises(InputError, match="student of 3 states, teacher of 2, expected"):
        run(voices, tmp_path, Distillation(teacher(), None, True))
    linear, deep = (Projections(3, 5, 2, mlp) for mlp in (False, True))
    states = [noise(1, 4, 3), noise(1, 4, 3, seed=1)]
    assert [type(m) for m in deep.maps[0]] == [nn.Linear, nn.GELU, nn.Linear]
    for maps in (linear, deep):
        found = maps(states)
        assert all(map(torch.equal, found, (m(s) for m, s in zip(maps.maps, states))))


def test_under_autocast_every_gradient_is_finite():
    model, wavs = student().train(), 0.1 * noise(2, 9000)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(wavs, torch.tensor([1.0, 0.7])).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
