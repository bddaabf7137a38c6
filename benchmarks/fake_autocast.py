"""CUDA's autocast in Python, for tensors that torch's own does not take for CUDA's.

Lists of torch 2.11, aten/src/ATen/autocast_mode.h, as
https://docs.pytorch.org/docs/stable/amp.html#cuda-op-specific-behavior has them.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map


def _names(text):
    return frozenset(text.split())


LOWER = _names(
    "linear matmul __matmul__ __rmatmul__ mm mv bmm addmm addmv addr addbmm baddbmm "
    "chain_matmul multi_dot linalg_multi_dot conv1d conv2d conv3d conv_tbc "
    "conv_transpose1d conv_transpose2d conv_transpose3d prelu"
)
FLOAT = _names(
    "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan "
    "pow __pow__ __rpow__ softplus layer_norm native_layer_norm group_norm "
    "cosine_similarity nll_loss cross_entropy kl_div l1_loss smooth_l1_loss huber_loss "
    "mse_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp norm"
)
# these read the lower type, and give back float32
OF_FLOAT = _names("prod softmax log_softmax cumprod cumsum sum linalg_vector_norm")
WIDEST = _names(
    "addcdiv addcmul atan2 bilinear cross dot grid_sample index_put scatter_add "
    "tensordot cat stack"
)


class Autocast(TorchFunctionMode):
    """Casts what is on a GPU where ``torch.autocast("cuda", …)`` is in force."""

    def __init__(self):
        super().__init__()
        self.weights = {}  # id → (weight, the weight in the lower type)

    def clear(self):
        """As ``torch.clear_autocast_cache``."""
        self.weights.clear()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.backward:
            options = {k: v for k, v in kwargs.items() if k != "gradient"}
            with self:  # checkpoints compute again, where this mode would be off
                return torch.autograd.backward(
                    args[0], kwargs.get("gradient"), **options
                )
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = self.cast(function.__name__, args, kwargs)
        return function(*args, **kwargs)

    def cast(self, name, args, kwargs):
        """Arguments of a function of that name → as it is to get them."""
        if name in LOWER:
            lower = torch.get_autocast_dtype("cuda")
            return tree_map(lambda x: self._to(x, lower), (args, kwargs))
        if name in FLOAT:
            return tree_map(lambda x: self._to(x, torch.float32), (args, kwargs))
        given = {x.dtype for x in tree_leaves((args, kwargs)) if _is_cast(x)}
        if name in OF_FLOAT and given and kwargs.get("dtype") is None:
            return args, {**kwargs, "dtype": torch.float32}
        if name in WIDEST and len(given) > 1:
            return tree_map(lambda x: self._to(x, torch.float32), (args, kwargs))
        return args, kwargs

    def _to(self, value, dtype):
        if not _is_cast(value) or value.dtype is dtype:
            return value
        leaf = value.is_leaf and value.requires_grad and value.dtype is torch.float32
        if not leaf:
            return value.to(dtype)
        if id(value) not in self.weights:
            self.weights[id(value)] = value, value.to(dtype)
        return self.weights[id(value)][1]


def _is_cast(value):
    """Autocast leaves integers, float64 and what is on the CPU as they are."""
    return (
        isinstance(value, torch.Tensor)
        and value.device.type == "cuda"
        and value.is_floating_point()
        and value.dtype is not torch.float64
    )
