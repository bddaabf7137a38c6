"""8 bits on a CPU: seconds, weights, cosine and EER of ways to multiply, in one table.

    python benchmarks/int8.py                        # w2v-BERT 2.0, dense
    python benchmarks/int8.py --published FOLDER     # and its published 0.8 structure
    python benchmarks/int8.py --toy                  # 4 layers × 64, 1 s, for CI
    python benchmarks/int8.py --models --pretrained_folder results/final \\
        --trials /data/trials.txt --test_folder /data/VoxCeleb1/wav    # one's own: EER

Ways: ``float32``; ``int8``, which precision="int8" loads; torch's own dynamic
quantisation of the same layers (one scale for all activations of a call); bf16
autocast. Features [1, T, …] → all hidden states, the same ones for all ways, which take
turns; ONNX Runtime, in float32 and in the 8 bits of ``export_onnx``, goes from waveform
to embedding, features and head included (not of the dense model, whose export needs
more than 24 GB). Cosines are those of embeddings to float32's. Seconds of random
weights are those of any; cosines are not. ``--cpu_time`` counts the seconds that
processors worked, with one thread a fair measure beside other programs.
"""

import functools
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from encoders import TOY
from harness import LeftOut, argument_parser, in_turns, report, summarise
from published import PublishedEncoder, pruned_configuration
from torch import nn
from transformers import Wav2Vec2BertConfig

from speechbrain_ext.export.onnx.export import export_onnx
from speechbrain_ext.inference import SpeakerVerifier
from speechbrain_ext.inference.onnx_runner import OnnxSpeakerEncoder
from speechbrain_ext.lobes.encoder import count_parameters, shared_copy
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.int8 import Int8Linear, in_int8, is_linear
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import (
    W2VBertEncoder,
    layer_shapes,
    with_layer_shapes,
)
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.scoring.metrics import equal_error_rate
from speechbrain_ext.scoring.trials import read_trials
from speechbrain_ext.utils.allocator import keep_freed_memory

SECONDS, ROUNDS = (1.0, 3.0, 10.0, 30.0), 3
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
RUNTIME = {"ONNX Runtime": False, "ONNX Runtime, 8 bits": True}
LARGEST = 200e6  # parameters of a model that is exported


def main(argv=None):
    parser = argument_parser(__doc__)
    add = parser.add_argument
    add("--models", nargs="*", choices=("dense", "0.8"), help="(default: both)")
    ways = [*WAYS, *RUNTIME]
    add("--ways", nargs="+", choices=ways, default=ways, metavar="WAY")
    add("--seconds", type=float, nargs="+", default=SECONDS, help="lengths, in place")
    add("--rounds", type=int, default=ROUNDS)
    add("--pretrained_folder", nargs="+", default=[], metavar="FOLDER")
    add("--trials", nargs="+", default=[], metavar="FILE", help="for the EER")
    add("--test_folder", default="", help="with the recordings of --trials")
    add("--cpu_time", action="store_true", help="seconds of work, not of the clock")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as the inference classes do
    asked = ("dense", "0.8") if arguments.models is None else arguments.models
    if arguments.toy:
        arguments.seconds, asked = [1.0], ("dense",)
    names = [name for name in asked if name != "0.8" or arguments.published]
    left_out = [LeftOut(f"{name}, int8", PUBLISHED) for name in asked[len(names) :]]
    found = {}
    for name in (*names, *arguments.pretrained_folder):
        found[name] = measured(name, arguments)
    rows = [row for name in found for row in rows_of(name, found[name], arguments)]
    report(rows + left_out, arguments, list(table(found, arguments)))


# -- one model -------------------------------------------------------------------------


def measured(name, arguments):
    """Way → dict of ``seconds`` (length → list), ``megabytes``, ``cosine``, ``eer``."""
    torch.manual_seed(0)
    folder = name if name in arguments.pretrained_folder else None
    model = load_pretrained(folder) if folder else random_model(name, arguments)
    ways = [way for way in arguments.ways if way in WAYS]
    models = {way: shared_copy(model.eval()) for way in ways}
    rate = model.encoder.sample_rate
    wav = 0.1 * torch.randn(1, 3 * rate)
    found, runs, clocks, given = {}, {}, {}, {}
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        exact = model(wav)
        for way, own in models.items():
            WAYS[way](own)
            cosine = float(torch.cosine_similarity(embedded(own, wav, way), exact, -1))
            found[way] = {"megabytes": megabytes(own), "cosine": cosine, "eer": {}}
            runs[way] = functools.partial(encoded, own, way)
        small = count_parameters(model).total < LARGEST
        for way in [way for way in arguments.ways if way in RUNTIME and small]:
            if arguments.toy and not RUNTIME[way]:
                continue  # an export takes seconds
            graph = exported(model, Path(scratch, way), RUNTIME[way], arguments)
            mine = torch.from_numpy(graph.embed(list(wav.numpy())))
            cosine = float(torch.cosine_similarity(mine, exact.squeeze(1), -1))
            size = sum(f.stat().st_size for f in Path(scratch, way).glob("model.onnx*"))
            found[way] = {"megabytes": size / 1e6, "cosine": cosine, "eer": {}}
            runs[way] = lambda x, graph=graph: graph.embed([given["wav"]])
        if arguments.published and not folder:
            peer = published(model.encoder, arguments, scratch)
            found[PUBLISHED] = {"megabytes": None, "cosine": None, "eer": {}}
            runs[PUBLISHED], clocks[PUBLISHED] = lambda x: peer(), peer.process.pid
        seconds = {way: {} for way in runs}
        for length in arguments.seconds:
            x = torch.randn(model.encoder.example(length)[0].shape)
            given["wav"] = 0.1 * torch.randn(round(length * rate)).numpy()
            if PUBLISHED in runs:
                peer.take(x)
            of_length = turns(runs, x, clocks, length, arguments)
            for way, own in zip(runs, of_length):
                seconds[way][length] = own
        if PUBLISHED in runs:
            peer.close()
    for way, own in seconds.items():
        found[way]["seconds"] = own
    if folder and arguments.trials:
        add_error_rates(found, folder, arguments)
    return found


def exported(model, folder, int8, arguments):
    """The graph of a model, from waveform to embedding."""
    folder.mkdir()
    export_onnx(model, folder / "model.onnx", int8=int8)
    options = {"threads": arguments.threads, "speech_detection": False}
    return OnnxSpeakerEncoder(folder / "model.onnx", **options)


def encoded(model, way, x):
    with torch.autocast("cpu", torch.bfloat16, way == "bf16"):
        model.encoder.encode(x)


def embedded(model, wav, way):
    with torch.autocast("cpu", torch.bfloat16, way == "bf16"):
        states, lens = model.encoder(wav)
    return model.head([state.float() for state in states], lens)


def turns(runs, x, clocks, length, arguments):
    """Seconds of each way, round by round, of the clock or of work."""
    functions = [functools.partial(run, x) for run in runs.values()]
    clock = None
    if arguments.cpu_time:
        clock = functools.partial(worked, ["self", *clocks.values()])
    rounds = arguments.rounds if length < 20 else 1
    return in_turns(functions, rounds, 0, toy=arguments.toy, clock=clock)


def worked(processes):
    """Seconds that the threads of processes have worked."""
    files = [f for p in processes for f in Path(f"/proc/{p}/task").glob("*/schedstat")]
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


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
        if isinstance(module, Int8Linear | PerCall):
            size += torch.ops.quantized.linear_unpack(module.packed)[0].numel()
    return size / 1e6


def published(encoder, arguments, scratch):
    """The published code with our weights, in a process of its own."""
    whole = with_layer_shapes(encoder.config, layer_shapes(encoder.config))
    values = {**whole.to_dict(), "prune": False}
    folder, weights = arguments.published, encoder.state_dict()
    return PublishedEncoder(folder, values, weights, arguments.threads, scratch)


def add_error_rates(found, folder, arguments):
    """EER in per cent of every list, and the lowest cosine of all its recordings."""
    lists = {Path(path).stem: read_trials(path) for path in arguments.trials}
    names = sorted({name for one in lists.values() for name in one.names.tolist()})
    paths = [str(Path(arguments.test_folder, f"{name}.wav")) for name in names]
    place, exact = {name: row for row, name in enumerate(names)}, None
    for way, precision in (("float32", "fp32"), ("int8", "int8")):
        options = {"run_opts": {"noprogressbar": True}, "precision": precision}
        vectors = SpeakerVerifier.from_hparams(folder, **options).encode_files(paths)
        exact = vectors if exact is None else exact
        unit = nn.functional.normalize(vectors, dim=-1).numpy()
        own = found[way]
        own["cosine"] = float(torch.cosine_similarity(vectors, exact, -1).min())
        for name, trials in lists.items():
            rows = np.array([place[one] for one in trials.names.tolist()])
            scores = (unit[rows[trials.enrol]] * unit[rows[trials.test]]).sum(-1)
            own["eer"][name] = 100 * equal_error_rate(scores, trials.labels).eer


# -- report ----------------------------------------------------------------------------


def rows_of(name, found, arguments):
    """int8 beside the other ways → rows."""
    ours, short = found.get("int8"), title(name)
    for way in [way for way in found if ours and way != "int8"]:
        theirs = found[way]
        whole = "there from waveform to embedding" if way in RUNTIME else ""
        about = {"peer_name": way, "source": whole or "features to all states"}
        for length in arguments.seconds:
            both = ours["seconds"][length], theirs["seconds"][length]
            mark = FASTER.get((name, length)) if way == PUBLISHED else None
            label = f"{short}, {length:g} s, beside {way}"
            yield summarise(label, "s", *both, mark=mark, **about)
        if theirs["megabytes"]:
            sizes = [ours["megabytes"]], [theirs["megabytes"]]
            yield summarise(f"{short}, weights, beside {way}", "MB", *sizes, **about)
        for one in theirs["eer"]:
            both = [ours["eer"][one]], [theirs["eer"][one]]
            yield summarise(f"{short}, EER of {one}", "%", *both, **about)


def title(name):
    """Of a trained model the name of its run."""
    path = Path(name)
    return path.parent.name if path.name == "final" else path.name


def table(found, arguments):
    """Lines of a Markdown table."""
    lists = [Path(path).stem for path in arguments.trials]
    columns = [
        *("model", "way"),
        *(f"s for {length:g} s" for length in arguments.seconds),
        *("weights, MB", "cosine"),
        *(f"EER % {name}" for name in lists),
    ]
    yield f"| {' | '.join(columns)} |"
    yield "| --- " * len(columns) + "|"
    for name, ways in found.items():
        for way, own in ways.items():
            cells = [title(name), way]
            cells += [f"{statistics.median(s):.3f}" for s in own["seconds"].values()]
            cells += [f"{own['megabytes']:.0f}" if own["megabytes"] else "–"]
            cells += [f"{own['cosine']:.5f}" if own["cosine"] else "–"]
            cells += [f"{own['eer'][k]:.2f}" if k in own["eer"] else "–" for k in lists]
            yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
