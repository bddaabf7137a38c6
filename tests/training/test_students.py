"""Students learn speakers and a teacher's states at once: term and distances."""

import copy
import logging
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_detector import make_detector
from tiny_encoder import noise, randomise, waveform_config
from tiny_training import (
    assert_same,
    in_processes,
    manifest_of,
    saved,
    tiny_brain,
    train,
    train_in_pieces,
    write_corpus,
)
from torch import nn
from transformers import WhisperConfig

from speechbrain_ext.data.manifest import write_manifest
from speechbrain_ext.lobes.heads import MFA, WeightedSumECAPA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.sv_mixer import SVMixerEncoder, TransformerStudent
from speechbrain_ext.lobes.wavlm import WavLMEncoder
from speechbrain_ext.lobes.whisper import WhisperEncoder
from speechbrain_ext.losses import ArcFace, aligned, prediction_loss, squared_loss
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.schedules import Constant
from speechbrain_ext.training.brain import SpeakerBrain, check_trained, read_steps
from speechbrain_ext.training.data import TrainingData
from speechbrain_ext.training.distillation import Distillation, Projections
from speechbrain_ext.training.resumable import unwrap
from speechbrain_ext.training.terms import Classification
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


SIZES = {"hidden_size": 16, "num_hidden_layers": 2}
SIZES |= {"conv_dim": [6, 8], "conv_kernel": [40, 16], "conv_stride": [40, 8]}


def student(head=None, **changes):
    """A mixer of 12 frames, 20 ms each, and a head."""
    torch.manual_seed(3)
    encoder = SVMixerEncoder({**SIZES, "group_size": 8, "frames": 12, **changes})
    return SpeakerEncoder(encoder, head or MFA(16, 3, 8, pooling_size=4))


def transformer(head=None, **changes):
    """The Transformer that it is compared with."""
    torch.manual_seed(3)
    sizes = {"num_attention_heads": 2, "intermediate_size": 24}
    positions = {"num_conv_pos_embeddings": 5, "num_conv_pos_embedding_groups": 4}
    encoder = TransformerStudent({**SIZES, **sizes, **positions, **changes})
    return SpeakerEncoder(encoder, head or MFA(16, 3, 8, pooling_size=4))


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


def run(
    corpus,
    folder,
    distillation,
    epochs=1,
    *,
    brain=SpeakerBrain,
    model=None,
    classifies=True,
    batch_size=7,
    rate=0.003,
    **hparams,
):
    """(Brain, loader) of a student with two terms, or of one of them alone."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / f"train{os.environ.get('RANK', 0)}.csv"
    write_manifest(manifest, manifest_of(corpus, range(4)))
    data = TrainingData(manifest, 7, crop_seconds=(0.5, 0.5), batch_size=batch_size)
    model, classify = model or student(), Classification(partial(ArcFace, inter_topk=2))
    terms = [classify] * classifies + [distillation] * (distillation is not None)
    for term in terms:
        term.setup(model, data)
    torch.manual_seed(7)
    made = tiny_brain(
        corpus,
        folder,
        model,
        data,
        terms,
        brain=brain,
        epochs=epochs,
        factor=1,
        validate=False,
        steps_between_checkpoints=0,
        step_log=folder / "steps.csv",
        lr_schedule=Constant(rate),
        **hparams,
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


@pytest.mark.parametrize("name", TERMS)
def test_stopped_in_any_other_step(voices, tmp_path, name):
    """Also the projections go on, and their moments."""
    unbroken = train(*run(voices, tmp_path / "whole", TERMS[name](), 2))
    found, places = train_in_pieces(
        lambda brain: run(voices, tmp_path / "parts", TERMS[name](), 2, brain=brain), 3
    )
    assert len(places) == 2
    assert_same(found, unbroken)


def test_other_projections_do_not_go_on(voices, tmp_path):
    train(*run(voices, tmp_path, TERMS["last state"]()))
    other = Distillation(teacher(), [[-1, -1]], "mlp", squared_loss)
    with pytest.raises(InputError, match=r"projections\.ckpt: .*maps\.0"):
        train(*run(voices, tmp_path, other, 2))


# -- two processes ---------------------------------------------------------------------

DROPOUTS = ("hidden_dropout", "feat_proj_dropout")
OF_TRANSFORMER = (*DROPOUTS, "attention_dropout", "activation_dropout")
RUNS = {
    "sv_mixer": (student, DROPOUTS, True, [[-1, -1]]),
    "transformer": (transformer, OF_TRANSFORMER, True, [[-1, -1]]),
    "distilled alone": (student, DROPOUTS, False, [[-1, -1]]),
    "early state": (student, DROPOUTS, False, [[1, -1]]),
}


def _leave(corpus, folder, batch_size):
    """All runs in one process, which takes longer to start than they."""
    left = {}
    for name, (make, dropouts, classifies, layers) in RUNS.items():
        torch.manual_seed(0)
        channels = {"channels": [8, 8, 8, 8, 24], "padding": "zeros"}
        head = WeightedSumECAPA(16, 3, 8, embedding_norm=True, **channels)
        model = make(head, **dict.fromkeys(dropouts, 0.0))
        distillation = Distillation(teacher(), layers, True, squared_loss)
        options = {"model": model, "classifies": classifies, "batch_size": batch_size}
        options |= {"opt_class": torch.optim.SGD, "rate": 1e-4}
        brain, loader = run(corpus, folder / name, distillation, **options)
        before = {k: v.clone() for k, v in brain.modules.state_dict().items()}
        train(brain, loader)
        after = {n: unwrap(module).state_dict() for n, module in brain.modules.items()}
        left[name] = {
            k: after[k.partition(".")[0]][k.partition(".")[2]] - v
            for k, v in before.items()
        }
    torch.save(left, folder / f"rank{os.environ['RANK']}")


@pytest.fixture(scope="module")
def one_and_two(voices, tmp_path_factory):
    """What one process left, and each of two."""
    found = []
    for world in (1, 2):
        folder = tmp_path_factory.mktemp(f"world{world}")
        arguments = voices, folder, 4 // world
        assert in_processes(_leave, world, *arguments) == [0] * world
        found += [vars(saved(folder / f"rank{rank}")) for rank in range(world)]
    return found


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one(one_and_two, name):
    """In how they move each tensor, by 7 short steps: rounding does not add up.

    Also where layers have no gradient: nobody waits for them.
    """
    one, first, second = (left[name] for left in one_and_two)
    assert_same(first, second)
    for key, step in one.items():
        limit = 0.01 * float(step.abs().max()) + 1e-6
        torch.testing.assert_close(first[key], step, atol=limit, rtol=0)
    moved = [key for key, step in first.items() if ".layers." in key and step.any()]
    trained = {key.partition(".layers.")[2][0] for key in moved}
    assert trained == ({"0"} if name == "early state" else {"0", "1"})


# -- what is wrong ---------------------------------------------------------------------


def test_an_early_state_alone_is_told(voices, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run(voices, tmp_path, Distillation(teacher(), [[-1, 0], [0, 0]], True))
        assert "no term reads the last state" not in caplog.text
        early = Distillation(teacher(), [[-2, 0], [0, 0]], True)
        run(voices, tmp_path, early, classifies=False)
    assert "no term reads the last state of the encoder" in caplog.text


def test_nothing_to_learn_from():
    with pytest.raises(InputError, match="terms: Distillation, of which none reads"):
        check_trained({"speaker_encoder": student()}, [Distillation(None)])


def test_crops_that_do_not_fill_the_window(voices, tmp_path, caplog):
    manifest = tmp_path / "train.csv"
    write_manifest(manifest, manifest_of(voices, range(4)))
    said = "crop_seconds: {} to {}, expected 0.26, of which SVMixerEncoder has one"
    for crops, fits in (((0.26, 0.279), True), ((0.2, 0.26), False), ((1, 1), False)):
        data = TrainingData(manifest, 7, crop_seconds=crops, batch_size=4)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for made in (student(), student(block="conv_mixer"), transformer()):
                data.check_crops(made.encoder)
        expected = [] if fits else [said.format(*(f"{c:g}" for c in crops))]
        assert [m.partition(" window")[0] for m in caplog.messages] == expected


def test_teachers_of_every_kind(voices, tmp_path):
    """Pruned, a detector; what is no model, and what is damaged."""
    old = Path(__file__).parents[1] / "data_files/old_folders"
    detector = make_detector(tmp_path / "detector", calibrated=False)
    for folder in (old / "pruned", detector):
        distillation = Distillation(str(folder), [[-1, -1]], True, squared_loss)
        train(*run(voices, tmp_path / f"from_{folder.name}", distillation))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text("{}")
    (detector / "speaker_encoder.safetensors").write_bytes(b"damaged")
    for folder, said in (
        (tmp_path / "hub", "no hyperparams.yaml, expected a folder written by train"),
        (detector, "speaker_encoder.safetensors"),
        (detector / "hyperparams.yaml", "no such folder"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            Distillation(str(folder))
        assert "\n" not in str(refused.value)


HALF = {
    "sv_mixer": student,
    "drawing": partial(student, form="drawing", any_length="resampled"),
    "mlp_mixer": partial(student, block="mlp_mixer"),
    "conv_mixer": partial(student, block="conv_mixer"),
    "cycle_mlp": partial(student, block="cycle_mlp"),
    "transformer": transformer,
}


@pytest.mark.parametrize("name", HALF)
def test_under_autocast_every_gradient_is_finite(name):
    model, wavs = HALF[name]().train(), 0.1 * noise(2, 9000)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(wavs, torch.tensor([1.0, 0.7])).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_teacher_keeps_its_weights_as_autocast_reads_them():
    model, wavs, term = teacher(), 0.1 * noise(2, 9000), Distillation(teacher())
    before = copy.deepcopy(model.state_dict())
    term.to("cpu")
    with torch.no_grad():
        x, _ = model.eval().front_end(wavs, None)
        term.before(wavs, x, None, model)
        plain = term.targets
        assert_same(term.teacher.state_dict(), before)  # no autocast, no change
        with torch.autocast("cpu", torch.bfloat16):
            expected = model.encode(x, None)
            term.before(wavs, x, None, model)
    assert term.teacher.layers[0].fc1.weight.dtype == torch.bfloat16
    for found, one, other in zip(term.targets, expected, plain, strict=True):
        assert torch.allclose(found, one, atol=0.005 * float(one.abs().max()))
        assert torch.allclose(found, other, atol=0.1 * float(other.abs().max()))
    with pytest.raises(InputError, match="teacher: rounded to torch"):
        term.before(wavs, x, None, model)
