"""Training steps, what must stop them, and what an epoch ends with."""

import math

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.utils.checkpoints import Checkpointer
from tiny_training import (
    StoppedBrain,
    all_pairs,
    assert_same,
    constant_rate,
    manifest_of,
    state_of,
    tiny_run,
    train,
)
from torch import nn

from speechbrain_ext.data.manifest import write_manifest
from speechbrain_ext.lobes.encoder import Encoder
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.scoring.metrics import equal_error_rate
from speechbrain_ext.training.brain import SpeakerBrain
from speechbrain_ext.training.data import TrainingData
from speechbrain_ext.training.distillation import Distillation
from speechbrain_ext.utils.distributed import batch_norm_explained
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- before the first step -----------------------------------------------------------


def test_crops_longer_than_an_encoder_takes_are_refused(corpus, tmp_path):
    """Of the student, and of a teacher as its term is set up."""
    manifest = tmp_path / "train.csv"
    write_manifest(manifest, manifest_of(corpus, range(4)))
    data = TrainingData(manifest, crop_seconds=(0.5, 1.0), batch_size=4)
    encoder = Encoder()
    data.check_crops(encoder)
    encoder.max_samples = 16000
    data.check_crops(encoder)
    encoder.max_samples = 15999
    expected = r"crop_seconds: 1, expected 0\.999.* or less: Encoder takes no longer"
    with pytest.raises(InputError, match=expected):
        data.check_crops(encoder)
    with pytest.raises(InputError, match=expected):
        Distillation(encoder).setup(SpeakerEncoder(encoder, PlainHead()), data)


# ---- steps ---------------------------------------------------------------------------


class PlainHead(nn.Module):
    """Mean of the last state → Linear: nothing random, no batch statistics."""

    def __init__(self):
        super().__init__()
        self.embedding_size = 16
        self.linear = nn.Linear(16, 16)

    def forward(self, states, lens=None):
        return self.linear(states[-1].mean(1, keepdim=True))


class Recorder(torch.optim.SGD):
    """SGD that keeps the gradients of every step: a list of lists."""

    def __init__(self, parameters, rate):
        super().__init__(parameters, rate)
        self.seen = []

    def step(self, closure=None):
        groups = self.param_groups
        self.seen.append([p.grad.clone() for g in groups for p in g["params"]])
        return super().step(closure)


def recorded(corpus, folder, rate=0.05, epochs=1, **options):
    """Gradients of every step of a run without randomness."""
    plain = {"head": PlainHead(), "dropout": 0.0, "random_data": False}
    plain |= {"opt_class": lambda p: Recorder(p, rate), "max_grad_norm": 0.0}
    plain |= {"validate": False, "epochs": epochs, **constant_rate(rate)}
    brain, loader = tiny_run(corpus, folder, **{**plain, **options})
    train(brain, loader)
    return brain, loader, brain.optimizer.seen


def test_three_batches_of_four_are_one_of_twelve(corpus, tmp_path):
    torch.manual_seed(0)
    _, _, split = recorded(corpus, tmp_path / "a", factor=3, batch_size=4)
    torch.manual_seed(0)
    _, _, whole = recorded(corpus, tmp_path / "b", factor=1, batch_size=12)
    assert len(split) == 3  # 3 + 3 + 1 batches of 4
    assert len(whole) == 2
    for mine, theirs in zip(split[:2], whole):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_the_tail_of_an_epoch_is_a_group_of_its_own_size(corpus, tmp_path):
    brain, loader, seen = recorded(corpus, tmp_path, rate=0.0, factor=3)
    batches = list(_epoch(loader, brain, 1))
    for group, gradients in zip(([0, 1, 2], [3, 4, 5], [6]), seen, strict=True):
        brain.zero_grad(set_to_none=True)
        losses = [
            brain.modules.classifier(
                brain.embedder()(batches[i].wavs), batches[i].labels
            )
            for i in group
        ]
        torch.stack(losses).mean().backward()
        for parameter, found in zip(brain.modules.parameters(), gradients):
            torch.testing.assert_close(parameter.grad, found, atol=1e-6, rtol=1e-5)


def _epoch(loader, brain, epoch):
    brain.sampler.set_epoch(0)
    brain.sampler.set_epoch(epoch)
    return loader


def test_every_module_is_clipped_by_its_own_norm_in_all_groups(corpus, tmp_path):
    def two_groups(parameters):
        parameters = parameters[0]["params"]
        return Recorder([{"params": parameters[:3]}, {"params": parameters[3:]}], 0.0)

    _, _, plain = recorded(corpus, tmp_path / "a", rate=0.0, opt_class=two_groups)
    brain, _, clipped = recorded(
        *(corpus, tmp_path / "b"),
        rate=0.0,
        opt_class=two_groups,
        max_grad_norm=0.01,
    )
    encoder = len(list(brain.modules.speaker_encoder.parameters()))
    for before, after in zip(plain, clipped, strict=True):
        for part in (slice(0, encoder), slice(encoder, None)):
            norm = math.sqrt(sum(float(g.square().sum()) for g in before[part]))
            assert norm > 0.01
            for a, b in zip(before[part], after[part], strict=True):
                torch.testing.assert_close(a * 0.01 / norm, b, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("factor", [1, 3])
def test_rate_and_margin_follow_the_schedules_step_by_step(corpus, tmp_path, factor):
    seen = []

    class Watched(SpeakerBrain):
        def on_fit_batch_end(self, *args):
            rates = {group["lr"] for group in self.optimizer.param_groups}
            seen.append((*rates, self.modules.classifier.margin))

    train(*tiny_run(corpus, tmp_path, brain=Watched, factor=factor, epochs=3))
    done = [[s / 7 for s in range(7)], [0, 0, 0, 1 / 3, 1 / 3, 1 / 3, 2 / 3]]
    done = done[factor == 3]
    # warm-up to 0.01 over epoch 1, 0.01 in epoch 2, halved in epoch 3; margin 0 → 0.2
    rates = [0.01 * d for d in done] + [0.01] * 7 + [0.005] * 7
    margins = [0.1 * (e + d) for e in range(2) for d in done] + [0.2] * 7
    np.testing.assert_allclose(seen, np.stack([rates, margins], 1), atol=1e-12)


# ---- what must stop a run ------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step(corpus, tmp_path):
    rate = constant_rate(1e30)
    brain, loader = tiny_run(corpus, tmp_path, **rate, validate=False)
    with pytest.raises(InputError, match=r"is (nan|inf) in epoch 1, step [23],"):
        train(brain, loader)
    assert list((tmp_path / "save").iterdir()) == []


def test_a_gradient_that_is_not_finite_stops_before_the_weights(corpus, tmp_path):
    brain, loader = tiny_run(corpus, tmp_path, steps_between_checkpoints=1)
    weight = brain.modules.classifier.weight
    seen = []

    def spoil(gradient):
        if len(seen) == 9:
            return gradient * math.nan
        seen.append(None)
        return gradient

    weight.register_hook(spoil)
    brain.on_fit_batch_start = _snapshot(brain)
    with pytest.raises(
        InputError, match=r"gradient of classifier is nan in epoch 2, step 3,"
    ):
        train(brain, loader)
    before = brain.snapshot
    after = {k: v for k, v in state_of(brain).items() if k in before}
    assert_same(after, before)
    resumed, loader = tiny_run(corpus, tmp_path)
    assert resumed.checkpointer.find_checkpoint() is not None
    train(resumed, loader)  # the last checkpoint is sound


def _snapshot(brain):
    plain = brain.on_fit_batch_start

    def keep(*args):
        plain(*args)
        weights = brain.modules.classifier.state_dict()
        brain.snapshot = {f"classifier.{k}": v.clone() for k, v in weights.items()}

    return keep


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"factor": 0}, "grad_accumulation_factor: 0"),
        ({"opt_class": lambda p: torch.optim.AdamW(p, lr=-1.0)}, "Invalid learning"),
        ({"opt_class": lambda p: torch.optim.AdamW(p, rate=1.0)}, "rate"),
        ({"batch_size": 29}, "28 utterances per epoch"),
        ({"epochs": 0}, "number_of_epochs: 0, expected at least 1"),
    ],
)
def test_impossible_settings_are_one_line(corpus, tmp_path, options, expected):
    with pytest.raises(InputError, match=expected):
        train(*tiny_run(corpus, tmp_path, **options))


def test_a_batch_of_one_under_batch_norm_is_one_line():
    with (
        pytest.raises(InputError, match="a batch of one recording, expected at least"),
        batch_norm_explained(),
    ):
        nn.BatchNorm1d(2)(torch.ones(1, 2))
    with pytest.raises(ValueError, match="another"), batch_norm_explained():
        raise ValueError("another")


# ---- epochs --------------------------------------------------------------------------


def scripted(rates):
    class Scripted(SpeakerBrain):
        """Validates to given rates, to see which checkpoints stay."""

        def validate(self, progress=True):
            return {"EER": rates[self.hparams.epoch_counter.current - 1]}

    return Scripted


def test_best_and_latest_checkpoint_stay_and_nothing_else(corpus, tmp_path):
    rates, kept = [29.0, 3.0, 17.0, 18.0], []
    brain, loader = tiny_run(
        *(corpus, tmp_path),
        brain=scripted(rates),
        epochs=4,
        steps_between_checkpoints=2,
    )
    save_epoch, weights = brain.save_epoch, []

    def watched(*args, **options):
        save_epoch(*args, **options)
        found = brain.checkpointer.list_checkpoints()
        kept.append(sorted(c.meta["epoch"] for c in found))
        weights.append(state_of(brain))

    brain.save_epoch = watched
    train(brain, loader)
    assert kept == [[1], [2], [2, 3], [2, 4]]
    assert sorted(p.name[:4] for p in (tmp_path / "save").iterdir()) == ["CKPT"] * 2
    again, _ = tiny_run(corpus, tmp_path, brain=scripted(rates), epochs=4)
    assert again.recover_best()["epoch"] == 2
    best = {k: v for k, v in weights[1].items() if k[:3] in ("spe", "cla")}
    modules = again.modules.items()
    found = {f"{n}.{k}": v for n, m in modules for k, v in m.state_dict().items()}
    assert_same(found, best)


def test_an_epoch_within_one_standard_error_of_the_lowest_is_the_best(corpus, tmp_path):
    validation = all_pairs(manifest_of(corpus, (4, 5)))
    trials = validation.trials
    n = min(trials.n_target, trials.n_nontarget)
    error = 100 * math.sqrt(0.1 * 0.9 / n)
    assert validation.standard_error(10.0) == pytest.approx(error)
    within, beyond = 10 + 0.99 * error, 10 + 1.01 * error
    # the lowest comes second; what came within reach of the first does not count
    for rates, best in (
        ([40.0, 10.0, within, beyond], 3),
        ([within, 10.0, beyond, beyond], 2),
        ([10.0, within, beyond, within], 4),
        ([within, within, within, within], 4),
    ):
        folder = tmp_path / str(best) / str(rates[0])
        train(*tiny_run(corpus, folder, brain=scripted(rates), epochs=4))
        again, _ = tiny_run(corpus, folder, brain=scripted(rates), epochs=4)
        meta = again.recover_best()
        assert (meta["epoch"], meta["EER"]) == (best, rates[best - 1])


def test_without_validation_the_last_epoch_is_the_best(corpus, tmp_path):
    brain, loader = tiny_run(corpus, tmp_path, validate=False)
    train(brain, loader)
    assert brain.recover_best()["epoch"] == 2
    assert len(list((tmp_path / "save").iterdir())) == 1


@pytest.mark.parametrize("validate", [True, False])
def test_the_mean_of_the_last_epochs(corpus, tmp_path, validate):
    """Of weights and running statistics; of as many as there are; also resumed."""
    options = {"validate": validate, "steps_between_checkpoints": 2, "epochs": 4}
    brain, loader = tiny_run(corpus, tmp_path, **options)
    brain.average, weights, save_epoch = 3, [], brain.save_epoch

    def watched(*args, **options):
        save_epoch(*args, **options)
        weights.append(state_of(brain))

    brain.save_epoch = watched
    train(brain, loader)
    again, _ = tiny_run(corpus, tmp_path, **options)
    for wanted, averaged in ((3, 3), (9, len(again.checkpointer.list_checkpoints()))):
        again.average = wanted
        model, figures = again.finish()
        assert (figures["epoch"], figures["averaged"]) == (4, averaged)
        assert ("EER" in figures) == validate
        if wanted == 3:
            for name, value in again.embedder().state_dict().items():
                mean = sum(w[f"speaker_encoder.{name}"] for w in weights[1:]) / 3
                assert torch.allclose(
                    value.double(),
                    mean.double().trunc()
                    if not value.is_floating_point()
                    else mean.double(),
                    atol=1e-6,
                ), name
    assert not model.training


def test_nothing_is_best_before_an_epoch_is_finished(corpus, tmp_path):
    run = tiny_run(corpus, tmp_path, brain=StoppedBrain)
    run[0].stop_at = (1, 2)
    with pytest.raises(SystemExit):
        train(*run)
    for validate in (True, False):
        with pytest.raises(InputError, match="no checkpoint of a finished epoch"):
            tiny_run(corpus, tmp_path, validate=validate)[0].recover_best()


def test_meta_data_are_plain_numbers_which_another_start_reads(corpus, tmp_path):
    train(*tiny_run(corpus, tmp_path))
    (checkpoint, *_) = Checkpointer(tmp_path / "save").list_checkpoints()
    kinds = {name: type(value) for name, value in checkpoint.meta.items()}
    assert kinds["EER"] is float
    assert kinds["minDCF"] is float
    assert kinds["epoch"] is int
    assert "!!python" not in (checkpoint.path / "CKPT.yaml").read_text()


def test_validation_is_the_plain_computation_one_by_one(corpus, tmp_path):
    brain, loader = tiny_run(corpus, tmp_path)
    train(brain, loader)
    generator = torch.get_rng_state()
    stats = brain.validate()
    assert torch.equal(torch.get_rng_state(), generator)
    assert brain.modules.training
    brain.modules.eval()
    validation = all_pairs(manifest_of(corpus, (4, 5)))
    manifest, trials = validation.manifest, validation.trials
    embedder = brain.embedder()
    scores = []
    with torch.no_grad():
        for a, b in zip(trials.enrol, trials.test):
            x, y = (embedder(_read(manifest.paths[i]))[0, 0] for i in (a, b))
            scores.append(float(nn.functional.cosine_similarity(x, y, dim=0)))
    expected = 100 * equal_error_rate(np.array(scores), trials.labels).eer
    assert stats["EER"] == pytest.approx(expected, abs=1e-6)


def _read(path):
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]
