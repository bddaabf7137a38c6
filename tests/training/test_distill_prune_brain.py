"""Distillation and pruning, step by step: formulas, bad values, and what is left."""

import gc
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_distillation import STEPS, distill_run, steps_of, tiny_model
from tiny_training import assert_same, train

from speechbrain_ext.lobes.encoder import Encoder, count_parameters
from speechbrain_ext.pruning import remaining_parameters
from speechbrain_ext.pruning.groups import gated_groups
from speechbrain_ext.training.brain import SpeakerBrain
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


# ---- teacher and student -------------------------------------------------------------


class Watched(SpeakerBrain):
    """Looks at the teacher in every step, and counts feature extractions."""

    def __init__(self, **options):
        super().__init__(**options)
        self.modes, self.extractions = [], {"teacher": 0, "student": 0}
        for name, encoder in (
            ("teacher", self.terms[0].teacher),
            ("student", self.modules.speaker_encoder.encoder),
        ):
            encoder.features.register_forward_hook(lambda *_, n=name: self.count(n))

    def count(self, name):
        if self.modules.speaker_encoder.encoder.training:  # not in validation
            self.extractions[name] += 1

    def compute_forward(self, batch, stage):
        out = super().compute_forward(batch, stage)
        self.modes.append({m.training for m in self.terms[0].teacher.modules()})
        assert all(m.training for m in self.modules.speaker_encoder.modules())
        return out


def test_the_teacher_stays_as_it_is_and_shares_the_features(corpus, tmp_path):
    brain, loader = distill_run(corpus, tmp_path, brain=Watched)
    before = weights_of(brain.terms[0].teacher)
    train(brain, loader)
    assert_same(weights_of(brain.terms[0].teacher), before)
    assert brain.modes == [{False}] * 2 * STEPS
    assert brain.extractions == {"teacher": 0, "student": 2 * STEPS}
    assert all(p.grad is None for p in brain.terms[0].teacher.parameters())
    names = {
        name for c in brain.checkpointer.list_checkpoints() for name in c.paramfiles
    }
    assert "speaker_encoder" in names
    assert "teacher" not in names


def test_the_first_step_is_that_of_the_stacked_loss(corpus, tmp_path):
    seen = {}

    class First(SpeakerBrain):
        def compute_forward(self, batch, stage):
            seen.setdefault("wavs", batch.wavs)
            return super().compute_forward(batch, stage)

        def optimizers_step(self):
            named = self.modules.speaker_encoder.encoder.named_parameters()
            seen.setdefault("gradient", {n: p.grad.clone() for n, p in named})
            super().optimizers_step()

    options = {"dropout": 0.0, "sparsity": None, "epochs": 1, "max_grad_norm": 0.0}
    brain, loader = distill_run(corpus, tmp_path, brain=First, **options)
    student = tiny_model(0.0).encoder
    # equal weights would have a loss of -1 and no gradient
    with torch.no_grad():
        for model in (student, brain.modules.speaker_encoder.encoder):
            torch.manual_seed(1)
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    train(brain, loader)
    features, _ = student.features(seen["wavs"])
    with torch.no_grad():
        wanted = torch.stack(tiny_model(0.0).encoder.encode(features))
    states = torch.stack(student.encode(features))
    loss = (
        F.l1_loss(states, wanted) - F.cosine_similarity(states, wanted, dim=-1).mean()
    )
    loss.backward()
    assert steps_of(tmp_path).loss[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    plain = torch.cat([p.grad.flatten() for p in student.parameters()])
    found = torch.cat([g.flatten() for g in seen["gradient"].values()])
    assert float((plain - found).norm()) < 1e-5 * float(plain.norm())
    assert float(plain.norm()) > 0.01


def test_recomputed_layers_draw_the_same_gates(corpus, tmp_path):
    states = []
    for checkpointing in (False, True):
        folder = tmp_path / str(checkpointing)
        brain, loader = distill_run(corpus, folder, gate_lr=0.5, epochs=3)
        brain.modules.speaker_encoder.encoder.gradient_checkpointing = checkpointing
        states.append(train(brain, loader))
        assert steps_of(folder).sparsity[-1] > 0.05  # gates are in motion
    assert_same(*states)


def test_under_autocast_the_losses_are_float32(corpus, tmp_path):
    seen = []

    class Half(SpeakerBrain):
        def compute_objectives(self, predictions, *arguments):
            loss = super().compute_objectives(predictions, *arguments)
            seen.extend([*self.terms[0].parts, loss])
            return loss

    options = {"brain": Half, "precision": "bf16", "epochs": 1, "validate": False}
    brain, loader = distill_run(corpus, tmp_path, **options)
    layer = brain.modules.speaker_encoder.encoder.encoder.layers[0]
    types = set()
    layer.ffn1.register_forward_hook(lambda *a: types.add(a[-1].dtype))
    train(brain, loader)
    assert types == {torch.bfloat16}
    assert {value.dtype for value in seen} == {torch.float32}
    steps = steps_of(tmp_path)
    assert np.isfinite(steps.loss).all()
    assert steps.lambda1[-1] < 0 < steps.lambda2[-1]


# ---- the Lagrangian ------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 3])
def test_the_target_rises_with_training_steps_alone(corpus, tmp_path, factor):
    brain, loader = distill_run(corpus, tmp_path, factor=factor, warmup_steps=4)
    train(brain, loader)
    steps = steps_of(tmp_path)
    per_epoch = {1: 7, 3: 3}[factor]
    assert steps.step.tolist() == list(range(1, 2 * per_epoch + 1))
    assert steps.epoch.tolist() == [1] * per_epoch + [2] * per_epoch
    done = np.minimum((steps.step - 1) / 4, 1)  # validation came after the first epoch
    first = steps.sparsity[0]
    assert 0 < first < 0.01  # of the gates as they begin, not 0
    np.testing.assert_allclose(steps.target, first + (0.5 - first) * done, rtol=1e-6)


def test_a_row_is_the_mean_of_its_accumulation_group(corpus, tmp_path):
    losses = []

    class Kept(SpeakerBrain):
        def compute_objectives(self, *arguments):
            losses.append(super().compute_objectives(*arguments))
            return losses[-1]

    train(*distill_run(corpus, tmp_path, brain=Kept, factor=3, epochs=1))
    found = torch.stack(losses).tolist()
    groups = found[:3], found[3:6], found[6:]
    expected = [sum(group) / len(group) for group in groups]
    np.testing.assert_allclose(steps_of(tmp_path).loss, expected, rtol=1e-6)


def test_multipliers_ascend_by_the_excess(corpus, tmp_path):
    rates = {"multiplier_lr": 0.5, "gate_lr": 3.0, "max_grad_norm": 0.0}
    plain = {"opt_class": lambda p: torch.optim.SGD(p, lr=0.01), "epochs": 3}
    brain, loader = distill_run(corpus, tmp_path, **rates, **plain)
    train(brain, loader)
    steps = steps_of(tmp_path)
    excess = steps.sparsity - steps.target
    assert excess.min() < -0.2
    for multiplier, gradient in (
        (steps.lambda1, excess),
        (steps.lambda2, np.square(excess)),
    ):
        expected = 0.5 * np.concatenate(([0.0], np.cumsum(gradient)[:-1]))
        np.testing.assert_allclose(multiplier, expected, atol=1e-5)
    penalty = steps.lambda1 * excess + steps.lambda2 * np.square(excess)
    np.testing.assert_allclose(
        steps.loss, steps.l1 - steps.cosine + penalty, atol=1e-5, rtol=1e-5
    )


def test_the_multipliers_drive_the_gates(corpus, tmp_path):
    found = []
    for rate in (0.1, 0.0):
        options = {"gate_lr": 0.3, "multiplier_lr": rate, "warmup_steps": 10}
        folder = tmp_path / str(rate)
        train(*distill_run(corpus, folder, epochs=5, validate=False, **options))
        found.append(steps_of(folder).sparsity)
    driven, free = found
    assert driven[0] == free[0] < 0.01
    assert driven[-1] > 0.3
    assert free.max() < 0.1


def test_each_kind_of_parameter_has_its_own_rate(corpus, tmp_path):
    brain, loader = distill_run(corpus, tmp_path, epochs=1, gate_lr=0.3)
    train(brain, loader)
    groups = brain.optimizer.param_groups
    assert [group["lr"] for group in groups] == [0.01, 0.3, 0.2]
    assert [group["maximize"] for group in groups] == [False, False, True]
    found = [gate.units.log_alpha for _, gate in gated_groups(brain.embedder().encoder)]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in found}
    assert len(found) == 8  # 2 layers of 4 kinds
    names = [n for n, _ in brain.modules.named_parameters()]
    assert sum(len(group["params"]) for group in groups) == len(names)
    assert not any(p.requires_grad for p in brain.head.parameters())


class Norms(SpeakerBrain):
    """Keeps the norm of the gradients of gates and weights, and of multipliers."""

    def on_fit_start(self):
        super().on_fit_start()
        self.norms = []
        self.optimizer.register_step_pre_hook(self.measure)

    def measure(self, optimizer, *_):
        def norm(*groups):
            parts = [p.grad.norm() for g in groups for p in g["params"]]
            return float(torch.stack(parts).norm())

        *student, multipliers = optimizer.param_groups
        self.norms.append((norm(*student), norm(student[1]), norm(multipliers)))


def test_clipping_covers_weights_gates_and_multipliers(corpus, tmp_path):
    def norms(folder, limit):
        options = {"brain": Norms, "epochs": 1, "max_grad_norm": limit}
        brain, loader = distill_run(corpus, tmp_path / folder, **options)
        train(brain, loader)
        return np.array(brain.norms)

    free, clipped = norms("a", 0.0), norms("b", 0.01)
    assert (free[1:, ::2] > 0.01).all()
    assert (free[:, 1] > 0).all()
    np.testing.assert_allclose(clipped[:, 0], 0.01, rtol=1e-3)
    np.testing.assert_allclose(clipped[1:, 2], 0.01, rtol=1e-3)


def test_an_optimiser_that_can_only_minimise_is_refused(corpus, tmp_path):
    class Plain(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {"lr": 0.1})

    brain, loader = distill_run(corpus, tmp_path / "a", opt_class=Plain)
    with pytest.raises(InputError, match=r"opt_class: Plain can only minimise"):
        train(brain, loader)


def test_hybrid_pruning_has_one_encoder_and_decays_weights_alone(corpus, tmp_path):
    def encoders():
        gc.collect()
        return {id(o) for o in gc.get_objects() if isinstance(o, Encoder)}

    before = encoders()
    adamw = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.02)
    options = {"hybrid": True, "epochs": 1, "opt_class": adamw}
    brain, loader = distill_run(corpus, tmp_path, **options)
    train(brain, loader)
    assert encoders() - before == {id(brain.embedder().encoder)}
    decays = [group["weight_decay"] for group in brain.optimizer.param_groups]
    assert decays == [0.02, 0.0, 0.0]
    steps = steps_of(tmp_path)
    excess = steps.sparsity - steps.target
    expected = steps.lambda1 * excess + steps.lambda2 * excess**2
    np.testing.assert_allclose(steps.lagrangian, expected, atol=1e-6, rtol=1e-4)
    line = (tmp_path / "train_log.txt").read_text()
    left = remaining_parameters(brain.embedder().encoder)
    assert f"parameters: {left}," in line.replace(" - ", ", ")


# ---- what must stop a run ------------------------------------------------------------


def test_the_hidden_state_that_is_not_finite_is_named(corpus, tmp_path):
    brain, loader = distill_run(corpus, tmp_path)
    before = weights_of(brain.modules.speaker_encoder)
    with torch.no_grad():
        brain.terms[0].teacher.encoder.layers[1].final_layer_norm.bias[0] = math.nan
    expected = (
        r"^distillation: l1 of hidden state 2 is nan in epoch 1, step 1, expected"
    )
    with pytest.raises(InputError, match=expected):
        train(brain, loader)
    assert_same(weights_of(brain.modules.speaker_encoder), before)
    assert list((tmp_path / "save").iterdir()) == []


def test_the_lagrangian_that_is_not_finite_is_named(corpus, tmp_path):
    class Spoilt(SpeakerBrain):
        def on_fit_batch_start(self, batch, should_step):
            super().on_fit_batch_start(batch, should_step)
            if self.optimizer_step == 9:
                self.modules.budget.lambda2.data.fill_(math.inf)

    brain, loader = distill_run(corpus, tmp_path, brain=Spoilt)
    expected = (
        r"^Lagrangian \(sparsity 0\.\d+, target 0.5, lambda1 -\d.*, lambda2 inf\) "
    )
    with pytest.raises(InputError, match=expected + "is inf in epoch 2, step 3,"):
        train(brain, loader)
    assert steps_of(tmp_path).step[-1] == 9


# ---- epochs and the end --------------------------------------------------------------


def test_validation_is_without_noise_and_touches_nothing(corpus, tmp_path):
    brain, loader = distill_run(corpus, tmp_path)
    train(brain, loader)
    generator, steps = torch.get_rng_state(), brain.optimizer_step
    assert brain.validate() == brain.validate()
    assert torch.equal(torch.get_rng_state(), generator)
    assert brain.optimizer_step == steps
    assert brain.modules.speaker_encoder.training


def scripted(rates):
    class Scripted(SpeakerBrain):
        """Validates to given rates, to see which epoch is taken."""

        def validate(self, progress=True, model=None):
            return {"EER": rates[self.hparams.epoch_counter.current - 1]}

    return Scripted


@pytest.mark.parametrize(("sparsity", "best"), [(0.5, 3), (None, 2)])
def test_a_pruned_model_is_the_latest_a_distilled_one_the_best(
    corpus, tmp_path, sparsity, best
):
    options = {"brain": scripted([50.0, 10.0, 40.0]), "epochs": 3, "sparsity": sparsity}
    train(*distill_run(corpus, tmp_path, **options))
    assert distill_run(corpus, tmp_path, **options)[0].recover_best()["epoch"] == best


def test_the_end_is_a_smaller_model_of_the_target_size(corpus, tmp_path):
    brain, loader = distill_run(corpus, tmp_path, epochs=3, gate_lr=0.5)
    train(brain, loader)
    costs, target = brain.modules.budget.costs, brain.modules.budget.target_cost
    small, _ = brain.finish()
    left = count_parameters(small.encoder).total
    assert target - max(a.unit + a.fixed for a in costs.groups) <= left <= target
    assert small.head is brain.head
    assert not small.training
    gated = brain.embedder()
    assert remaining_parameters(gated.encoder) == left
    gated.eval()
    wavs = 0.1 * torch.randn(2, 8000)
    with torch.no_grad():
        torch.testing.assert_close(small(wavs), gated(wavs), atol=1e-5, rtol=1e-5)
    assert brain.validate(model=small)["EER"] == brain.validate()["EER"]


def test_without_a_budget_the_student_is_only_distilled(corpus, tmp_path):
    brain, loader = distill_run(corpus, tmp_path, sparsity=None, epochs=3)
    size = count_parameters(brain.modules.speaker_encoder).total
    train(brain, loader)
    steps = steps_of(tmp_path)
    assert set(vars(steps)) == {"step", "epoch", "loss", "l1", "cosine"}
    np.testing.assert_allclose(steps.loss, steps.l1 - steps.cosine, atol=1e-6)
    assert len(brain.optimizer.param_groups) == 1
    assert count_parameters(brain.finish()[0].encoder).total == size
