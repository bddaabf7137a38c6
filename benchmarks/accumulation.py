"""Gradient accumulation on 2 processes: gradients exchanged once a step, or each time.

    python benchmarks/accumulation.py          # 2 full layers, 5,994 classes
    python benchmarks/accumulation.py --toy    # 2 layers × 64, for CI

One step of stage 2 over four micro-batches, on two processes of this machine that
exchange gradients by gloo. Ours does so in the last micro-batch alone, as training does
(``DistributedDataParallel.no_sync`` around forward and backward of the others); the
peer in every one. The mean over processes is linear, so that both take the same step:
the weights after it must be equal within 1e-5 of its length, and so must the losses of
the next.

Each process has half of the threads. A step ends where the slower process ends.
"""

import contextlib
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
from harness import argument_parser, compare, report
from processes import start_process
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from training_step import EMBEDDING, TOY, config_of

from speechbrain_ext.features.frames import SAMPLE_RATE
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.losses import ArcFace

FULL = {"encoder": {"num_hidden_layers": 2}, "classes": 5994}  # those of VoxCeleb2
MICRO_BATCHES, PROCESSES = 4, 2
CROPS, TOY_CROPS = (1, 3), (2, 1)  # of a micro-batch: number, seconds
PEER = {
    "peer_name": "exchanging each time",
    "source": "DistributedDataParallel without no_sync",
}
TOLERANCE = 1e-5
# a process that is left alone fails, it does not wait for ever
PATIENCE = timedelta(minutes=5)


def main(argv=None):
    arguments = argument_parser(__doc__).parse_args(argv)
    torch.set_num_threads(share_of(arguments.threads))
    number, seconds = TOY_CROPS if arguments.toy else CROPS
    with Pair(arguments) as pair:
        check_equal(pair)
        row = compare(
            f"{MICRO_BATCHES} × {number} × {seconds} s on {PROCESSES} processes",
            lambda: pair.step(each_time=False),
            lambda: pair.step(each_time=True),
            5,
            1,
            toy=arguments.toy,
            **PEER,
        )
        mebibytes = 4 * len(pair.worker.weights()) / 2**20
    report([row], arguments, [f"one exchange: {mebibytes:.4g} MiB of gradients"])


def share_of(threads):
    """Threads of each process."""
    return max(1, threads // PROCESSES)


def check_equal(pair):
    """A step must not depend on how often gradients are exchanged."""
    weights, ours = two_steps(pair, each_time=False)
    expected, theirs = two_steps(pair, each_time=True)
    moved = torch.linalg.norm(expected - flat(pair.worker.first))
    apart = torch.linalg.norm(weights - expected) / moved
    losses = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
    if not (moved > 0 and max(losses, apart) < TOLERANCE):
        raise SystemExit(
            f"steps differ by {apart:.2g} of their length {moved:.2g}, losses of the "
            f"next by {losses:.2g}, expected {TOLERANCE:g} at most"
        )


def two_steps(pair, each_time):
    """Weights after a step from the first ones, and losses of the step after it."""
    pair.step(each_time, anew=True)
    return pair.worker.weights(), pair.step(each_time)


class Pair:
    """This process and another that takes the same steps on other recordings."""

    def __init__(self, arguments):
        self.arguments = arguments

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            meeting = str(Path(folder, "meeting"))
            words = (meeting, self.arguments.toy, self.arguments.threads)
            self.process, self.connection = start_process(serve, *words)
            stack.callback(self.process.join)
            stack.callback(self.connection.close)  # which ends the other
            join_group(meeting, 0)
            stack.callback(distributed.destroy_process_group)
            self.worker = Worker(self.arguments.toy, 0)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        self.worker = None  # its buckets belong to the group
        self.stack.close()

    def step(self, each_time, anew=False):
        """One step on both, from the first weights or the latest → all losses."""
        self.connection.send((each_time, anew))
        losses = self.worker.step(each_time, anew)
        return losses + self.connection.recv()


def serve(connection, meeting, toy, threads):
    """The other process: a step for every message, until there are no more."""
    torch.set_num_threads(share_of(threads))
    join_group(meeting, 1)
    worker = Worker(toy, 1)
    with contextlib.suppress(EOFError):
        while True:
            connection.send(worker.step(*connection.recv()))


def join_group(meeting, rank):
    """Both meet at a file, so that no port has to be free."""
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=PROCESSES,
        timeout=PATIENCE,
    )


class Worker:
    """Model and micro-batches of one process, wrapped as training does."""

    def __init__(self, toy, rank):
        torch.manual_seed(1)
        sizes = TOY if toy else FULL
        encoder = W2VBertEncoder(config_of(sizes))
        head = AdapterMFA(
            encoder.hidden_size, encoder.n_states, embedding_size=EMBEDDING
        )
        # without dropout and statistics of batches, both ways take the same step
        speaker_encoder = SpeakerEncoder(encoder, head).eval()
        classifier = ArcFace(EMBEDDING, sizes["classes"])
        modules = (speaker_encoder, classifier)
        self.modules = [DistributedDataParallel(module) for module in modules]
        self.parameters = [p for module in modules for p in module.parameters()]
        self.first = [p.detach().clone() for p in self.parameters]
        # AdamW's first step is a sign: it would blow up the rounding of small gradients
        self.optimiser = torch.optim.SGD(self.parameters, lr=1.0)
        generator = torch.Generator().manual_seed(rank)
        number, seconds = TOY_CROPS if toy else CROPS
        shape = (MICRO_BATCHES, number, seconds * SAMPLE_RATE)
        self.wavs = 0.1 * torch.randn(shape, generator=generator)
        self.labels = torch.randint(sizes["classes"], shape[:2], generator=generator)

    def step(self, each_time, anew=False):
        """Forward and backward of all micro-batches, one update → losses."""
        if anew:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.first)
        losses = []
        for number, batch in enumerate(zip(self.wavs, self.labels), start=1):
            exchange = each_time or number == MICRO_BATCHES
            losses.append(self.backward(*batch, exchange))
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return losses

    def backward(self, wavs, labels, exchange):
        """Add the gradients of one micro-batch → its loss."""
        speaker_encoder, classifier = self.modules
        with contextlib.ExitStack() as stack:
            if not exchange:
                for module in self.modules:
                    stack.enter_context(module.no_sync())
            loss = classifier(speaker_encoder(wavs), labels)
            (loss / MICRO_BATCHES).backward()
        return float(loss.detach())

    def weights(self):
        """All of them in one vector: a copy."""
        return flat(p.detach() for p in self.parameters)


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


if __name__ == "__main__":
    main()
