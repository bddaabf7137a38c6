"""One distillation step over all hidden states: memory and time against stacking them.

    python benchmarks/distillation.py          # 24 layers × 256, 8 crops of 4 s
    python benchmarks/distillation.py --toy    # 4 layers × 48, for CI

The peer stacks the states of teacher and student to [states, B, T, C], as published,
and compares the stacks with torch's L1 and cosine; everything else is the same on both
sides. A step is the teacher's forward, the student's, the loss and its backward, once
with gradient checkpointing in the student and once without. Each side runs in processes
of its own, in turns; memory is what a step takes above weights, their gradients and
input, once more with the gradients among it, which are the same on both sides and come
when what the loss has kept is gone. Time is that of a later step. Losses and gradients
must be equal within 1e-5.
"""

import ctypes
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import argument_parser, in_new_process, peak_memory, report, summarise

FULL = {"layers": 24, "hidden": 256, "heads": 4, "batch": 8, "seconds": 4.0}
TOY = {"layers": 4, "hidden": 48, "heads": 4, "batch": 2, "seconds": 2.0}
UNITS = {"memory": "MiB", "memory with gradients": "MiB", "time": "s"}
ROUNDS = 3
PEER = {
    "peer_name": "stacked states",
    "source": "torch's l1_loss and cosine_similarity of stacks, as published",
}
MARKS = {"memory": 1 / 0.6}  # with gradient checkpointing; without, the rest dominates
M_MMAP_THRESHOLD = -3  # of malloc.h


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--side", choices=["ours", "peer"], help="one of them alone")
    parser.add_argument("--checkpointing", action="store_true", help="with --side")
    parser.add_argument("--output", help="where --side keeps its loss and gradient")
    arguments = parser.parse_args(argv)
    if arguments.side:
        measure(arguments)
        return
    rows = []
    for checkpointing in (True, False):
        rows += compare_sides(arguments, checkpointing)
    report(rows, arguments)


def compare_sides(arguments, checkpointing):
    """Both sides in turns → rows of memory and time."""
    options = ["--threads", arguments.threads] + ["--toy"] * arguments.toy
    options += ["--checkpointing"] * checkpointing
    found = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder, f"{side}.npy") for side in found}
        for _ in range(1 if arguments.toy else ROUNDS):
            for side, file in files.items():
                words = ["--side", side, "--output", file]
                found[side].append(in_new_process(__file__, *words, *options))
        check_equal(*(np.load(file) for file in files.values()))
    name = "step with gradient checkpointing" if checkpointing else "step without"
    return [
        summarise(
            f"{name}, {what}",
            unit,
            *([figures[what] for figures in side] for side in found.values()),
            mark=MARKS.get(what) if checkpointing else None,
            **PEER,
        )
        for what, unit in UNITS.items()
    ]


def check_equal(ours, peer):
    """Loss first, then the gradient of every weight."""
    loss = abs(ours[0] - peer[0])
    gradient = np.linalg.norm(ours[1:] - peer[1:]) / np.linalg.norm(peer[1:])
    if not max(loss, gradient) < 1e-5:
        raise SystemExit(
            f"loss differs by {loss}, gradient by {gradient}, expected 1e-5 at most"
        )


def measure(arguments):
    """One side in this process: prints its figures, keeps loss and gradient."""
    import torch

    torch.set_num_threads(arguments.threads)
    sizes = TOY if arguments.toy else FULL
    step, student = make_step(arguments.side, sizes, arguments.checkpointing)
    frames = round(50 * sizes["seconds"]) - 1
    features = torch.randn(
        sizes["batch"], frames, 160, generator=torch.Generator().manual_seed(1)
    )
    step(features[:1, :20])  # libraries load and threads start here
    return_freed_memory(at_once=True)
    found = {}
    for what, anew in (("memory with gradients", True), ("memory", False)):
        student.zero_grad(set_to_none=anew)
        torch.manual_seed(0)  # the same dropout on both sides
        loss, taken = peak_memory(lambda: step(features))
        found[what] = taken / 2**20
    gradient = torch.cat([p.grad.flatten() for p in student.parameters()])
    np.save(arguments.output, torch.cat([loss.view(1), gradient]).numpy())
    del gradient
    return_freed_memory(at_once=False)
    step(features)
    start = time.perf_counter()
    step(features)
    print(json.dumps(found | {"time": time.perf_counter() - start}))


def return_freed_memory(at_once):
    """Whether freed memory goes back to the system with every tensor.

    glibc's malloc otherwise keeps it, in pieces that do not fit the next tensor: the
    peak of its heap was three times that of the tensors and changed from run to run.
    Giving it back costs time, so it is done for one step only.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 2**16 if at_once else 2**25)


def make_step(side, sizes, checkpointing):
    """→ (features → loss, after its backward; the student)."""
    import torch
    import torch.nn.functional as F
    from transformers import Wav2Vec2BertConfig

    from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
    from speechbrain_ext.losses import distillation_loss

    config = Wav2Vec2BertConfig(
        hidden_size=sizes["hidden"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=4 * sizes["hidden"],
    )
    torch.manual_seed(0)
    teacher = W2VBertEncoder(config, frozen=True)
    student = W2VBertEncoder(config, gradient_checkpointing=checkpointing).train()

    def stacked(student, teacher):
        student, teacher = torch.stack(student), torch.stack(teacher)
        cosine = F.cosine_similarity(student, teacher, dim=-1).mean()
        return F.l1_loss(student, teacher) - cosine

    def by_state(student, teacher):
        return distillation_loss(student, teacher).loss

    compare = by_state if side == "ours" else stacked

    @torch.no_grad()
    def teach(features):
        return teacher.encode(features)

    def step(features):
        # no names for the states: each side lets go of them as early as it can
        loss = compare(student.encode(features), teach(features))
        loss.backward()
        return loss.detach()

    return step, student


if __name__ == "__main__":
    main()
