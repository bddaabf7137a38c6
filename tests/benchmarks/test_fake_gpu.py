"""A GPU that is not there: what is counted, by hand; and a step of every method."""

import pytest
import torch
from fake_gpu import BLOCK, FakeGPU
from fake_step import RECIPES, VOXCELEB, checkpoint, fake_step

from speechbrain_ext.utils.errors import InputError

SPOOFS = RECIPES / "ASVspoof5/AntiSpoofing/hparams"
# file, words of the command line; all at full width, one layer deep
METHODS = {
    "frozen encoder": (VOXCELEB / "stage1_adapter_mfa.yaml",),
    "LoRA": (VOXCELEB / "stage1_lora_adapter_mfa.yaml",),
    "MFA, in float32": (VOXCELEB / "stage1_mfa.yaml", "--precision=fp32"),
    "weighted ECAPA": (VOXCELEB / "stage1_weighted_ecapa.yaml",),
    "joint, accumulation": (
        *(VOXCELEB / "stage2_joint.yaml", "--grad_accumulation_factor=2"),
    ),
    "checkpointing": (
        *(VOXCELEB / "stage3_lmft.yaml", "--gradient_checkpointing=True"),
    ),
    "prune 1": (VOXCELEB / "prune1_distill.yaml",),
    "prune 2": (VOXCELEB / "prune2_distill.yaml",),
    "hybrid, WavLM": (VOXCELEB / "hybrid_wavlm_mhfa.yaml",),
    "hybrid, w2v-BERT": (VOXCELEB / "hybrid_w2v_bert_lora.yaml",),
    "SV-Mixer": (
        VOXCELEB / "svmixer/svmixer_wavlm_large.yaml",
        "--encoder.source.num_hidden_layers=1",
    ),
    "spoofs": (SPOOFS / "w2v_bert_mfa.yaml",),
    "ResNet": (VOXCELEB / "fbank/resnet.yaml", "--size=18"),
}
WAITS = 3  # of the host for the GPU, a batch: each lets its queue run empty


@pytest.fixture
def gpu():
    """In force for the test."""
    with FakeGPU() as gpu:
        yield gpu


def linear(gpu, width=256):
    """A linear map without bias, on the GPU."""
    with gpu.building():
        layer = torch.nn.Linear(width, width, bias=False)
    return layer.to("cuda")


def test_bytes_of_live_tensors(gpu):
    """4 bytes a number, in blocks; what nothing holds any more is given back."""
    x = torch.zeros(3, 1000).to("cuda")
    of_x = 12_288  # 12,000 in blocks of 512
    assert gpu.live == of_x
    y = x.view(1000, 3)  # no memory
    z = x + 1
    assert gpu.live == gpu.peak == 2 * of_x
    del z, x
    assert gpu.live == of_x
    del y
    assert (gpu.live, gpu.peak) == (0, 2 * of_x)
    assert BLOCK == 512


def test_flops_of_a_step_in_bf16(gpu):
    """2 B N² forward, twice that backward; input and weight are kept in bf16."""
    layer = linear(gpu)
    x = torch.zeros(64, 256).to("cuda").requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(x)
        assert y.dtype is torch.bfloat16
        loss = y.sum()
    assert loss.dtype is torch.float32  # by autocast's rules
    loss.backward()
    assert layer.weight.grad.dtype is torch.float32
    assert sum(gpu.flops.values()) == 3 * 2 * 64 * 256 * 256


def test_flops_of_a_grouped_convolution(gpu):
    """Each of the three products is of the channels of its own group only."""
    with gpu.building():
        layer = torch.nn.Conv1d(32, 32, 5, groups=32, bias=False)
    x = torch.zeros(2, 32, 104).to("cuda").requires_grad_()
    layer.to("cuda")(x).sum().backward()
    assert sum(gpu.flops.values()) == 3 * 2 * (2 * 32 * 100) * 5


def test_tensors_of_two_devices_raise(gpu):
    with pytest.raises(RuntimeError, match="two different devices"):
        torch.zeros(2).to("cuda") + torch.zeros(2)
    layer = linear(gpu)
    with pytest.raises(RuntimeError, match="two different devices"):
        layer(torch.zeros(1, 256))


def test_what_makes_the_host_wait(gpu):
    x = torch.zeros(3).to("cuda", non_blocking=True)
    assert not gpu.syncs
    for wait in (
        lambda: float(x[0]),
        lambda: bool(torch.isfinite(x[0])),
        x.tolist,
        x.cpu,
        lambda: x[x > 0],
        lambda: torch.tensor([1.0, 2.0], device="cuda"),
    ):
        gpu.reset()
        wait()
        assert sum(gpu.syncs.values()) == 1
    assert all("test_fake_gpu.py" in line for line in gpu.syncs)


def test_checkpoints_compute_again_in_bf16(gpu):
    layer, types = linear(gpu), []

    def twice(x):
        y = layer(x)
        types.append(y.dtype)
        return layer(y)

    x = torch.zeros(2, 256).to("cuda").requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        checkpoint(twice, x, use_reentrant=False).sum().backward()
    assert types == [torch.bfloat16] * 2


def test_the_cpu_computes_as_ever(gpu):
    assert (torch.arange(3) * 2).tolist() == [0, 2, 4]
    layer = torch.nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    assert layer.bias.grad.tolist() == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_every_method(name):
    """Nothing is left on the CPU, and the host hardly ever waits."""
    path, *words = METHODS[name]
    step = fake_step(path, *words, layers=1)
    assert step.n_syncs <= WAITS * step.accumulation, step.syncs
    assert 0 < step.gradients <= step.optimiser <= 2 * step.gradients + 4 * 10**4
    assert step.peak > step.weights + step.gradients + step.optimiser
    assert step.checkpointing == ("checkpointing" in name)


def test_a_file_of_no_recipe_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no train\.py above it"):
        fake_step(tmp_path / "x.yaml")
