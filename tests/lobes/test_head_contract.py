"""What every head must do: the contract of ``speechbrain_ext.lobes.encoder.Head``.

A new head gets a line in HEADS.
"""

import copy
import json

import pytest
import torch
from tiny_encoder import LargestTensor, noise, randomise, tiny_encoder

from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.lobes.heads import (
    ASP,
    CAMHFA,
    LAP,
    MFA,
    MHFA,
    TSTP,
    AdapterMFA,
    ConformerMFA,
    ECAPAPooling,
    WeightedSumECAPA,
    WeightedSumLinear,
    XVector,
)
from speechbrain_ext.lobes.heads.redimnet import WeightedSumReDimNet
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.pretrained import load_pretrained, save_pretrained
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.weights import load_strictly

SIZE, STATES, EMBEDDING = 12, 4, 7
FRAMES = (40, 25, 25, 6)
ECAPA = [16, 16, 16, 16, 48]
UNISPEECH = {"padding": "zeros", "global_context": False, "variance_floor": 1e-9}
WESPEAKER = {"padding": "zeros", "normalisation": "mean", "embedding_norm": True}
REDIMNET = {
    "bins": 12,
    "channels": 4,
    "stages_setup": [[1, 1, 2, [[3, 3]], 6], [3, 1, 1, [[3, 3]], None]],
    "group_divisor": 2,
}
HEADS = {
    "adapter_mfa": (AdapterMFA, {"adapter_size": 5}),
    "mfa": (MFA, {"pooling_size": 6}),
    "normalised adapter_mfa": (AdapterMFA, {"adapter_size": 5, "normalise": True}),
    "normalised mfa": (MFA, {"pooling_size": 6, "normalise": True}),
    "weighted_ecapa": (WeightedSumECAPA, {"channels": ECAPA}),
    "reflected mean": (
        WeightedSumECAPA,
        {"channels": ECAPA, "normalisation": "mean", "global_context": False},
    ),
    "unispeech_ecapa": (WeightedSumECAPA, {"channels": ECAPA, **UNISPEECH}),
    "wespeaker_ecapa": (WeightedSumECAPA, {"channels": ECAPA, **WESPEAKER}),
    "ecapa pooling": (ECAPAPooling, {"attention_channels": 5}),
    "voxblink2 pooling": (
        ECAPAPooling,
        {"flavour": "voxblink2", "embedding_norm": True, "attention_width": 6},
    ),
    "conformer_mfa": (ConformerMFA, {"pooling_size": 6}),
    "mhfa": (MHFA, {"heads": 3, "compression_size": 5}),
    "ca_mhfa": (CAMHFA, {"heads": 3, "compression_size": 5, "kernel": 5}),
    "lap": (LAP, {"heads": 3, "channels": 8}),
    "wespeaker pooling": (ECAPAPooling, {"flavour": "wespeaker"}),
    "xvector": (
        XVector,
        {"channels": [9, 8], "kernels": [3, 2], "dilations": [1, 2]},
    ),
    "tstp": (TSTP, {}),
    "tstp of channels": (TSTP, {"channels": 4, "second_layer": True}),
    "asp": (ASP, {"hidden": 6}),
    "linear": (WeightedSumLinear, {}),
    "redimnet": (WeightedSumReDimNet, {"network": REDIMNET}),
}
every_head = pytest.mark.parametrize("name", HEADS)
pytestmark = pytest.mark.usefixtures("one_thread")


def make_head(name, size=SIZE, n_states=STATES, **options):
    """A random head in eval mode, with running statistics of their own."""
    kind, own = HEADS[name]
    head = kind(size, n_states, embedding_size=EMBEDDING, **own, **options)
    head = randomise(head)
    for module in head.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.copy_(0.1 * noise(module.num_features))
            module.running_var.copy_(1 + 0.2 * noise(module.num_features).abs())
    return head.eval()


def random_states():
    """Four states [4, 40, 12] and their relative lengths."""
    states = list(noise(STATES, len(FRAMES), max(FRAMES), SIZE))
    return states, torch.tensor(FRAMES) / max(FRAMES)


@every_head
def test_padded_equals_single(name):
    head = make_head(name)
    states, lens = random_states()
    with torch.no_grad():
        batch = head(states, lens)
        assert batch.shape == (len(FRAMES), 1, EMBEDDING)
        for row, frames in enumerate(FRAMES):
            alone = head([state[row : row + 1, :frames] for state in states])
            torch.testing.assert_close(batch[row], alone[0], atol=1e-4, rtol=0)
    assert batch.std(0).max() > 1e-2  # the embeddings do differ


@every_head
@pytest.mark.parametrize("garbage", [1e4, float("nan")])
def test_garbage_in_the_padding_does_not_leak(name, garbage):
    head = make_head(name)
    states, lens = random_states()
    clean = head(states, lens)
    for row, frames in enumerate(FRAMES):
        for state in states:
            state[row, frames:] = garbage
    torch.testing.assert_close(head(states, lens), clean, atol=1e-5, rtol=0)


# SpeechBrain's ECAPA-TDNN and ReDimNet train on whole crops: their statistics too
WHOLE_CROPS = ("weighted_ecapa", "reflected mean", "redimnet")
MASKED = [name for name in HEADS if name not in WHOLE_CROPS]


@pytest.mark.parametrize("name", MASKED)
def test_more_padding_changes_nothing_in_training(name):
    """Outputs, gradients and running statistics are those of the valid frames."""
    states, lens = random_states()
    longer = [torch.nn.functional.pad(state, (0, 0, 0, 9), value=7) for state in states]
    results = []
    for batch, relative in ((states, lens), (longer, lens * 40 / 49)):
        head = make_head(name, **({"dropout": 0.0} if name == "lap" else {})).train()
        out = head(batch, relative)
        (out * noise(*out.shape)).sum().backward()
        gradients = {n: p.grad for n, p in head.named_parameters()}
        results.append((out, gradients, dict(head.named_buffers())))
    for few, more in zip(*results):
        torch.testing.assert_close(few, more, atol=1e-4, rtol=1e-4)


@every_head
def test_no_lens_are_full_lens(name):
    head = make_head(name)
    states, _ = random_states()
    full = head(states, torch.ones(len(FRAMES)))
    assert torch.equal(head(states, None), full)
    assert torch.equal(head(states), full)
    assert torch.equal(head(tuple(states)), full)


@every_head
def test_arguments_rebuild_the_same_head(name):
    """Through JSON, as a pretrained folder keeps them."""
    head = make_head(name)
    again = type(head)(**json.loads(json.dumps(head.arguments))).eval()
    load_strictly(again, head.state_dict(), "head")
    states, lens = random_states()
    assert torch.equal(again(states, lens), head(states, lens))
    model = SpeakerEncoder(torch.nn.Identity(), head)
    assert model.embedding_size == EMBEDDING


@every_head
@pytest.mark.parametrize("count", [STATES - 1, STATES + 1])
def test_another_number_of_states_is_an_error(name, count):
    head = make_head(name)
    states = [noise(1, 10, SIZE)] * count
    with pytest.raises(InputError, match=f"{count} states, expected {STATES}"):
        head(states)


@every_head
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_gradients_are_finite_where_nothing_varies(name, value):
    """Variance 0: the square root must not divide by it."""
    head = make_head(name).train()
    states = [
        torch.full((3, 20, SIZE), value, requires_grad=True) for _ in range(STATES)
    ]
    head(states).square().sum().backward()
    gradients = [state.grad for state in head.chosen(states)]
    gradients += [parameter.grad for parameter in head.parameters()]
    for gradient in gradients:
        assert gradient is not None
        assert torch.isfinite(gradient).all()


@every_head
def test_every_parameter_gets_a_gradient(name):
    """DistributedDataParallel stops at one that does not."""
    head = make_head(name).train()
    states, _ = random_states()
    head(states).square().sum().backward()
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None, parameter_name


@every_head
def test_bf16_states_of_an_autocast_encoder(name):
    head = make_head(name)
    states, lens = random_states()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = head([state.bfloat16() for state in states], lens)
    assert half.dtype == torch.float32  # the embedding itself is not rounded
    likeness = torch.cosine_similarity(half, head(states, lens), dim=-1)
    assert likeness.min() > 0.99


# -- graph, memory, folders ------------------------------------------------------------


@pytest.mark.slow
@every_head
def test_graph_form_equals_the_head(name):
    """All rows at once, with lengths that torch.export does not fix."""
    head = make_head(name)
    states, lens = random_states()
    batch, frames = torch.export.Dim("batch"), torch.export.Dim("frames", min=6)
    shapes = ([{0: batch, 1: frames}] * STATES, {0: batch})
    with torch.no_grad():
        program = torch.export.export(
            head.graph_form(), (states, lens), dynamic_shapes=shapes
        )
        for rows in ([0, 1, 2, 3], [1, 3, 0]):
            some = [state[rows] for state in states]
            found = program.module()(some, lens[rows])
            torch.testing.assert_close(found, head(some, lens[rows]), atol=1e-4, rtol=0)


@every_head
def test_min_frames_are_enough(name):
    head = make_head(name)
    states = [state[:, : head.min_frames] for state in random_states()[0]]
    assert torch.isfinite(head(states)).all()


@pytest.mark.parametrize("name", ["mhfa", "ca_mhfa", "lap"])
def test_no_tensor_of_all_states(name):
    head = make_head(name).train()
    states = [noise(2, 200, SIZE, seed=n).requires_grad_() for n in range(STATES)]
    with LargestTensor() as largest:
        head(states).sum().backward()
    assert largest.elements < STATES * states[0].numel()


# -- some of the states ------------------------------------------------------------


@every_head
def test_a_range_of_layers_is_a_head_of_those(name):
    head = make_head(name, layers=[1, 2])
    few = make_head(name, n_states=2, layers=[0, 1])
    load_strictly(few, head.state_dict(), name)
    states, lens = random_states()
    expected = few(states[1:3], lens)
    assert torch.equal(head(states, lens), expected)
    assert torch.equal(head(states[:3], lens), expected)  # of a truncated encoder
    with pytest.raises(InputError, match="2 states, expected 4"):
        head(states[:2], lens)


@pytest.mark.parametrize("layers", [[2, 1], [0, 4], [-1, 2], [1], [0.0, 1], 3])
def test_states_that_are_not_there(layers):
    with pytest.raises(InputError, match="of the states 0 to 3"):
        MHFA(SIZE, STATES, layers=layers)


def test_layers_behind_the_last_state_are_left_out(tmp_path):
    """They neither run nor train, and a folder holds the encoder without them."""
    encoder = tiny_encoder()
    wavs, wav_lens = 0.1 * noise(2, 16000), torch.tensor([1.0, 0.6])
    with torch.no_grad():
        states, lens = encoder(wavs, wav_lens)
    head = make_head("adapter_mfa", 48, 4, layers=[1, 2])
    expected = head(states, lens)
    model = SpeakerEncoder(encoder, head).eval()
    assert model.encoder.n_states == 3
    torch.testing.assert_close(model(wavs, wav_lens), expected, atol=1e-5, rtol=0)
    model.train()(wavs, wav_lens).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    again = load_pretrained(save_pretrained(tmp_path / "model", model.eval()))
    assert again.encoder.n_states == 3
    assert torch.equal(again(wavs, wav_lens), model(wavs, wav_lens))


def test_an_encoder_that_cannot_leave_out_layers_says_so():
    encoder = copy.deepcopy(tiny_encoder())
    encoder.truncate = super(type(encoder), encoder).truncate
    with pytest.raises(InputError, match="cannot leave out the layers behind"):
        SpeakerEncoder(encoder, make_head("mfa", 48, 4, layers=[0, 1]))


# -- published sizes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (lambda: MHFA(1024), 2_368_114),
        (lambda: MHFA(768, 13), 2_302_554),
        (lambda: CAMHFA(1024, kernel=3), 2_384_434),
        (lambda: CAMHFA(1024, kernel=5), 2_400_818),
        (lambda: CAMHFA(1024, kernel=9), 2_433_586),
        (lambda: LAP(1024), 2_312_464),
        (lambda: WeightedSumECAPA(1024, **UNISPEECH), 8_410_841),
        (lambda: WeightedSumECAPA(1024, padding="zeros"), 8_804_032 + 25),
        (lambda: WeightedSumECAPA(1024), 8_807_360 + 25),
    ],
)
def test_published_numbers_of_parameters(build, parameters):
    with torch.device("meta"):
        assert count_parameters(build()).total == parameters


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CAMHFA(SIZE, kernel=4), "kernel=4, expected an odd number"),
        (lambda: LAP(SIZE, heads=5), "heads=5, expected a divisor of 12"),
        (lambda: LAP(SIZE, 1, heads=3), "expected a whole number of at least 2"),
        (lambda: WeightedSumECAPA(SIZE, padding="x"), "padding='x', expected reflect"),
        (lambda: WeightedSumECAPA(SIZE, normalisation="x"), "expected instance or"),
        (lambda: WeightedSumECAPA(SIZE, variance_floor=1.0), "padding 'zeros'"),
        (
            lambda: WeightedSumECAPA(SIZE, channels=[8, 8, 8, 9, 8], padding="zeros"),
            "expected four equal multiples of 8",
        ),
    ],
)
def test_bad_arguments_are_one_line(build, message):
    with pytest.raises(InputError, match=message):
        build()
