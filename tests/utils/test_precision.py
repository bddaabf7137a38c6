"""float32 that is float32."""

import pytest
import torch

from speechbrain_ext.utils import precision
from speechbrain_ext.utils.precision import allow_tf32, full_precision


def flags():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def flags_as_they_were():
    matmul, cudnn = flags()
    yield
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = cudnn


class OnGPU:
    """What a context asks a tensor."""

    device = torch.device("cuda")


@pytest.mark.parametrize("before", [(True, True), (False, True), (False, False)])
def test_on_a_gpu_full_precision_is_without_tf32(before):
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    with full_precision(OnGPU):
        assert flags() == (False, False)
        assert not torch.is_autocast_enabled("cuda")
    assert flags() == before
    with pytest.raises(KeyError), full_precision(OnGPU):
        raise KeyError
    assert flags() == before


def test_elsewhere_full_precision_leaves_tf32():
    allow_tf32(True)
    with torch.autocast("cpu", torch.bfloat16), full_precision(torch.zeros(1)):
        assert flags() == (True, True)
        assert not torch.is_autocast_enabled("cpu")


def test_bf16_of_a_gpu_is_that_of_its_own_products(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: emulated)
    assert not precision.has_bf16(torch.device("cuda"))
