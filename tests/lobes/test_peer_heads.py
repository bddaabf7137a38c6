"""Heads against the public code's outputs, their weights renamed to ours."""

import json
import re

import numpy as np
import pytest
import torch

from speechbrain_ext.lobes.heads import CAMHFA, LAP, MHFA, WeightedSumECAPA
from speechbrain_ext.lobes.heads.weighted_ecapa import ZeroPaddedECAPA
from speechbrain_ext.utils.weights import load_strictly

# Public names → ours, as regular expressions that are applied in turn.
MHFA_NAMES = (
    (r"^weights_k$", "key_weights"),
    (r"^weights_v$", "value_weights"),
    (r"^cmp_linear_k\.", "keys."),
    (r"^cmp_linear_v\.", "values."),
    (r"^att_head\.", "attention."),
    (r"^pooling_fc\.", "bottleneck."),
)
LAP_NAMES = (
    (r"^layer_aggregation\.in_norm\.", "aggregation.norm."),
    (r"^layer_aggregation\.in_weight\.", "aggregation.projection."),
    (r"^layer_aggregation\.sq_", "aggregation.squeeze_"),
    (r"^layer_aggregation\.ex_", "aggregation.expand_"),
    (r"^layer_aggregation\.out_weight\.", "projection."),
    (r"^layer_aggregation\.out_norm\.", "frame_norm."),
    (r"^speaker_network\.t_pool\.attention\.", "pooling.attention."),
    (r"^speaker_network\.t_pool\.norm\.", "norm."),
    (r"^speaker_network\.emb_weight\.", "bottleneck."),
    (r"^speaker_network\.emb_norm\.", "embedding_norm."),
)
ECAPA_NAMES = (
    (r"^feature_weight$", "layer_weights"),
    (r"\.Conv1dReluBn1\.", ".first."),
    (r"\.Res2Conv1dReluBn\.", ".res2."),
    (r"\.Conv1dReluBn2\.", ".last."),
    (r"\.SE_Connect\.", ".gate."),
    (r"\.se_res2block\.0\.", ".first."),
    (r"\.se_res2block\.1\.", ".res2."),
    (r"\.se_res2block\.2\.", ".last."),
    (r"\.se_res2block\.3\.", ".gate."),
    (r"\.res2\.convs\.(\d)\.", r".res2.\1.conv."),
    (r"\.res2\.bns\.(\d)\.", r".res2.\1.norm."),
    (r"\.bn\.", ".norm."),
    (r"\.gate\.linear1\.", ".gate.0."),
    (r"\.gate\.linear2\.", ".gate.2."),
    (r"^layer1\.", "first."),
    (r"^layer2\.", "blocks.0."),
    (r"^layer3\.", "blocks.1."),
    (r"^layer4\.", "blocks.2."),
    (r"^conv\.", "last."),
    (r"^pool(ing)?\.linear1\.", "pooling.attention.0."),
    (r"^pool(ing)?\.linear2\.", "pooling.attention.2."),
    (r"^bn\.", "norm."),
    (r"^linear\.", "bottleneck."),
)


def renamed(state, names):
    """A public state dict by our names."""
    found = {}
    for name, tensor in state.items():
        for public, own in names:
            name = re.sub(public, own, name)
        found[name] = tensor
    return found


def golden(folder):
    """Arguments, state dict and outputs of a golden folder."""
    arguments = json.loads((folder / "config.json").read_text())["arguments"]
    state = torch.load(folder / "weights.pth", weights_only=True)
    with np.load(folder / "outputs.npz") as arrays:
        return arguments, state, {n: torch.tensor(arrays[n]) for n in arrays}


def mhfa(a, state):
    head = MHFA(
        a["inputs_dim"],
        a["nb_layer"],
        a["outputs_dim"],
        a["head_nb"],
        a["compression_dim"],
    )
    return head, renamed(state, MHFA_NAMES)


def ca_mhfa(a, state):
    head = CAMHFA(
        a["inputs_dim"],
        a["nb_layer"],
        a["outputs_dim"],
        a["group_nb"],
        a["compression_dim"],
        a["head_nb"] // a["group_nb"] + 1,
    )
    state = renamed(state, MHFA_NAMES)
    # Conv2d [G, 1, k, D] over frames × channels → Conv1d [G, D, k]
    state["attention.weight"] = state["attention.weight"].squeeze(1).transpose(1, 2)
    return head, state


def lap_astp(a, state):
    head = LAP(a["size_in"], a["n_layer"], a["embed_dim"], a["n_head"], a["size_out"])
    state = renamed(state, LAP_NAMES)
    for name, tensor in head.state_dict().items():  # 1×1 convolutions are linear maps
        if name in ("aggregation.projection.weight", "projection.weight"):
            state[name] = state[name].reshape(tensor.shape)
    return head, state


def unispeech_ecapa(a, state):
    head = WeightedSumECAPA(
        a["feat_dim"],
        a["n_states"],
        a["emb_dim"],
        [a["channels"]] * 4 + [1536],
        padding="zeros",
        global_context=a["global_context_att"],
        variance_floor=1e-9,
    )
    state = renamed(state, ECAPA_NAMES)
    return head, {
        name if name == "layer_weights" else f"ecapa_tdnn.{name}": tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("build", [mhfa, ca_mhfa, lap_astp, unispeech_ecapa])
def test_golden_embeddings_one_by_one_and_padded(shared, build):
    arguments, state, arrays = golden(shared / "golden" / "peers" / build.__name__)
    head, state = build(arguments, state)
    load_strictly(head, state, build.__name__)
    head.eval()
    utterances = [arrays[f"hidden{n}"] for n in range(3)]  # [T, L+1, D]
    padded = torch.nn.utils.rnn.pad_sequence(utterances, batch_first=True)
    lens = torch.tensor([len(u) for u in utterances]) / padded.shape[1]
    expected = torch.stack([arrays[f"emb{n}"] for n in range(3)])
    with torch.no_grad():
        single = torch.cat([head(list(u[None].unbind(2)))[:, 0] for u in utterances])
        together = head(list(padded.unbind(2)), lens)[:, 0]
    torch.testing.assert_close(single, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=0)


def test_golden_ecapa_with_global_context(shared):
    folder = shared / "golden" / "peers" / "wespeaker_ecapa_glob"
    a, state, arrays = golden(folder)
    ecapa = ZeroPaddedECAPA(
        a["feat_dim"], [a["channels"]] * 4 + [1536], a["embed_dim"]
    ).eval()
    load_strictly(ecapa, renamed(state, ECAPA_NAMES), "wespeaker_ecapa_glob")
    features = [arrays[f"feat{n}"] for n in range(3)]
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    frames = torch.tensor([len(feature) for feature in features])
    padding = torch.arange(padded.shape[1]) >= frames.unsqueeze(1)
    expected = torch.stack([arrays[f"emb{n}"] for n in range(3)])
    with torch.no_grad():
        single = torch.cat([ecapa(feature[None]) for feature in features])
        together = ecapa(padded, padding)
    torch.testing.assert_close(single, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=0)
