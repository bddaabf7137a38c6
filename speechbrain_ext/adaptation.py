"""LoRA: inject into an encoder, merge back into its weights.

    W x  →  W x + (α/r) · B A x          A [r, in] random, B [out, r] zero

Hu et al. 2021 (arXiv 2106.09685); r 64, α 128 on the query and value projections in
arXiv 2510.04213, section 2.2. peft does the work.
"""

import logging

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from pydantic import PositiveInt

from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.weights import SHOWN

logger = logging.getLogger(__name__)


def inject_lora(
    encoder,
    r: PositiveInt = 64,
    alpha: float = 128,
    dropout: float = 0.0,
    target_modules: list[str] | None = None,
):
    """Add LoRA to the named linear layers of ``encoder``, in place.

    All other parameters of ``encoder`` become frozen. The outputs do not change yet,
    since B starts at zero.

    Arguments
    ---------
    encoder : torch.nn.Module
    r : int
        Rank.
    alpha : float
        Scale; the update is multiplied by alpha / r.
    dropout : float
        On the input of A, in training.
    target_modules : sequence of str, optional
        Last part of the layers' names; None: the encoder's own ``lora_targets``, its
        query and value projections.

    Returns
    -------
    torch.nn.Module
        The same encoder.

    Raises
    ------
    InputError
        Where LoRA is there already, no layer has one of the names, or r < 1.
    """
    if target_modules is None:
        target_modules = getattr(encoder, "lora_targets", ())
    names = list(target_modules)
    if any(isinstance(module, LoraLayer) for module in encoder.modules()):
        raise InputError("inject_lora: this encoder has LoRA layers already")
    found = {name.rsplit(".", 1)[-1] for name, _ in encoder.named_modules()}
    absent = [name for name in names if name not in found]
    if absent or not names:
        raise InputError(
            f"inject_lora: no layers named {absent} in this encoder, expected the last "
            "part of existing names, as linear_q"
        )
    if r < 1:
        raise InputError(f"inject_lora: r {r}, expected 1 or more")
    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=names
    )
    inject_adapter_in_model(config, encoder)
    encoder.train(encoder.training)  # a frozen encoder decides anew what trains
    return encoder


def check_lora_gradients(model):
    """InputError naming the LoRA layers without a gradient after a backward pass.

    Such a layer never learns: the model uses its weight without calling the layer, as
    ``torch.nn.functional.multi_head_attention_forward`` does.
    """
    idle = [
        name
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
        and any(p.requires_grad and p.grad is None for p in _lora_parameters(module))
    ]
    if idle:
        more = ", …" if len(idle) > SHOWN else ""
        raise InputError(
            f"LoRA: no gradient reaches {len(idle)} layer(s): "
            f"{', '.join(idle[:SHOWN])}{more}; expected target_modules that the model "
            "calls"
        )


def _lora_parameters(layer):
    return [p for name, p in layer.named_parameters() if "lora_" in name]


def merge_lora(encoder):
    """Put W + (α/r)·B·A in place of every LoRA layer, in place.

    The state dict then has the names it had before :func:`inject_lora`. Parameters
    stay frozen or trainable as they are.

    Arguments
    ---------
    encoder : torch.nn.Module
        With or without LoRA layers.

    Returns
    -------
    torch.nn.Module
        The same encoder; ``encoder`` gives the same outputs within 1e-5.

    Raises
    ------
    InputError
        Where a merged weight is not finite.
    """
    layers = [
        (name, module)
        for name, module in encoder.named_modules()
        if isinstance(module, LoraLayer)
    ]
    for name, layer in layers:
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise InputError(
                f"merge_lora: {name} has NaN or infinite weights"
            ) from error
        parent, _, last = name.rpartition(".")
        setattr(encoder.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(encoder, "peft_config"):
        del encoder.peft_config
    logger.info("LoRA merged into %d layers", len(layers))
    return encoder
