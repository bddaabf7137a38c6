"""The encoder at 80 % sparsity against the dense one: multiply-adds and seconds.

    python benchmarks/pruned_encoder.py          # 580 M parameters, 3 s and 10 s
    python benchmarks/pruned_encoder.py --toy    # 4 layers × 64, 1 s, for CI

The peer is our own dense encoder. Gates with random log alpha of every kind of unit are
hardened to the sparsity and removed, once to any width ("uneven") and once to multiples
of 8; which units go makes no difference to the arithmetic, their number does. Weights
are random. Before anything is timed, the pruned states must equal the gated ones.
"""

import copy
from dataclasses import replace

import torch
from encoders import TOY, macs_of
from harness import argument_parser, compare, report, summarise
from transformers import Wav2Vec2BertConfig

from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.pruning import Budget, add_gates, harden, prune
from speechbrain_ext.pruning.groups import gated_groups
from speechbrain_ext.utils.allocator import keep_freed_memory

WIDTHS = {"uneven": 1, "multiples of 8": 8}
PEER = {"peer_name": "our dense encoder", "source": "W2VBertEncoder"}
PROMISED, FASTER, MACS = 0.8, 4.0, 6.31  # at that sparsity: times, and 10⁹ for 1 s


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--sparsity", type=float, default=PROMISED)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    keep_freed_memory()  # as the inference classes do
    config = Wav2Vec2BertConfig(**(TOY if arguments.toy else {}))
    lengths = [1.0] if arguments.toy else [3.0, 10.0]
    dense = W2VBertEncoder(config).eval()
    rows = []
    for name, multiple in WIDTHS.items():
        pruned = at_sparsity(dense, arguments.sparsity, multiple)
        rows += sizes(name, pruned, dense)
        for seconds in lengths:
            wavs = torch.randn(1, int(16000 * seconds)) * 0.1
            rows.append(
                timing(f"{name}, {seconds:g} s", pruned, dense, wavs, arguments)
            )
    if arguments.sparsity != PROMISED:
        rows = [replace(row, mark=None) for row in rows]
    report(rows, arguments)


def at_sparsity(dense, sparsity, multiple):
    """Random gates, hardened and removed → the smaller encoder."""
    gated = add_gates(copy.deepcopy(dense))
    for _, gate in gated_groups(gated):
        gate.units.log_alpha.data.normal_()
    harden(Budget(gated, sparsity=sparsity), multiple)
    pruned = prune(gated).eval()
    wavs = torch.randn(1, 16000) * 0.1
    with torch.inference_mode():
        pairs = zip(pruned(wavs)[0], gated.eval()(wavs)[0])
        error = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    if not error < 1e-5:
        raise SystemExit(f"pruned and gated states differ by {error}, expected 1e-5")
    return pruned


def sizes(name, pruned, dense):
    """Parameters and multiply-adds for 1 s of both → two rows."""
    both = (pruned, dense)
    parameters = ([count_parameters(encoder).total / 1e6] for encoder in both)
    macs = [macs_of(encoder) / 1e9 for encoder in both]
    of = f"{name}, multiply-adds for 1 s"
    fewer = macs[1] / MACS
    return [
        summarise(f"{name}, parameters", "M", *parameters, **PEER),
        summarise(of, "G", *([n] for n in macs), mark=fewer, **PEER),
    ]


def timing(name, pruned, dense, wavs, arguments):
    """Both forward passes, features included → Row."""

    def forward(encoder):
        with torch.inference_mode():
            encoder(wavs)

    sides = [lambda encoder=encoder: forward(encoder) for encoder in (pruned, dense)]
    options = {"toy": arguments.toy, "memory": True, "mark": FASTER, **PEER}
    return compare(name, *sides, 5, **options)


if __name__ == "__main__":
    main()
