"""Two classes behind any head."""

import math

import pytest
import torch
from tiny_detector import PRIOR, make_detector_model
from tiny_encoder import noise, randomise

from speechbrain_ext.lobes.heads import MHFA, TSTP, AdapterMFA, Detection
from speechbrain_ext.pretrained import load_pretrained, save_pretrained
from speechbrain_ext.pruning import add_gates, prune
from speechbrain_ext.utils.errors import InputError

SIZE, STATES = 12, 3
FRAMES = (30, 17, 6)
INNER = {
    "mhfa": lambda: MHFA(SIZE, STATES, 7, heads=3, compression_size=5),
    "adapter_mfa": lambda: AdapterMFA(SIZE, STATES, adapter_size=5, embedding_size=7),
    "tstp": lambda: TSTP(SIZE, STATES, 7),
}
every_inner = pytest.mark.parametrize("name", INNER)
pytestmark = pytest.mark.usefixtures("one_thread")


def make(name):
    head = randomise(Detection(INNER[name]()))
    head.norm.running_mean.copy_(0.1 * noise(7))
    head.norm.running_var.copy_(1 + 0.2 * noise(7).abs())
    return head.eval()


def states():
    return list(noise(STATES, len(FRAMES), max(FRAMES), SIZE))


@every_inner
def test_it_is_batch_norm_relu_and_a_linear_map(name):
    head, x = make(name), states()
    e = head.head(x).squeeze(1).double()
    scale = (head.norm.running_var.double() + head.norm.eps).sqrt()
    e = (e - head.norm.running_mean) / scale * head.norm.weight + head.norm.bias
    expected = e.clamp(min=0) @ head.output.weight.double().T + head.output.bias
    torch.testing.assert_close(
        head(x).squeeze(1).double(), expected, atol=1e-5, rtol=1e-5
    )
    assert head(x).shape == (len(FRAMES), 1, 2)


@every_inner
def test_padded_equals_single(name):
    head, x = make(name), states()
    batch = head(x, torch.tensor(FRAMES) / max(FRAMES))
    for row, frames in enumerate(FRAMES):
        alone = head([state[row : row + 1, :frames] for state in x])
        torch.testing.assert_close(batch[row], alone[0], atol=1e-4, rtol=0)


@every_inner
def test_every_parameter_gets_a_gradient(name):
    head = make(name).train()
    head(states()).square().sum().backward()
    assert all(p.grad is not None for p in head.parameters())


def test_the_ratio_is_of_posteriors_and_priors():
    """softmax(z) is the posterior for the priors, so Bayes gives the ratio."""
    head = make("mhfa")
    head.log_prior.copy_(torch.tensor(PRIOR).log())
    logits = noise(5, 2).double()
    posterior = logits.softmax(-1)
    odds = posterior[:, 1] / posterior[:, 0] * (PRIOR[0] / PRIOR[1])
    found = head.log_likelihood_ratio(logits)
    torch.testing.assert_close(found, odds.log(), atol=1e-6, rtol=0)
    assert head.log_likelihood_ratio(torch.zeros(2)).item() == pytest.approx(
        math.log(PRIOR[0] / PRIOR[1]), abs=1e-6
    )


def test_a_folder_gives_the_same_model_with_its_priors(tmp_path):
    model = make_detector_model()
    save_pretrained(tmp_path / "model", model)
    again = load_pretrained(tmp_path / "model")
    wavs = 0.1 * noise(2, 16000)
    assert torch.equal(again(wavs), model(wavs))
    assert torch.equal(again.head.log_prior, model.head.log_prior)
    assert (
        "import SpoofingDetector"
        in (tmp_path / "model/custom_interface.py").read_text()
    )


def test_pruned_equals_gated(tmp_path):
    """The units of encoder and inner head; the folder of what is left."""
    gated = add_gates(make_detector_model(adapter_size=6)).eval()
    gates = {n: p for n, p in gated.named_parameters() if n.endswith("log_alpha")}
    assert any(name.startswith("head.head.") for name in gates)
    for number, gate in enumerate(gates.values()):
        gate.data.fill_(9.0)
        gate.data[: number % 3] = -9.0
    wavs = 0.1 * noise(2, 16000)
    with torch.no_grad():
        expected = gated(wavs)
    small = prune(gated)
    torch.testing.assert_close(small(wavs), expected, atol=1e-5, rtol=0)
    again = load_pretrained(save_pretrained(tmp_path / "model", small))
    assert torch.equal(again(wavs), small(wavs))


def test_an_encoder_ends_with_the_last_state_that_is_read():
    model = make_detector_model(layers=[0, 0])
    assert model.encoder.n_states == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Detection(torch.nn.Linear(2, 2)), "head is a Linear, expected a head"),
        (lambda: Detection(Detection(INNER["mhfa"]())), "head is a Detection"),
        (lambda: Detection(INNER["mhfa"](), 3), "n_classes=3, expected 2"),
    ],
)
def test_bad_arguments_are_one_line(build, message):
    with pytest.raises(InputError, match=message):
        build()
