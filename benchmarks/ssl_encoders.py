"""WavLM, HuBERT, wav2vec 2.0 and UniSpeech-SAT, Large, against transformers.

    python benchmarks/ssl_encoders.py                    # 315 M parameters each
    python benchmarks/ssl_encoders.py --models wavlm     # one of them
    python benchmarks/ssl_encoders.py --toy              # 2 layers × 64, for CI

Three comparisons of a waveform → all hidden states:

1. time of 3, 10 and 30 s, with the same random weights in the installed transformers,
   each model with the attention that it chooses itself; the states must agree within
   1e-4 of the largest value. Beside it what is left to gain: all multiply-adds of the
   encoder at the rate of its feed-forward products alone, the fastest ones here;
2. peak memory at 60 s above the weights, each side in a process of its own;
3. WavLM with 3.8 of 17.8 G multiply-adds a second, which published models of 80 %
   sparsity have, against our dense one, at 10 s.
"""

import copy
import statistics

import torch
from encoder import beside
from encoders import TOY, macs_of
from harness import (
    argument_parser,
    compare,
    in_new_process,
    in_turns,
    peak_memory,
    report,
    summarise,
)
from transformers import AutoConfig, AutoModel

from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.lobes.wav2vec2 import (
    HubertEncoder,
    UniSpeechSatEncoder,
    Wav2Vec2Encoder,
)
from speechbrain_ext.lobes.waveform_convolutions import output_frames
from speechbrain_ext.lobes.wavlm import WavLMEncoder
from speechbrain_ext.pruning import Budget, add_gates, harden, prune
from speechbrain_ext.pruning.costs import mac_costs
from speechbrain_ext.pruning.groups import gated_groups
from speechbrain_ext.utils.allocator import keep_freed_memory
from speechbrain_ext.utils.weights import load_strictly

ENCODERS = {
    "wavlm": WavLMEncoder,
    "hubert": HubertEncoder,
    "wav2vec2": Wav2Vec2Encoder,
    "unispeech-sat": UniSpeechSatEncoder,
}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
FLAVOUR = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
# times faster than transformers: seconds → ratio
WAVLM = {3.0: 1.3, 10.0: 1.5, 30.0: 2.0}
OTHERS = {3.0: 1.0, 10.0: 1.0, 30.0: 1.3}
SMALLER = 2.0  # memory
KEPT, FASTER = 3.8 / 17.82, 3.5  # pruned: share of multiply-adds, and times faster
REPEATS = 5
SECONDS_OF_MEMORY, TOY_SECONDS = 60, 2


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=ENCODERS, default=[*ENCODERS])
    parser.add_argument("--side", choices=["ours", "peer"], help="its memory alone")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.side:
        print(memory_of_side(arguments))
        return
    keep_freed_memory()  # as the inference classes do
    rows = []
    for kind in arguments.models:
        rows += beside_transformers(kind, arguments)
        rows.append(memory(kind, arguments))
    if "wavlm" in arguments.models:
        rows += beside_dense(arguments)
    report(rows, arguments)


def sides(kind, toy):
    """Ours and transformers' model with the same random weights, in eval mode."""
    sizes = {**TOY, "conv_dim": [64] * 7} if toy else LARGE
    config = AutoConfig.for_model(kind, **{**sizes, **FLAVOUR})
    model = AutoModel.from_config(config).eval()
    encoder = ENCODERS[kind](config, standardise=False, last_state="raw").eval()
    weights = encoder.own_names(model.state_dict())
    ignore = ("masked_spec_embed", "encoder.layer_norm.")
    load_strictly(encoder, weights, "transformers", ignore=ignore)
    return encoder, model


def beside_transformers(kind, arguments):
    """Time of the same weights in the installed transformers → rows."""
    encoder, model = sides(kind, arguments.toy)
    marks = WAVLM if kind == "wavlm" else OTHERS
    rows = []
    with torch.inference_mode():
        for seconds in [1.0] if arguments.toy else marks:
            wav = 0.1 * torch.randn(1, round(16000 * seconds))
            row = beside(
                f"{kind}, {seconds:g} s",
                lambda wav=wav: encoder.encode(wav),
                lambda wav=wav: states_of(model, wav),
                seconds,
                arguments,
                peer_name="transformers",
                source=type(model).__name__,
                mark=marks.get(seconds),
            )
            rows.append(row)
            limit = macs_of(encoder, seconds) / rate_of_products(encoder, wav)
            about = {"peer_name": "transformers", "source": row.source}
            name = f"{kind}, {seconds:g} s, at the rate of its products"
            rows.append(summarise(name, "s", [limit], [row.peer], **about))
    return rows


def rate_of_products(encoder, wav):
    """Multiply-adds a second of all first feed-forward maps, one after another."""
    config, layers = encoder.config, encoder.encoder.layers
    frames = output_frames(wav.shape[1], config.conv_kernel, config.conv_stride)
    maps = [layer.feed_forward.intermediate_dense for layer in layers]
    x = torch.randn(1, frames, config.hidden_size)
    seconds = in_turns([lambda: [each(x) for each in maps]], REPEATS, 1)[0]
    return len(maps) * x.numel() * maps[0].out_features / statistics.median(seconds)


def states_of(model, wav):
    """All hidden states of a model of transformers."""
    return model(wav, output_hidden_states=True).hidden_states


def memory(kind, arguments):
    """Peak memory of a long recording, each side in a new process → Row."""
    options = ["--models", kind, "--threads", arguments.threads]
    options += ["--toy"] * arguments.toy
    found = {
        side: in_new_process(__file__, "--side", side, *options)
        for side in ("ours", "peer")
    }
    length = TOY_SECONDS if arguments.toy else SECONDS_OF_MEMORY
    return summarise(
        f"{kind}, {length} s, memory",
        "MiB",
        *([found[side]] for side in ("ours", "peer")),
        peer_name="transformers",
        source="AutoModel, in a process of its own",
        mark=SMALLER if kind == "wavlm" and not arguments.toy else None,
    )


def memory_of_side(arguments):
    """MiB of one pass of one side in this process, above the weights."""
    encoder, model = sides(arguments.models[0], arguments.toy)
    length = TOY_SECONDS if arguments.toy else SECONDS_OF_MEMORY
    wav = 0.1 * torch.randn(1, 16000 * length)
    ours = arguments.side == "ours"
    with torch.inference_mode():
        run = encoder.encode if ours else lambda x: states_of(model, x)
        run(wav[:, :16000])  # libraries load and threads start here
        return peak_memory(lambda: run(wav))[1] / 2**20


def beside_dense(arguments):
    """Pruned WavLM beside the dense one → rows."""
    dense, _ = sides("wavlm", arguments.toy)
    gated = add_gates(copy.deepcopy(dense), ["heads", "ffn", "conv"])
    for _, gate in gated_groups(gated):
        gate.units.log_alpha.data.normal_()
    # of multiply-adds: parameters alone would leave the convolutions as they are
    harden(Budget(gated, macs=round(KEPT * mac_costs(dense).rest)), 8)
    pruned = prune(gated)
    seconds = 1.0 if arguments.toy else 10.0
    wav = 0.1 * torch.randn(1, round(16000 * seconds))
    about = {"peer_name": "our dense encoder", "source": "WavLMEncoder"}
    millions = (count_parameters(e).total / 1e6 for e in (pruned, dense))
    macs = (mac_costs(e).rest / 1e9 for e in (pruned, dense))
    rows = [
        summarise("wavlm, pruned, parameters", "M", *([n] for n in millions), **about),
        summarise(
            "wavlm, pruned, multiply-adds of 1 s", "G", *([n] for n in macs), **about
        ),
    ]
    with torch.inference_mode():
        expected = gated.eval().encode(wav)
        for own, other in zip(pruned.encode(wav), expected, strict=True):
            if not float((own - other).abs().max() / other.abs().max()) < 1e-4:
                raise SystemExit("pruned states are not the gated ones")
        row = compare(
            f"wavlm, pruned, {seconds:g} s",
            lambda: pruned.encode(wav),
            lambda: dense.encode(wav),
            *(5, 1),
            toy=arguments.toy,
            mark=FASTER,
            **about,
        )
    return [*rows, row]


if __name__ == "__main__":
    main()
