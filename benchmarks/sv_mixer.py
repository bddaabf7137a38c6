"""SV-Mixer against the Transformer student that it is compared with, by length.

    python benchmarks/sv_mixer.py                # 12 layers × 1024, 1 to 60 s
    python benchmarks/sv_mixer.py --layers 2     # fewer layers, the same front end
    python benchmarks/sv_mixer.py --toy          # for CI

Both are students of this package with random weights: the same front end, as many
layers, the widths of arXiv 2509.14136's table 1 (half the multiply-adds a layer). Time
of the encoder, waveform → states, one recording at a time; the mixer's time MLP takes
recordings of any length in windows. Once behind WavLM's convolutions over the waveform,
as published, once behind w2v-BERT 2.0's features, which cost next to nothing.
``sv_mixer.png`` shows time against length.
"""

import statistics
from pathlib import Path

import torch
from harness import argument_parser, in_turns, report, summarise

from speechbrain_ext.lobes.sv_mixer import SVMixerEncoder, TransformerStudent
from speechbrain_ext.scoring.plots import new_figure, save_figure
from speechbrain_ext.utils.allocator import keep_freed_memory

# Seconds of audio, and what is promised there
MARKS = {3.0: 1.8, 10.0: None, 30.0: 3.0, 60.0: None}
DRAWN = (1.0, 3.0, 10.0, 20.0, 30.0, 45.0, 60.0)
STUDENTS = "SV-Mixer", "Transformer"
FRONT_ENDS = {"convolutions": "convolutions", "w2v_bert": "mel features"}
TOY = {"hidden_size": 32, "num_hidden_layers": 1}


def main(argv=None):
    """Run it."""
    parser = argument_parser(__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    lengths = (1.0, 2.0) if arguments.toy else sorted({*MARKS, *DRAWN})
    rows, curves = [], {}
    for front_end, title in FRONT_ENDS.items():
        models = students(front_end, arguments)
        both = [curves.setdefault(f"{n}, {title}", []) for n in STUDENTS]
        for seconds in lengths:
            wav = 0.1 * torch.randn(1, round(16000 * seconds))
            found = in_turns(
                [lambda m=m, wav=wav: m(wav) for m in models],
                arguments.rounds,
                1,
                toy=arguments.toy,
            )
            for curve, of_model in zip(both, found):
                curve.append(statistics.median(of_model))
            mark = None if arguments.toy else MARKS.get(seconds)
            if arguments.toy or seconds in MARKS:
                name = f"encoder behind {title}, {seconds:g} s of audio"
                about = {"peer_name": "Transformer student", "source": "this package"}
                rows.append(summarise(name, "s", *found, mark=mark, **about))
    report(rows, arguments)
    if not arguments.toy:
        draw(Path(__file__).with_name("sv_mixer.png"), lengths, curves)


def students(front_end, arguments):
    """(SV-Mixer, Transformer student), called without a gradient."""
    torch.manual_seed(0)
    layers = {"num_hidden_layers": arguments.layers, "front_end": front_end}
    mixer, transformer = dict(layers), dict(layers)
    if arguments.toy:
        toy = {**layers, **TOY}
        if front_end == "convolutions":
            toy["conv_dim"] = [8] * 7
        mixer = {**toy, "group_size": 8}
        transformer = {**toy, "num_attention_heads": 2, "intermediate_size": 64}
    models = SVMixerEncoder(mixer).eval(), TransformerStudent(transformer).eval()
    return [torch.inference_mode()(model) for model in models]


def draw(path, lengths, curves):
    """Seconds of computing over seconds of audio."""
    figure, axes = new_figure(6.0, 4.0)
    for number, (name, seconds) in enumerate(curves.items()):
        style = {"color": f"C{number % 2}", "linestyle": ("-", "--")[number // 2]}
        axes.plot(lengths, seconds, marker="o", label=name, **style)
    axes.set_xlabel("seconds of audio")
    axes.set_ylabel("seconds of computing")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    main()
