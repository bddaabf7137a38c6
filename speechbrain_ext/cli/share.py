"""``export``, ``push``, ``convert`` and ``onnx``: a model as others take it."""

import argparse
import json
import logging
import sys


def add_share(commands):
    """Add ``export``, ``push``, ``convert``, ``onnx``."""
    for add in (_add_export, _add_push, _add_convert, _add_onnx):
        add(commands)


def _add_export(commands):
    about = "a trained model as a folder to share, with thresholds and model card"
    parser = commands.add_parser("export", help=about, description=about)
    parser.add_argument(
        "--pretrained_folder",
        required=True,
        help="end state of train.py, distill_prune.py or convert",
    )
    parser.add_argument(
        "--results",
        help="output folder of verify.py, of a spoofing detector of evaluate.py: "
        "figures, cohort, calibration, thresholds",
    )
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--name", help="owner/name on the hub, for the card")
    parser.add_argument("--licence", help="apache-2.0, cc-by-4.0, mit, other, …")
    parser.add_argument(
        "--language",
        nargs="+",
        default=[],
        dest="languages",
        metavar="LANGUAGE",
        help="of the training: en zh …",
    )
    parser.add_argument("--training_data", help="in words: VoxCeleb2")
    parser.add_argument(
        "--thresholds_from",
        nargs="+",
        default=[],
        metavar="KIND=FILE",
        help="scores (.txt, .npz) of trials of your own, instead of the calibration's; "
        "KIND is cosine, as_norm or llr",
    )
    parser.add_argument("--trials", help="their trial list, for the labels")
    parser.add_argument(
        "--without_cohort",
        action="store_false",
        dest="with_cohort",
        help="leave out the training speakers' means: no AS-norm, no calibration of it",
    )
    parser.add_argument(
        "--with_classifier",
        action="store_true",
        help="also the classifier and the training speakers' names, to train on",
    )
    parser.add_argument(
        "--half", action="store_true", help="store weights in 16 bits: half the size"
    )
    parser.add_argument(
        "--card_template",
        help="model card in words of your own: hparams_templates/model_card.md",
    )
    parser.set_defaults(run=run_export)


def run_export(arguments):
    """Export; remarks go to stderr, the folder to stdout."""
    from speechbrain_ext.export.folder import export_model

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    options = {key: value for key, value in vars(arguments).items() if key != "run"}
    facts = export_model(**options)
    if facts.thresholds:
        print(f"thresholds: {facts.threshold_source}", file=sys.stderr)
    print(f"files: {', '.join(facts.files)}", file=sys.stderr)
    print(arguments.output)


def _add_push(commands):
    about = "an exported folder to the Hugging Face hub"
    parser = commands.add_parser("push", help=about, description=about)
    parser.add_argument("folder", help="written by export")
    parser.add_argument("--name", help="owner/name (default: as exported)")
    parser.add_argument(
        "--public", action="store_true", help="for everybody (default: private)"
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="check, and show what would be sent: no network",
    )
    parser.add_argument(
        "--message", default="Upload model", help="of the commit (default: %(default)s)"
    )
    parser.set_defaults(run=run_push)


def run_push(arguments):
    """Show the plan, then the address of what was uploaded."""
    from speechbrain_ext.export.hub import plan_push, push

    plan = plan_push(arguments.folder, arguments.name, not arguments.public)
    for line in plan.lines():
        print(line, file=sys.stdout if arguments.dry_run else sys.stderr)
    if arguments.dry_run:
        print("dry run: nothing was sent")
    else:
        print(push(plan, arguments.message))


def _add_convert(commands):
    about = "a published checkpoint to a pretrained folder"
    parser = commands.add_parser("convert", help=about, description=about)
    parser.add_argument(
        "checkpoint", help="the published file; or a transformers folder or hub id"
    )
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--kind", help="its format (default: as its tensors say)")
    parser.add_argument(
        "--formats", action=_ListFormats, nargs=0, help="list the formats and leave"
    )
    parser.add_argument(
        "--encoder_config",
        help="JSON that came with a pruned model (default: widths from the weights)",
    )
    parser.add_argument(
        "--lora_alpha",
        type=float,
        help="of LoRA that is not merged (default: 2 · rank, as published)",
    )
    parser.add_argument(
        "--encoder",
        help="hubert, wav2vec2 or unispeech_sat, where the tensors do not tell",
    )
    parser.add_argument(
        "--last_state",
        choices=("raw", "normalised"),
        help="that the head was trained on (default: as the published code does)",
    )
    parser.add_argument(
        "--input_scale",
        type=float,
        help="by which the published code multiplies a waveform of ±1",
    )
    parser.add_argument("--licence", help="of the weights, kept in training.json")
    parser.set_defaults(run=run_convert)


class _ListFormats(argparse.Action):
    """Print every format with its title, and leave."""

    def __call__(self, parser, *_):
        from speechbrain_ext.export.published.convert import formats

        for name, module in formats().items():
            print(f"{name}: {module.TITLE}")
        parser.exit()


def run_convert(arguments):
    """Convert; what was found goes to stderr, the folder to stdout."""
    from speechbrain_ext.inference import convert_released

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    options = {k: v for k, v in vars(arguments).items() if k not in ("run", "formats")}
    folder = convert_released(output_dir=options.pop("output"), **options)
    print(folder)


def _add_onnx(commands):
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
    from speechbrain_ext.export.onnx.export import export_onnx, require_extra
    from speechbrain_ext.inference.detector import complete_detector
    from speechbrain_ext.pretrained import INFERENCE, load_hyperparams

    require_extra()  # before the model takes its time to load
    hparams, calibrator = load_hyperparams(arguments.source), None
    if hparams["speaker_encoder"].head.used_by == "SpoofingDetector":
        calibrator = complete_detector(arguments.source, hparams).calibrator
    report = export_onnx(
        hparams["speaker_encoder"],
        arguments.output,
        int8=arguments.int8,
        check_files=arguments.recordings,
        inference={key: hparams[key] for key in INFERENCE if key in hparams},
        calibrator=calibrator,
    )
    print(json.dumps(report, indent=1))
