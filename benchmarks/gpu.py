"""Training and verification on a GPU: steps, kernels, waits, equality of types.

    python benchmarks/gpu.py          # full size on one GPU of 80 GB, about 10 minutes
    python benchmarks/gpu.py --toy    # the same code on the CPU, for CI

- **Steps** of the recipes' files by train.py's own function, on noise: seconds and peak
  memory against what docs/gpu.md estimates; samples per second, share of the card's
  arithmetic (MFU), launches and the lines that make the host wait, as notes.
- **Attention and convolution**: what torch takes by itself against each backend alone,
  forward and backward; the first call of a new length as a note.
- **Positions**: the backward of the bias by distance against that of ``gather``.
- **Types**: how far cosines in bf16 are from those in float32.
- **Determinism**: parameters whose gradients differ between two equal steps, a note.
"""

import contextlib
import logging
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from fake_step import Run, Stop, without_files
from harness import LeftOut, Row, argument_parser, beside_limit, compare, report
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from transformers import Wav2Vec2BertConfig
from what_fits import FILES, read_kept, seconds_of, value_of

from speechbrain_ext import pretrained
from speechbrain_ext.lobes.conformer import depthwise
from speechbrain_ext.lobes.relative_attention import gather_distances
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.profiling import random_model
from speechbrain_ext.utils.errors import InputError, command_line

STEPS = {
    "stage1_lora_adapter_mfa": [],
    "stage2_joint": [],
    "stage2_joint, checkpointing": ["--gradient_checkpointing=True"],
    "stage3_lmft": [],
    "prune1_distill": [],
    "hybrid_wavlm_mhfa": [],
    "fbank/resnet": [],
}
TOY_STEPS = {"stage2_joint": ["--batch_size=2", "--crop_seconds=[0.5,0.5]"]}
WARMUP, TIMED = 3, 10
CARD = 80  # whose estimates are the peer
PEAK_TFLOPS = 989  # bf16 of an H100 SXM; its share is what MFU means here
SCORES_APART = 2e-3  # rms of cosines, bf16 against float32
WAITS = 3  # of the host, a step
ESTIMATE = {"peer_name": "estimate", "source": "docs/gpu.md"}
BACKENDS = {
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
TOY_CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@command_line
def main(argv=None):
    """Measure all, or say that there is no GPU."""
    arguments = argument_parser(__doc__).parse_args(argv)
    if not (arguments.toy or torch.cuda.is_available()):
        raise InputError("benchmarks/gpu.py needs a GPU")
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = "cpu" if arguments.toy else "cuda"
    rows, notes = [], []
    for name, words in (TOY_STEPS if arguments.toy else STEPS).items():
        found, said = step_rows(name, words, device, arguments.toy)
        rows += found
        notes += said
    for part in (attention, convolution, positions):
        rows += part(device, arguments.toy)
    rows.append(types(device, arguments.toy))
    notes += [new_lengths(device, arguments.toy), determinism(device, arguments.toy)]
    report(rows, arguments, notes)


# -- steps -----------------------------------------------------------------------------


class Device:
    """What :class:`fake_step.Run` asks of a GPU, of one that is there."""

    phase = ""

    def building(self):
        """Modules are made as ever."""
        return contextlib.nullcontext()


def step_rows(name, words, device, toy):
    """Rows and notes of one file's step."""
    file = name.split(",")[0]
    run = run_steps(FILES[file], words, device, toy)
    way = "checkpointing" if words and not toy else "plain"
    kept = read_kept().get(file, {}).get(way)
    batch, seconds = run.batch_size, run.seconds
    about = f"{name}, batch of {batch}"
    per_second = f"{batch * run.factor / seconds:.0f} utterances a second"
    if kept is None:
        return [LeftOut(about, "estimate", "not in what_fits.json")], [
            f"{name}: {per_second}"
        ]
    estimated = seconds_of(kept, batch, run.factor, CARD)
    rows = [Row(about, "s", seconds, estimated, run.spread, **ESTIMATE)]
    notes = [f"{about}: {per_second}"]
    if device == "cuda":
        peaks = [value_of(kept, key, batch) for key in kept if key.startswith("peak ")]
        memory = run.peak / 2**20, max(peaks) / 2**20
        rows.append(Row(f"{about}, memory", "MiB", *memory, **ESTIMATE))
        rows.append(beside_limit(f"{about}, waits", "waits", [run.waits], WAITS))
        mfu = value_of(kept, "flops", batch) * run.factor / seconds / 1e12 / PEAK_TFLOPS
        notes[0] += f", MFU {mfu:.0%}, {run.kernels} kernels, waits at {run.lines}"
    return rows, notes


def run_steps(path, words, device, toy):
    """A Run with ``seconds``, ``spread``, ``factor``; on a GPU also ``peak``, …"""
    steps = toy_steps if toy else timed_steps
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(without_files())
        stack.enter_context(drawn_weights())
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable()
        run = Run(Device(), path, Path(folder), 1 if toy else None, device, steps)
        with contextlib.suppress(Stop):
            run.train(words)
    return run


@contextlib.contextmanager
def drawn_weights():
    """Models of former stages have random weights, not whatever memory held."""
    plain = pretrained.NoRandomValues
    pretrained.NoRandomValues = contextlib.nullcontext
    try:
        yield
    finally:
        pretrained.NoRandomValues = plain


def toy_steps(run, wavs, factor):
    """One step to get ready, one that is timed."""
    run.factor, run.spread = factor, 0.0
    yield from range(factor)
    start = time.perf_counter()
    yield from range(factor)
    run.seconds = time.perf_counter() - start


def timed_steps(run, wavs, factor):
    """Steps that are timed; then one whose waits, and one whose kernels are counted."""
    run.factor = factor
    yield from range(WARMUP * factor)
    torch.cuda.reset_peak_memory_stats()
    each = []
    for _ in range(TIMED):
        torch.cuda.synchronize()
        start = time.perf_counter()
        yield from range(factor)
        torch.cuda.synchronize()
        each.append(time.perf_counter() - start)
    run.seconds, run.spread = sorted(each)[TIMED // 2], (max(each) - min(each)) / 2
    run.peak = torch.cuda.max_memory_allocated()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        yield from range(factor)
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in seen if "synchroniz" in str(w.message)]
    run.waits = max(1, len(waits))
    run.lines = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in waits})
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        yield from range(factor)
    run.kernels = sum(event.count for event in profiled.key_averages())


# -- kernels ---------------------------------------------------------------------------


def attention(device, toy):
    """torch's own choice against each backend, with a bias that needs a gradient."""
    batch, heads, frames, size = (2, 2, 29, 16) if toy else (64, 16, 149, 64)
    type_ = torch.float32 if toy else torch.bfloat16
    like = {"device": device, "dtype": type_, "requires_grad": True}
    parts = [torch.randn(batch, heads, frames, size, **like) for _ in range(3)]
    bias = torch.randn(batch, heads, frames, frames, **like)

    def run(backend=None):
        with sdpa_kernel(backend) if backend else contextlib.nullcontext():
            y = F.scaled_dot_product_attention(*parts, bias)
        torch.autograd.grad(y, [*parts, bias], torch.ones_like(y))
        wait(device)

    rows = []
    for name, backend in BACKENDS.items():
        about = f"attention, forward and backward, {name}"
        try:
            run(backend)
        except RuntimeError as error:
            rows.append(LeftOut(about, name, str(error).splitlines()[0][:80]))
            continue
        peer = {"peer_name": f"torch, {name} alone", "source": "sdpa_kernel"}
        rows.append(compare(about, run, lambda b=backend: run(b), toy=toy, **peer))
    return rows


def convolution(device, toy):
    """The depthwise convolution of channels-last frames against torch's conv1d."""
    batch, frames, width, kernel = (2, 29, 16, 5) if toy else (64, 149, 1024, 31)
    type_ = torch.float32 if toy else torch.bfloat16
    like = {"device": device, "dtype": type_, "requires_grad": True}
    x = torch.randn(batch, frames, width, **like)
    weight = torch.randn(width, 1, kernel, **like)

    def plain():
        padded = F.pad(x.transpose(1, 2), (kernel - 1, 0))
        return F.conv1d(padded, weight, groups=width).transpose(1, 2)

    def ours():
        return depthwise(x, weight, None, kernel - 1, 0)

    def native():
        with torch.backends.cudnn.flags(enabled=False):
            return ours()

    def both_ways(function):
        y = function()
        torch.autograd.grad(y, [x, weight], torch.ones_like(y))
        wait(device)

    peers = {"torch's conv1d": plain, "ours without cuDNN": native}
    return [
        compare(
            f"depthwise convolution, forward and backward, against {name}",
            lambda: both_ways(ours),
            lambda f=function: both_ways(f),
            toy=toy,
            peer_name=name,
            source="torch",
        )
        for name, function in peers.items()
    ]


def positions(device, toy):
    """Backward of the bias by distance against that of torch's gather."""
    batch, heads, frames, left, right = (
        (2, 2, 29, 4, 2) if toy else (64, 16, 149, 64, 8)
    )
    type_ = torch.float32 if toy else torch.bfloat16
    distances = left + 1 + right
    x = torch.randn(batch, heads, frames, distances, device=device, dtype=type_)
    x.requires_grad_()
    row = torch.arange(frames, device=device)
    place = (row - row.unsqueeze(1) + left).clamp(0, distances - 1)
    place = place.expand(batch, heads, -1, -1)

    def backward(y):
        torch.autograd.grad(y, x, torch.ones_like(y))
        wait(device)

    return [
        compare(
            "bias by distance, forward and backward",
            lambda: backward(gather_distances(x, left, 0, frames)),
            lambda: backward(x.gather(-1, place)),
            toy=toy,
            peer_name="torch's gather",
            source="torch",
        )
    ]


# -- values ----------------------------------------------------------------------------


def model_of(device, toy):
    """A random Adapter-MFA."""
    config = Wav2Vec2BertConfig(**(TOY_CONFIG if toy else {}))
    return random_model(config).to(device)


def types(device, toy):
    """How far cosines in bf16 are from those in float32 → Row."""
    model = model_of(device, toy).eval()
    wavs = 0.1 * torch.randn(4 if toy else 32, 16000 if toy else 48000, device=device)
    with torch.inference_mode():
        wide = model(wavs)
        with torch.autocast(device, torch.bfloat16):
            narrow = model(wavs)
    wide, narrow = (F.normalize(e.squeeze(1).float(), dim=-1) for e in (wide, narrow))
    apart = (wide @ wide.t() - narrow @ narrow.t()).square().mean().sqrt().item()
    return beside_limit(
        "cosines, bf16 from float32, rms", "cosine", [apart], SCORES_APART
    )


def determinism(device, toy):
    """Two equal steps → a note of how many gradients are equal to the bit."""
    model = model_of(device, toy).train()
    classifier = ArcFace(model.embedding_size, 100).to(device)
    wavs = 0.1 * torch.randn(2 if toy else 32, 16000 if toy else 48000, device=device)
    labels = torch.zeros(len(wavs), dtype=torch.int64, device=device)
    gradients = []
    for _ in range(2):
        torch.manual_seed(0)
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss = classifier(model(wavs), labels)
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    first, second = gradients
    apart = [n for n in first if not torch.equal(first[n], second[n])]
    shown = f", first {apart[0]}" if apart else ""
    return f"two equal steps: {len(apart)} of {len(first)} gradients differ{shown}"


def new_lengths(device, toy):
    """Inference of lengths not seen before, and seen → a note."""
    model, taken = model_of(device, toy).eval(), []
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
        for seconds in (1.0, 1.1, 1.2) if toy else (8.0, 8.1, 8.2, 8.3):
            wavs = 0.1 * torch.randn(2, round(16000 * seconds), device=device)
            for _ in range(2):
                start = time.perf_counter()
                model(wavs)
                wait(device)
                taken.append(time.perf_counter() - start)
    news, again = taken[2::2], taken[3::2]  # the very first call is of the library's
    return (
        f"a length that is new: {1000 * sum(news) / len(news):.0f} ms, "
        f"again: {1000 * sum(again) / len(again):.0f} ms"
    )


def wait(device):
    """Until all kernels are done."""
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
