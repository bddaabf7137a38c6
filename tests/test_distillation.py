"""The distillation loss: the published formula, its gradient, and what it keeps."""

import gc
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from tiny_encoder import LargestTensor, SavedForBackward, noise, tiny_config
from tiny_encoder import tiny_encoder as make_encoder

from speechbrain_ext.losses import distillation_loss
from speechbrain_ext.utils.errors import InputError

S, B, T, C = 5, 3, 7, 16


def make_states(seed=0, scale=1.0, shape=(B, T, C)):
    """S random states; leaves that want a gradient."""
    states = noise(S, *shape, seed=seed) * scale
    return [state.clone().requires_grad_() for state in states]


def teacher_states(seed=1):
    return list(noise(S, B, T, C, seed=seed) + 0.3)


def stacked(student, teacher):
    """The published way: all states in one tensor."""
    student, teacher = torch.stack(list(student)), torch.stack(list(teacher))
    l1 = F.l1_loss(student, teacher)
    return l1 - F.cosine_similarity(student, teacher, dim=-1).mean()


def gradients(loss, states):
    return torch.stack(torch.autograd.grad(loss, states, retain_graph=True))


def assert_close(found, expected, tolerance=1e-5):
    """Within ``tolerance`` of the largest value."""
    limit = tolerance * float(expected.abs().max())
    torch.testing.assert_close(found, expected, atol=limit, rtol=0)


# ---- the value -----------------------------------------------------------------------


def test_a_case_by_hand():
    student = [torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[1.0, 0.0]]])]
    teacher = [torch.tensor([[[4.0, 3.0]]]), torch.tensor([[[-2.0, 0.0]]])]
    loss, l1, cosine = distillation_loss(student, teacher)
    assert l1.tolist() == [1.0, 1.5]
    torch.testing.assert_close(cosine, torch.tensor([24 / 25, -1.0]))
    torch.testing.assert_close(loss, torch.tensor(1.25 - (0.96 - 1) / 2))


def test_it_is_the_stacked_loss_with_its_gradients():
    student, teacher = make_states(), teacher_states()
    found, expected = (
        distillation_loss(student, teacher).loss,
        stacked(student, teacher),
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    for scale in (1.0, -2.5):
        assert_close(
            gradients(distillation_loss(student, teacher).loss * scale, student),
            gradients(stacked(student, teacher) * scale, student),
        )


def test_the_two_parts_have_gradients_of_their_own():
    student, teacher = make_states(), teacher_states()
    weights = torch.arange(1.0, S + 1)
    pairs = list(zip(student, teacher))
    l1 = torch.stack([F.l1_loss(s, t) for s, t in pairs])
    cosine = torch.stack([F.cosine_similarity(s, t, dim=-1).mean() for s, t in pairs])
    found = distillation_loss(student, teacher)
    torch.testing.assert_close(found.l1, l1)
    torch.testing.assert_close(found.cosine, cosine)
    for mine, plain in ((found.l1, l1), (found.cosine, cosine)):
        assert_close(
            gradients((weights * mine).sum(), student),
            gradients((weights * plain).sum(), student),
        )


def test_through_an_encoder_every_weight_gets_the_same_gradient():
    encoder, other = make_encoder(), make_encoder(seed=1)
    features = noise(2, 21, 160)
    with torch.no_grad():
        teacher = other.encode(features)
    found = []
    for loss in (lambda *states: distillation_loss(*states).loss, stacked):
        encoder.zero_grad()
        loss(encoder.encode(features), teacher).backward()
        found.append(torch.cat([p.grad.flatten() for p in encoder.parameters()]))
    # through float32's products of a layer and back, each with some eps of its size
    assert_close(*found, tolerance=5e-5)


def test_equal_states_cost_minus_one_and_move_nothing():
    student = make_states()
    loss, l1, cosine = distillation_loss(student, [s.detach() for s in student])
    assert l1.tolist() == [0.0] * S
    torch.testing.assert_close(cosine, torch.ones(S))
    assert gradients(loss, student).abs().max() < 1e-7


def test_a_state_of_zeros_has_a_finite_gradient():
    student, teacher = make_states(scale=0.0), teacher_states()
    loss, _, cosine = distillation_loss(student, teacher)
    assert cosine.tolist() == [0.0] * S
    assert gradients(loss, student).isfinite().all()
    loss = distillation_loss(make_states(), [torch.zeros(B, T, C)] * S).loss
    assert loss.isfinite()


# ---- padding -------------------------------------------------------------------------


def test_padded_rows_count_as_their_frames_alone():
    student, teacher = make_states(), teacher_states()
    frames = [T, 4, 2]
    lens = torch.tensor(frames) / T
    found = distillation_loss(student, teacher, lens)
    inside = torch.cat([torch.arange(n) + row * T for row, n in enumerate(frames)])
    kept = [
        [state.flatten(0, 1)[inside].unsqueeze(0) for state in states]
        for states in (student, teacher)
    ]
    torch.testing.assert_close(found.loss, stacked(*kept), atol=1e-6, rtol=1e-6)
    gradient = gradients(found.loss, student)
    assert_close(gradient, gradients(stacked(*kept), student))
    assert not gradient[:, 1, 4:].any()
    assert not gradient[:, 2, 2:].any()


def test_nothing_gets_out_of_the_padding():
    student, teacher = make_states(), teacher_states()
    lens = torch.tensor([1.0, 5 / T, 3 / T])
    expected = distillation_loss(student, teacher, lens).loss
    wanted = gradients(expected, student)
    with torch.no_grad():
        for state in (*student, *teacher):
            state[1, 5:] = math.nan
            state[2, 3:] = math.inf
    found = distillation_loss(student, teacher, lens).loss
    assert torch.equal(found, expected)
    assert torch.equal(gradients(found, student), wanted)


# ---- precision -----------------------------------------------------------------------


def test_half_precision_states_are_compared_in_float32():
    student = [s.detach().bfloat16().requires_grad_() for s in make_states()]
    teacher = [t.bfloat16() for t in teacher_states()]
    wide = [s.detach().float().requires_grad_() for s in student]
    expected = stacked(wide, [t.float() for t in teacher])
    with torch.autocast("cpu", torch.bfloat16):
        found = distillation_loss(student, teacher)
        found.loss.backward()
    assert {part.dtype for part in found} == {torch.float32}
    torch.testing.assert_close(found.loss, expected, atol=1e-6, rtol=1e-6)
    gradient = torch.stack([s.grad for s in student])
    assert gradient.dtype is torch.bfloat16
    assert_close(gradient.float(), gradients(expected, wide), 2**-8)


# ---- memory --------------------------------------------------------------------------


def test_it_keeps_three_numbers_per_frame_and_stacks_nothing():
    student, teacher = make_states(), teacher_states()
    with SavedForBackward() as saved, LargestTensor() as largest:
        loss = distillation_loss(student, teacher).loss
        loss.backward()
    states = 2 * S * B * T * C
    # a few numbers more: the mean over the states keeps their count
    assert 4 * states < saved.bytes <= 4 * (states + 3 * S * B * T + 4 * S)
    assert largest.elements == B * T * C


def test_each_state_of_the_teacher_is_freed_with_its_gradient():
    student, teacher = make_states(), teacher_states()
    teacher = [state.clone() for state in teacher]
    alive = [weakref.ref(state) for state in teacher]
    loss = distillation_loss(student, teacher).loss
    seen = []
    for state in student:
        state.register_hook(lambda _: seen.append(sum(r() is not None for r in alive)))
    del teacher
    gc.collect()
    loss.backward()
    assert max(seen[1:]) < S
    assert sorted(seen, reverse=True) == seen
    assert not any(r() is not None for r in alive)


# ---- bad input -----------------------------------------------------------------------


def test_states_that_do_not_correspond_are_refused():
    student, teacher = make_states(), teacher_states()
    with pytest.raises(InputError, match=r"4 states of the student, .* teacher's 5"):
        distillation_loss(student[:4], teacher)
    with pytest.raises(InputError, match="0 states of the student"):
        distillation_loss([], [])
    teacher[2] = teacher[2][:, :-1]
    expected = r"state 2 of the student is \(3, 7, 16\), expected .* \(3, 6, 16\)"
    with pytest.raises(InputError, match=expected):
        distillation_loss(student, teacher)


def test_an_encoder_of_another_width_is_refused():
    features = noise(1, 9, 160)
    narrow = make_encoder(tiny_config(hidden_size=32))
    states = [e.encode(features) for e in (make_encoder(), narrow)]
    with pytest.raises(InputError, match=r"state 0 .* \(1, 9, 48\), .* \(1, 9, 32\)"):
        distillation_loss(*states)
