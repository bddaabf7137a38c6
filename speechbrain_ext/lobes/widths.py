"""Widths of every layer, from a w2v-BERT configuration and back.

A pruned model's configuration lists them per layer, in the published format:
``num_attention_heads_group`` [L], ``intermediate_size_group`` [L][2] and ``conv_group``
[L][2] (hidden, channels), with ``use_attention`` [L] and ``use_feed_forward`` [L][2].
Without these keys every layer has the full widths.
"""

import copy

from speechbrain_ext.errors import InputError
from speechbrain_ext.lobes.conformer import LayerShape


def full_shape(config):
    """Widths of an unpruned layer → LayerShape.

    Raises
    ------
    InputError
        Where heads do not divide the hidden size.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    if hidden % heads:
        raise InputError(
            f"encoder configuration: hidden_size {hidden} is no multiple of "
            f"num_attention_heads {heads}"
        )
    return LayerShape(
        hidden=hidden,
        head_dim=hidden // heads,
        heads=heads,
        ffn1=config.intermediate_size,
        ffn2=config.intermediate_size,
        conv=hidden,
    )


def layer_shapes(config):
    """Widths of every layer from a configuration.

    Arguments
    ---------
    config : Wav2Vec2BertConfig

    Returns
    -------
    list of LayerShape

    Raises
    ------
    InputError
        Where a list has another length than the model has layers.
    """
    full, layers = full_shape(config), config.num_hidden_layers

    def group(name, default):
        value = getattr(config, name, None)
        value = [default] * layers if value is None else value
        if len(value) != layers:
            raise InputError(
                f"encoder configuration: {name} has {len(value)} entries, expected "
                f"num_hidden_layers = {layers}"
            )
        return value

    rows = zip(
        group("num_attention_heads_group", full.heads),
        group("use_attention", True),
        group("intermediate_size_group", (full.ffn1, full.ffn2)),
        group("use_feed_forward", (True, True)),
        group("conv_group", (full.hidden, full.conv)),
    )
    return [
        full._replace(
            heads=n_heads * bool(attends),
            ffn1=ffn1 * bool(uses[0]),
            ffn2=ffn2 * bool(uses[1]),
            conv=conv[1],
        )
        for n_heads, attends, (ffn1, ffn2), uses, conv in rows
    ]


def with_layer_shapes(config, shapes):
    """A copy of ``config`` from which :func:`layer_shapes` gives ``shapes``."""
    config = copy.deepcopy(config)
    config.num_attention_heads_group = [shape.heads for shape in shapes]
    config.use_attention = [shape.heads > 0 for shape in shapes]
    config.intermediate_size_group = [[shape.ffn1, shape.ffn2] for shape in shapes]
    config.use_feed_forward = [[shape.ffn1 > 0, shape.ffn2 > 0] for shape in shapes]
    config.conv_group = [[shape.hidden, shape.conv] for shape in shapes]
    return config
