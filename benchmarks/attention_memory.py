"""One conformer layer on a long recording: memory and time against transformers.

    python benchmarks/attention_memory.py          # 60 s, width 1024, 16 heads
    python benchmarks/attention_memory.py --toy    # 4 s, for continuous integration

The peer is ``Wav2Vec2BertModel`` with the same weights. Its relative keys build a
tensor of frames × frames × head size, 2.3 GB here; ours multiply the queries with the
73 position vectors and gather. Each side runs in processes of its own, in turns; memory
is what the first forward takes above the weights and the input, time the median of the
forwards after it. The hidden states must be equal within 1e-4.
"""

import json
import statistics
import time

import numpy as np
from harness import argument_parser, peak_memory, report, sides_in_turns, summarise

SECONDS, TOY_SECONDS = 60, 4
PEER = {"peer_name": "transformers", "source": "Wav2Vec2BertModel"}
ROUNDS, REPEATS = 3, 3


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--side", choices=["ours", "peer"], help="one of them alone")
    parser.add_argument("--output", help="where --side keeps its hidden states")
    arguments = parser.parse_args(argv)
    if arguments.side:
        measure(arguments)
    else:
        report(compare_sides(arguments), arguments)


def compare_sides(arguments):
    """Both sides in turns → rows of memory and time."""
    found, outputs = sides_in_turns(__file__, arguments, ROUNDS)
    ours, peer = (outputs[side]["states"] for side in ("ours", "peer"))
    difference = np.abs(ours - peer).max()
    if not difference < 1e-4:
        raise SystemExit(f"states differ by {difference}, expected 1e-4 at most")
    length = TOY_SECONDS if arguments.toy else SECONDS
    return [
        summarise(
            f"one layer, {length} s, {what}",
            unit,
            *([figures[what] for figures in side] for side in found.values()),
            **PEER,
        )
        for what, unit in (("memory", "MiB"), ("time", "s"))
    ]


def measure(arguments):
    """One side in this process: prints its figures, keeps its hidden states."""
    import torch

    torch.set_num_threads(arguments.threads)
    length = TOY_SECONDS if arguments.toy else SECONDS
    run = make_side(arguments.side)
    features = torch.randn(
        1, length * 50 - 1, 160, generator=torch.Generator().manual_seed(1)
    )
    with torch.inference_mode():
        run(features[:, :50])  # libraries load and threads start here
        state, taken = peak_memory(lambda: run(features))
        seconds = []
        for _ in range(1 if arguments.toy else REPEATS):
            start = time.perf_counter()
            run(features)
            seconds.append(time.perf_counter() - start)
    np.savez(arguments.output, states=state.numpy())
    print(json.dumps({"memory": taken / 2**20, "time": statistics.median(seconds)}))


def make_side(side):
    """features → last hidden state, with the same random weights on either side."""
    import torch
    from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

    from speechbrain_ext.lobes.w2v_bert import UNUSED, W2VBertEncoder
    from speechbrain_ext.utils.weights import load_strictly

    config = Wav2Vec2BertConfig(num_hidden_layers=1)
    torch.manual_seed(0)
    peer = Wav2Vec2BertModel(config).eval()
    if side == "peer":
        return lambda features: peer(features).last_hidden_state
    encoder = W2VBertEncoder(config).eval()
    load_strictly(encoder, peer.state_dict(), "transformers", ignore=UNUSED)
    return lambda features: encoder.encode(features)[-1]


if __name__ == "__main__":
    main()
