"""What a tenth of a per cent costs: every model of the paper's table 1, in one picture.

    python benchmarks/models.py                       # all, in turns: about 15 minutes
    python benchmarks/models.py --models CAM++ ReDimNet2-B6
    python benchmarks/models.py --toy                 # two small ones, 1 s, for CI

Of arXiv 2510.04213's table 1, and of what has been published since: parameters,
multiply-adds of 1 s, seconds a second of audio takes at 3 and at 10 s, and peak memory,
against the error on Vox1-O and -H that its authors published. Weights are random: time
does not depend on them. Each model has a process of its own, and all take turns. The
peer of every row is w2v-BERT 2.0 with Adapter-MFA. ``models.png`` is drawn beside
RESULTS.md.
"""

import functools
import json
import math
import statistics
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from harness import argument_parser, in_new_process, peak_memory, report, summarise
from pruned_encoder import PROMISED, at_sparsity
from transformers import Wav2Vec2BertConfig

from speechbrain_ext.lobes.campplus import CAMPPlus
from speechbrain_ext.lobes.ecapa import ECAPA
from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.lobes.eres2net import ERes2NetV2
from speechbrain_ext.lobes.heads import ASP, TSTP, AdapterMFA, ECAPAPooling
from speechbrain_ext.lobes.redimnet import ReDimNet, ReDimNet2
from speechbrain_ext.lobes.resnet import ResNet, SimAMResNet
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.profiling import count_macs, recipe_model
from speechbrain_ext.scoring.plots import new_figure, save_figure
from speechbrain_ext.utils.allocator import keep_freed_memory

HPARAMS = Path(__file__).parents[1] / "recipes/VoxCeleb/SpeakerRec/hparams"
PEER = "w2v-BERT 2.0"
SECONDS, ROUNDS, PASSES = (3.0, 10.0), 2, 3
TOYS = ("CAM++", "ReDimNet-B0")
# Of the picture: height of a line of text, and between which costs many models lie
LINE, CROWD = 1.06, (0.15, 0.3)


class Model(NamedTuple):
    """A builder, and published EER % on Vox1-O and -H; None: not published.

    ``data`` is what its authors trained on: Vox2, or VB2 with VoxBlink2 as well.
    """

    build: callable
    eer_o: float | None
    eer_h: float | None
    data: str = "Vox2"


def ssl(name, config):
    """An SSL row of table 1: its file and its encoder's configuration."""
    files = HPARAMS / f"table1/stage1_{name}.yaml", HPARAMS / f"encoders/{config}.json"
    return lambda: recipe_model(*files)


def of_features(encoder, head, size=256, **options):
    """A network of features and its head."""

    def build():
        made = encoder()
        pooled = head(made.hidden_size, made.n_states, size, **options)
        return SpeakerEncoder(made, pooled)

    return build


# of ReDimNet and ReDimNet2
ASTP = functools.partial(ECAPAPooling, flavour="wespeaker"), 192


def w2v_bert(sparsity=0.0):
    """w2v-BERT 2.0 with Adapter-MFA; pruned by random gates."""
    encoder = W2VBertEncoder(Wav2Vec2BertConfig())
    head = AdapterMFA(encoder.hidden_size, encoder.n_states)
    if sparsity:
        encoder = at_sparsity(encoder.eval(), sparsity, 8)
    return SpeakerEncoder(encoder, head)


# Errors with large-margin fine-tuning and calibration, where the authors have them.
MODELS = {
    "ECAPA-TDNN": Model(of_features(ECAPA, ECAPAPooling, 192), 0.87, 2.12),
    "CAM++": Model(
        of_features(CAMPPlus, TSTP, 512, bias=False, embedding_norm=True), 0.73, 1.76
    ),
    "ERes2NetV2": Model(of_features(ERes2NetV2, TSTP, 192), 0.61, 1.45),
    "ResNet221": Model(of_features(lambda: ResNet("221"), TSTP), 0.51, 1.21),
    "ResNet293": Model(of_features(lambda: ResNet("293"), TSTP), 0.45, 1.18),
    "ReDimNet-B0": Model(of_features(lambda: ReDimNet("B0"), *ASTP), None, None),
    "ReDimNet-B6": Model(of_features(lambda: ReDimNet("B6"), *ASTP), 0.37, 1.0),
    "ReDimNet2-B6": Model(of_features(lambda: ReDimNet2("B6"), *ASTP), 0.29, 0.99),
    "SimAM-ResNet34": Model(
        of_features(lambda: SimAMResNet("34"), ASP), 0.37, 1.0, "VB2"
    ),
    "SimAM-ResNet100": Model(
        of_features(lambda: SimAMResNet("100"), ASP), 0.2, 0.8, "VB2"
    ),
    "SimAM-ResNet293": Model(
        of_features(lambda: SimAMResNet("293"), ASP), 0.17, 0.68, "VB2"
    ),
    "NeMo Conformer L + MFA": Model(
        ssl("nemo_mfa", "nemo_conformer_large"), 0.43, 1.35
    ),
    "HuBERT L + ECAPA": Model(ssl("hubert_ecapa", "hubert_large"), 0.59, 1.23),
    "XLSR-53 + ECAPA": Model(ssl("xlsr_ecapa", "wav2vec2_xlsr53"), 0.59, 1.14),
    "UniSpeech-SAT L + ECAPA": Model(
        ssl("unispeech_sat_ecapa", "unispeech_sat_large"), 0.54, 1.18
    ),
    "WavLM L + ECAPA": Model(ssl("wavlm_ecapa", "wavlm_large"), 0.38, 0.99),
    "WavLM L + CA-MHFA": Model(ssl("wavlm_camhfa", "wavlm_large"), 0.42, 0.96),
    "WavLM L + LAP": Model(ssl("wavlm_lap", "wavlm_large"), 0.37, 1.01),
    PEER: Model(w2v_bert, 0.12, 0.55, "VB2"),
    # 0.04 points behind the 0.14 % of the model with VoxBlink2
    f"{PEER}, a fifth": Model(lambda: w2v_bert(PROMISED), 0.18, None, "VB2"),
}


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--one", choices=MODELS, help="its figures alone, as JSON")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    lengths = (1.0,) if arguments.toy else SECONDS
    if arguments.one:
        print(json.dumps(measured(MODELS[arguments.one].build, lengths)))
        return
    names = list(arguments.models or (TOYS if arguments.toy else MODELS))
    peer = PEER if PEER in names else names[-1]
    found = {name: [] for name in names}
    for _ in range(1 if arguments.toy else arguments.rounds):
        for name, rounds in found.items():
            options = ["--threads", arguments.threads] + ["--toy"] * arguments.toy
            rounds.append(in_new_process(__file__, "--one", name, *options))
    rows = [
        summarise(
            f"{name}, {seconds:g} s of audio",
            *("s", *(times(found[side], seconds) for side in (name, peer))),
            peer_name=peer,
            source="the same package",
            ours_memory=median(found[name], "memory"),
            peer_memory=median(found[peer], "memory"),
        )
        for name in names
        if name != peer
        for seconds in lengths
    ]
    report(rows, arguments, list(table(found, lengths)))
    if not arguments.toy:
        draw(Path(__file__).with_name("models.png"), found)


def measured(build, lengths):
    """Of a model: parameters, multiply-adds of 1 s, seconds by length, MiB of 10 s."""
    torch.manual_seed(0)
    keep_freed_memory()  # as the inference classes do
    model = build().eval()
    figures = {
        "parameters": count_parameters(model).total,
        "macs": count_macs(model, 1.0),
    }
    with torch.inference_mode():
        for seconds in lengths:
            wav = 0.1 * torch.randn(1, round(16000 * seconds))
            own = []
            for _ in range(1 + PASSES):
                start = perf_counter()
                model(wav)
                own.append(perf_counter() - start)
            figures[f"{seconds:g}"] = statistics.median(own[1:])
        figures["memory"] = peak_memory(lambda: model(wav))[1] / 2**20
    return figures


def times(rounds, seconds):
    """Seconds of every round."""
    return [figures[f"{seconds:g}"] for figures in rounds]


def median(rounds, key):
    """Of every round's figure."""
    return statistics.median(figures[key] for figures in rounds)


def table(found, lengths):
    """Lines of a Markdown table, the most accurate model last."""
    columns = " | ".join(f"s per s at {seconds:g} s" for seconds in lengths)
    yield f"| model | parameters, M | G MACs of 1 s | {columns} | MiB | O | H | data |"
    yield "| --- |" + " --- |" * (6 + len(lengths))
    for name in sorted(found, key=lambda name: -(MODELS[name].eer_o or 9)):
        rounds, model = found[name], MODELS[name]
        cells = [f"{median(rounds, f'{s:g}') / s:.4f}" for s in lengths]
        errors = [
            "–" if eer is None else f"{eer:.2f}" for eer in (model.eer_o, model.eer_h)
        ]
        sizes = median(rounds, "parameters") / 1e6, median(rounds, "macs") / 1e9
        sizes = [f"{sizes[0]:.1f}", f"{sizes[1]:.2f}"]
        cells = [*sizes, *cells, f"{median(rounds, 'memory'):.0f}", *errors, model.data]
        yield f"| {name} | " + " | ".join(cells) + " |"


def draw(path, found):
    """Published EER on Vox1-O over the seconds that a second of audio takes at 10 s."""
    figure, axes = new_figure(8.0, 5.0)
    colours = {"Vox2": "tab:blue", "VB2": "tab:orange"}
    length = SECONDS[-1]
    published = [name for name in found if MODELS[name].eer_o is not None]
    lowest = math.inf
    for name in sorted(published, key=lambda name: -MODELS[name].eer_o):
        rounds, model = found[name], MODELS[name]
        cost = median(rounds, f"{length:g}") / length
        size = 12 * (median(rounds, "parameters") / 1e6) ** 0.5
        axes.scatter(cost, model.eer_o, size, colours[model.data], alpha=0.6)
        x, y, line = 1.1 * cost, model.eer_o, None
        if CROWD[0] < cost < CROWD[1]:  # names in a column, one below the other
            x, y = 1.1 * CROWD[1], min(y, lowest / LINE)
            lowest, line = y, {"arrowstyle": "-", "lw": 0.4, "color": "grey"}
        about = {"va": "center", "fontsize": 7, "arrowprops": line}
        axes.annotate(name, (cost, model.eer_o), (x, y), **about)
    for data, label in (("Vox2", "VoxCeleb2"), ("VB2", "VoxBlink2 as well")):
        axes.scatter([], [], 60, colours[data], alpha=0.6, label=f"trained on {label}")
    axes.set_xscale("log")
    axes.set_xlim(right=1.5)  # room for names
    axes.set_yscale("log")
    axes.set_yticks([0.1, 0.2, 0.3, 0.5, 1.0], ["0.1", "0.2", "0.3", "0.5", "1"])
    axes.yaxis.set_minor_formatter("")
    axes.set_xlabel(f"seconds of computing for a second of audio, at {length:g} s")
    axes.set_ylabel("published EER on Vox1-O, %")
    axes.legend(fontsize=8, title="area: root of the parameters", title_fontsize=8)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
