"""8 bits on a CPU: seconds, weights, cosine and EER of ways to multiply, in one table.

    python benchmarks/int8.py                        # w2v-BERT 2.0, dense
    python benchmarks/int8.py --published FOLDER     # and its published 0.8 structure
    python benchmarks/int8.py --toy                  # 4 layers × 64, 1 s, for CI
    python benchmarks/int8.py --models --pretrained_folder results/final \\
        --trials /data/trials.txt --test_folder /data/VoxCeleb1/wav    # one's own: EER

Ways: ``float32``; ``int8``, which precision="int8" loads; torch's own dynamic
quantisation of the same layers (one scale for all activations of a call), and bf16
autocast. Features [1, T, …] → all hidden states, equal ones for all. Each way has a
process of its own, and all take turns; cosines are those of embeddings to float32's.
Seconds of random weights are those of any; cosines are not. ``--cpu_time`` counts the
seconds that processors worked, with one thread a fair measure beside other programs.
"""

import functools
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from encoders import TOY
from harness import LeftOut, argument_parser, in_new_process, report, summarise
from published import PublishedEncoder, pruned_configuration
from torch import nn
from transformers import Wav2Vec2BertConfig

from speechbrain_ext.inference import SpeakerVerifier
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.int8 import Int8Linear, in_int8, is_linear
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.scoring.metrics import equal_error_rate
from speechbrain_ext.scoring.trials import read_trials
from speechbrain_ext.utils.allocator import keep_freed_memory

SECONDS, ROUNDS, PASSES = (1.0, 3.0, 10.0, 30.0), 3, 5
FASTER = {("0.8", 3.0): 2.5}  # than the published code: promised of int8
PUBLISHED = "published code"


class PerCall(nn.Module):
    """A linear layer by torch's dynamic quantisation."""

    def __init__(self, layer):
        super().__init__()
        weight = layer.weight.detach().flatten(1)
        scale = weight.abs().amax(1).double() / 127
        zeros = torch.zeros(len(weight), dtype=torch.long)
        weight = torch.quantize_per_channel(weight, scale, zeros, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(weight, layer.bias)

    def forward(self, x):
        """[..., in] → [..., out]."""
        return torch.ops.quantized.linear_dynamic(x, self.packed)


def per_call(model):
    for parent in list(model.encoder.modules()):
        for name, layer in list(parent.named_children()):
            if name in model.encoder.int8_layers and is_linear(layer):
                setattr(parent, name, PerCall(layer))


WAYS = {
    "int8": in_int8,
    "float32": lambda model: None,
    "torch's dynamic int8": per_call,
    "bf16": lambda model: None,
}


def main(argv=None):
    parser = argument_parser(__doc__)
    add = parser.add_argument
    add("--models", nargs="*", choices=("dense", "0.8"), help="(default: both)")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    add("--seconds", type=float, nargs="+", default=SECONDS, help="lengths, in place")
    add("--rounds", type=int, default=ROUNDS)
    add("--pretrained_folder", nargs="+", default=[], metavar="FOLDER")
    add("--trials", nargs="+", default=[], metavar="FILE", help="for the EER")
    add("--test_folder", help="with the recordings of --trials")
    add("--cpu_time", action="store_true", help="seconds of work, not of the clock")
    add("--one", nargs=2, metavar=("MODEL", "WAY"), help="its figures alone, as JSON")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.toy:
        arguments.seconds = [1.0]
    if arguments.one:
        print(json.dumps(measured(*arguments.one, arguments)))
        return
    names, left_out = models_of(arguments)
    found = {}
    for _ in range(1 if arguments.toy else arguments.rounds):
        for name in names:
            for way in ways_of(name, arguments):
                figures = in_new_process(
                    __file__, "--one", name, way, *words(arguments)
                )
                found.setdefault((name, way), []).append(figures)
    rows = [row for key in found for row in rows_of(found, *key, arguments)]
    report(rows + left_out, arguments, list(table(found, arguments)))


def models_of(arguments):
    """Names of models to measure, and rows for those that are left out."""
    if arguments.toy:
        return ["dense"], []
    asked = ("dense", "0.8") if arguments.models is None else arguments.models
    names = [name for name in asked if name != "0.8" or arguments.published]
    left_out = [LeftOut(f"{name}, int8", PUBLISHED) for name in set(asked) - set(names)]
    return [*names, *arguments.pretrained_folder], left_out


def ways_of(name, arguments):
    """Of a trained model those that can be loaded; else the published code, too."""
    if name in arguments.pretrained_folder:
        return [way for way in ("int8", "float32") if way in arguments.ways]
    return [*arguments.ways, *[PUBLISHED] * bool(arguments.published)]


def words(arguments):
    """Options for the other processes."""
    given = ["--threads", arguments.threads, "--seconds", *arguments.seconds]
    for name in ("pretrained_folder", "trials"):
        if values := getattr(arguments, name):
            given += [f"--{name}", *values]
    for name in ("test_folder", "published"):
        if value := getattr(arguments, name):
            given += [f"--{name}", value]
    given += [f"--{name}" for name in ("cpu_time", "toy") if getattr(arguments, name)]
    return given


# -- one model, one way ----------------------------------------------------------------


def measured(name, way, arguments):
    """Seconds by length, MB of weights, cosine to float32, EER by list → dict."""
    keep_freed_memory()  # as the inference classes do
    torch.manual_seed(0)
    folder = name if name in arguments.pretrained_folder else None
    model = load_pretrained(folder) if folder else random_model(name, arguments)
    model.eval()
    found = {"seconds": {}, "cosine": None, "eer": {}}
    inputs = {s: model.encoder.example(s)[0] for s in arguments.seconds}
    inputs = {s: torch.randn(x.shape) for s, x in inputs.items()}
    if way == PUBLISHED:
        found["megabytes"] = megabytes(model)
        found["seconds"] = published_seconds(model.encoder, inputs, arguments)
        return found
    context = functools.partial(torch.autocast, "cpu", torch.bfloat16, way == "bf16")
    wav = 0.1 * torch.randn(1, 3 * model.encoder.sample_rate)
    with torch.inference_mode():
        exact = model(wav)
        WAYS[way](model)
        with context():
            states, lens = model.encoder(wav)
        embedding = model.head([state.float() for state in states], lens)
        found["cosine"] = float(torch.cosine_similarity(embedding, exact, -1))
        found["megabytes"] = megabytes(model)
        for seconds, x in inputs.items():
            with context():
                run = functools.partial(model.encoder.encode, x)
                found["seconds"][str(seconds)] = timed(run, arguments)
    if folder and arguments.trials:
        rates, exact = error_rates(folder, "fp32", arguments)
        vectors = exact
        if way == "int8":
            rates, vectors = error_rates(folder, way, arguments)
        found["eer"] = rates
        found["cosine"] = float(torch.cosine_similarity(vectors, exact, -1).min())
    return found


def random_model(name, arguments):
    """w2v-BERT 2.0, whole or at the published structure, random, with its head."""
    values = pruned_configuration(arguments.published) if name == "0.8" else {}
    encoder = W2VBertEncoder(Wav2Vec2BertConfig(**(TOY if arguments.toy else values)))
    return SpeakerEncoder(encoder, AdapterMFA(encoder.hidden_size, encoder.n_states))


def megabytes(model):
    """Of all weights as they are held."""
    held = [*model.parameters(), *model.buffers()]
    size = sum(tensor.nbytes for tensor in held)
    for module in model.modules():
        if isinstance(module, Int8Linear):
            size += module.packed.numel()
        elif isinstance(module, PerCall):
            size += torch.ops.quantized.linear_unpack(module.packed)[0].numel()
    return size / 1e6


def published_seconds(encoder, inputs, arguments):
    values = {**encoder.config.to_dict(), "prune": False}
    with tempfile.TemporaryDirectory() as scratch:
        peer = PublishedEncoder(
            *(arguments.published, values, encoder.state_dict()),
            *(arguments.threads, scratch),
        )
        found = {}
        for seconds, x in inputs.items():
            peer.take(x)
            found[str(seconds)] = timed(peer, arguments, peer.process.pid)
        peer.close()
    return found


def timed(function, arguments, process="self"):
    """Median seconds of a call, of the clock or of the work of a process."""
    clock = time.perf_counter
    if arguments.cpu_time:
        clock = functools.partial(worked, process)
    function()
    own = []
    for _ in range(1 if arguments.toy else PASSES):
        start = clock()
        function()
        own.append(clock() - start)
    return statistics.median(own)


def worked(process):
    """Seconds that the threads of a process have worked."""
    files = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def error_rates(folder, precision, arguments):
    """EER in per cent of every list, and the embeddings of all its recordings."""
    lists = {Path(path).stem: read_trials(path) for path in arguments.trials}
    names = sorted(
        {name for trials in lists.values() for name in trials.names.tolist()}
    )
    verifier = SpeakerVerifier.from_hparams(
        folder, run_opts={"noprogressbar": True}, precision=precision
    )
    paths = [str(Path(arguments.test_folder or "", name)) for name in names]
    vectors = verifier.encode_files(paths)
    unit = nn.functional.normalize(vectors, dim=-1).numpy()
    place, rates = {name: row for row, name in enumerate(names)}, {}
    for name, trials in lists.items():
        rows = np.array([place[one] for one in trials.names.tolist()])
        scores = (unit[rows[trials.enrol]] * unit[rows[trials.test]]).sum(-1)
        rates[name] = 100 * equal_error_rate(scores, trials.labels).eer
    return rates, vectors


# -- report ----------------------------------------------------------------------------


def rows_of(found, name, way, arguments):
    """int8 beside another way → rows."""
    if way == "int8" or (name, "int8") not in found:
        return
    ours, theirs = found[name, "int8"], found[name, way]
    about = {"peer_name": way, "source": "features to all states"}
    short = Path(name).parent.name or name
    for seconds in arguments.seconds:
        both = ([f["seconds"][str(seconds)] for f in side] for side in (ours, theirs))
        mark = FASTER.get((name, seconds)) if way == PUBLISHED else None
        title = f"{short}, {seconds:g} s, beside {way}"
        yield summarise(title, "s", *both, mark=mark, **about)
    sizes = ([f["megabytes"] for f in side] for side in (ours, theirs))
    yield summarise(f"{short}, weights, beside {way}", "MB", *sizes, **about)
    for one in ours[0]["eer"]:
        both = ([f["eer"][one] for f in side] for side in (ours, theirs))
        about = {"peer_name": way, "source": f"{one}, cosine scores"}
        yield summarise(f"{short}, EER of {one}", "%", *both, **about)


def table(found, arguments):
    """Lines of a Markdown table."""
    lists = [Path(path).stem for path in arguments.trials]
    columns = [
        *("model", "way"),
        *(f"s for {seconds:g} s" for seconds in arguments.seconds),
        *("weights, MB", "cosine"),
        *(f"EER % {name}" for name in lists),
    ]
    yield f"| {' | '.join(columns)} |"
    yield "| --- " * len(columns) + "|"
    for (name, way), rounds in found.items():
        times = [
            f"{statistics.median(f['seconds'][str(s)] for f in rounds):.3f}"
            for s in arguments.seconds
        ]
        cosine, eer = rounds[0]["cosine"], rounds[0]["eer"]
        cells = [Path(name).parent.name or name, way, *times]
        cells += [f"{rounds[0]['megabytes']:.0f}"]
        cells += ["–" if cosine is None else f"{cosine:.5f}"]
        cells += [f"{eer[one]:.2f}" if one in eer else "–" for one in lists]
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
