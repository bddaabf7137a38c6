"""Tiny random encoders, beside transformers' own, that several tests share."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, Wav2Vec2BertConfig, Wav2Vec2BertModel

from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder


def tiny_config(**changes):
    """A configuration of 3 layers × 48 channels with w2v-BERT 2.0's positions."""
    values = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 80,
        "output_hidden_size": 48,
        "vocab_size": 7,
    }
    return Wav2Vec2BertConfig(**{**values, **changes})


# What Base models have otherwise than Large ones: norms, and no bias.
BASE = {
    "do_stable_layer_norm": False,
    "feat_extract_norm": "group",
    "conv_bias": False,
}


def waveform_config(model_type, **changes):
    """Of wav2vec 2.0 or its kin: Large-like, 3 layers × 48, 3 convolutions, 50 Hz."""
    values = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "conv_dim": [12, 12, 12],
        "conv_kernel": [10, 5, 11],
        "conv_stride": [5, 4, 16],
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
        "conv_bias": True,
    }
    return AutoConfig.for_model(model_type, **{**values, **changes})


def randomise(module, seed=0):
    """Draw every parameter, so that none is idle: in place; gives the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:  # of a normalisation about 1, of a bias about 0
                parameter.copy_(name.endswith(".weight") + 0.1 * noise)
    return module


def tiny_encoder(config=None, seed=0, **options):
    """A random encoder in eval mode."""
    return randomise(W2VBertEncoder(config or tiny_config(), **options), seed).eval()


def stock_model(config=None, seed=0):
    """transformers' model with random weights, in eval mode."""
    return randomise(Wav2Vec2BertModel(config or tiny_config()), seed).eval()


def noise(*shape, seed=0):
    """Reproducible Gaussian noise; times 0.1 it makes a waveform."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes (views take none)."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run one operation and look at what it gives."""
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                size = value.untyped_storage().nbytes() // value.element_size()
                self.elements = max(self.elements, size)
        return result


class SavedForBackward(torch.autograd.graph.saved_tensors_hooks):
    """Sizes of the tensors kept for backward, each memory counted once."""

    def __init__(self):
        self.storages = {}
        super().__init__(self._pack, lambda value: value)

    def __enter__(self):
        super().__enter__()
        return self

    def _pack(self, value):
        storage = value.untyped_storage()
        self.storages[storage.data_ptr()] = (storage.nbytes(), value.dtype)
        return value

    @property
    def bytes(self):
        """Their sum."""
        return sum(size for size, _ in self.storages.values())
