"""Arguments of ``onnx`` of ``python -m speechbrain_ext``.

What runs is in :mod:`speechbrain_ext.inference.onnx_export`, imported only then.
"""

import json


def add_onnx(commands):
    """Add ``onnx``."""
    about = "a trained model as one ONNX file, waveform to embedding, checked"
    parser = commands.add_parser("onnx", help=about, description=about)
    parser.add_argument(
        "--source",
        required=True,
        metavar="FOLDER",
        help="written by train.py, distill_prune.py, export or convert",
    )
    parser.add_argument(
        "--output", required=True, metavar="FILE.onnx", help="its report: FILE.json"
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="linear maps with 8-bit weights: a quarter of the size",
    )
    parser.add_argument(
        "--recordings",
        nargs="+",
        default=[],
        metavar="WAV",
        help="16 kHz, to measure 8-bit embeddings on, instead of made-up ones",
    )
    parser.set_defaults(run=run_onnx)


def run_onnx(arguments):
    """Export, print the report as JSON."""
    from speechbrain_ext.inference.onnx_export import export_onnx, require_extra
    from speechbrain_ext.pretrained import load_pretrained

    require_extra()  # before the model takes its time to load
    report = export_onnx(
        load_pretrained(arguments.source),
        arguments.output,
        int8=arguments.int8,
        check_files=arguments.recordings,
    )
    print(json.dumps(report, indent=1))
