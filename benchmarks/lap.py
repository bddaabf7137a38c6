"""LAP + ASTP, one training step: memory and time against all states stacked.

    python benchmarks/lap.py          # 25 states × 1024, 64 × 2 s
    python benchmarks/lap.py --toy    # small, for continuous integration

The peer is the published way: a tensor [B, C, T, L+1], BatchNorm2d, a 1×1 convolution,
the maximum, all by autograd. Both have the same weights and the same pooling behind
them. Each side runs in processes of its own, in turns; memory is what a forward and a
backward pass take above the states and the weights, time the median of those after it.
The states need gradients, as in joint training. Embeddings and the gradients of the
first state must be equal.
"""

import json
import statistics
import time

import numpy as np
from harness import argument_parser, peak_memory, report, sides_in_turns, summarise

FULL = {"batch": 64, "frames": 100, "width": 1024, "states": 25, "heads": 16}
TOY = {"batch": 4, "frames": 20, "width": 32, "states": 5, "heads": 4}
PEER = {"peer_name": "states stacked", "source": "as in sadPororo/LAP"}
MARK = 2.5  # at most 40 % of the stacked tensor's memory
ROUNDS, REPEATS = 3, 2


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--side", choices=["ours", "peer"], help="one of them alone")
    parser.add_argument("--output", help="where --side keeps what must be equal")
    arguments = parser.parse_args(argv)
    if arguments.side:
        measure(arguments)
    else:
        report(compare_sides(arguments), arguments)


def compare_sides(arguments):
    """Both sides in turns → rows of memory and time."""
    found, outputs = sides_in_turns(__file__, arguments, ROUNDS)
    ours, peer = outputs["ours"], outputs["peer"]
    for name, values in ours.items():
        difference = np.abs(values - peer[name]).max() / np.abs(peer[name]).max()
        if not difference < 1e-3:
            raise SystemExit(f"{name}: differs by {difference}, expected 1e-3 at most")
    sizes = TOY if arguments.toy else FULL
    shape = " × ".join(str(sizes[k]) for k in ("batch", "frames", "width", "states"))
    return [
        summarise(
            f"step, {shape}, {what}",
            unit,
            *([figures[what] for figures in side] for side in found.values()),
            mark=None if arguments.toy else mark,
            **PEER,
        )
        for what, unit, mark in (("memory", "MiB", MARK), ("time", "s", None))
    ]


def measure(arguments):
    """One side in this process: prints its figures, keeps what must be equal."""
    import torch

    torch.set_num_threads(arguments.threads)
    sizes = TOY if arguments.toy else FULL
    head = make_side(arguments.side, sizes)
    generator = torch.Generator().manual_seed(1)
    shape = sizes["batch"], sizes["frames"], sizes["width"]
    states = [
        torch.randn(shape, generator=generator).requires_grad_()
        for _ in range(sizes["states"])
    ]
    direction = torch.randn(sizes["batch"], 1, 192, generator=generator)

    def step():
        head.zero_grad()
        for state in states:
            state.grad = None
        embeddings = head(states)
        # not their squares: behind a BatchNorm the sum of those is constant
        (embeddings * direction).sum().backward()
        return embeddings.detach()

    head([state[:2, :10] for state in states]).sum().backward()  # threads start here
    embeddings, taken = peak_memory(step)
    np.savez(arguments.output, embeddings=embeddings, gradient=states[0].grad)
    seconds = []
    for _ in range(1 if arguments.toy else REPEATS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"memory": taken / 2**20, "time": statistics.median(seconds)}))


def make_side(side, sizes):
    """states → embeddings [B, 1, E], with the same random weights on either side."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from speechbrain_ext.lobes.heads import LAP

    class Stacked(nn.Module):
        """The published aggregation with the weights of ours."""

        def __init__(self, own):
            super().__init__()
            self.own = own
            self.norm = nn.BatchNorm2d(sizes["width"])
            self.conv = nn.Conv2d(sizes["width"], sizes["width"], 1)
            with torch.no_grad():
                self.conv.weight.copy_(own.projection.weight[..., None, None])
                self.conv.bias.copy_(own.projection.bias)

        def forward(self, states, padding=None):
            own = self.own
            x = self.conv(self.norm(torch.stack(states, -1).transpose(1, 2)))
            x = x.unflatten(1, (sizes["heads"], -1)).permute(0, 3, 1, 2, 4).contiguous()

            def network(x):
                x = F.relu(x @ own.squeeze_weight + own.squeeze_bias)
                return x @ own.expand_weight + own.expand_bias

            mean = network(x.mean(3, keepdim=True))
            peak = network(x.max(3, keepdim=True).values)
            return (x * (mean + peak).sigmoid()).max(-1).values.flatten(2)

    torch.manual_seed(0)
    head = LAP(sizes["width"], sizes["states"], heads=sizes["heads"], dropout=0.0)
    if side == "peer":
        head.aggregation = Stacked(head.aggregation)
    return head.train()


if __name__ == "__main__":
    main()
