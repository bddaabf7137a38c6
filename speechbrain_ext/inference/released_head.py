"""Which head a checkpoint holds, from the names and shapes of its tensors alone.

adapter_layers             →  AdapterMFA, its hidden sizes from each layer
layer_weights, ecapa_tdnn  →  WeightedSumECAPA, its channels
pooling, bottleneck alone  →  MFA
"""

from speechbrain_ext.errors import InputError
from speechbrain_ext.inference.released_shapes import Shapes
from speechbrain_ext.lobes.heads import MFA, AdapterMFA, WeightedSumECAPA

RES2NET_SCALE = 8


def head_for(weights, config, source):
    """The head that these weights are of, without values of its own yet.

    Arguments
    ---------
    weights, source
        As in :func:`~speechbrain_ext.inference.released_shapes.encoder_config`.
    config : Wav2Vec2BertConfig
        Of the encoder.

    Returns
    -------
    AdapterMFA, MFA or WeightedSumECAPA

    Raises
    ------
    InputError
        Where it is none of these.
    """
    shapes = Shapes(weights, source)
    kinds = {name.split(".")[0] for name in shapes.by_name} - {"front"}
    sizes = {
        "input_size": config.hidden_size,
        "n_states": config.num_hidden_layers + 1,
    }
    if kinds & {"layer_weights", "ecapa_tdnn"}:
        fc = (("fc.conv.weight", 0), ("fc.conv.bias", 0))
        embedding = shapes.need("ecapa_tdnn.", *fc)
        channels = _ecapa_channels(shapes)
        return WeightedSumECAPA(**sizes, embedding_size=embedding, channels=channels)
    if not kinds & {"adapter_layers", "pooling", "bottleneck"}:
        raise InputError(
            f"{source}: no head among {sorted(kinds)}; expected adapter_layers "
            "(Adapter-MFA), layer_weights and ecapa_tdnn (weighted sum), or pooling "
            "alone (MFA)"
        )
    sizes["embedding_size"] = shapes.need("bottleneck.", ("weight", 0), ("bias", 0))
    if "adapter_layers" not in kinds:
        places = [(f"{n}.{kind}", 0) for n in (0, 2) for kind in ("weight", "bias")]
        pooling = shapes.need("pooling.attention.", *places)
        return MFA(**sizes, pooling_size=pooling)
    return AdapterMFA(**sizes, **_adapter_sizes(shapes, sizes["n_states"]))


def _adapter_sizes(shapes, n_states):
    outputs = [
        (f"{n}.3.{kind}", 0) for n in range(n_states) for kind in ("weight", "bias")
    ]
    adapter_size = shapes.need("adapter_layers.", *outputs)
    places = (
        *(("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0)),
        ("3.weight", 1),
    )
    hidden = [
        shapes.vote(f"adapter_layers.{n}.", places) or adapter_size
        for n in range(n_states)
    ]
    uneven = any(width != adapter_size for width in hidden)
    return {"adapter_size": adapter_size, "hidden_sizes": hidden if uneven else None}


def _ecapa_channels(shapes):
    """Of the first convolution, of three SE-Res2Net blocks, of the aggregation."""
    names = ["blocks.0", *(f"blocks.{n}.tdnn1" for n in (1, 2, 3)), "mfa"]
    channels = [
        shapes.need(
            f"ecapa_tdnn.{name}.", ("conv.conv.weight", 0), ("conv.conv.bias", 0)
        )
        for name in names
    ]
    if any(width % RES2NET_SCALE for width in channels[1:4]):
        raise InputError(
            f"{shapes.source}: ECAPA-TDNN of {channels} channels, expected multiples "
            f"of {RES2NET_SCALE}"
        )
    return channels
