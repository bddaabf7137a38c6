"""Arguments of ``python -m speechbrain_ext convert``.

What runs is :func:`speechbrain_ext.inference.convert.convert_released`, imported only
then.
"""

import sys


def add_convert(commands):
    """Add ``convert``: a published checkpoint → a pretrained folder."""
    parser = commands.add_parser(
        "convert", help="a published checkpoint of w2v-BERT 2.0 to a pretrained folder"
    )
    parser.add_argument("checkpoint", help="the published .pth file")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument(
        "--encoder_config",
        help="JSON that came with a pruned model (default: widths from the weights)",
    )
    parser.add_argument(
        "--lora_alpha",
        type=float,
        help="of LoRA that is not merged (default: 2 · rank, as published)",
    )
    parser.add_argument("--licence", help="of the weights, kept in training.json")
    parser.set_defaults(run=run_convert)


def run_convert(arguments):
    """Convert; what was found goes to stderr, the folder to stdout."""
    import logging

    from speechbrain_ext.inference.convert import LICENCE, convert_released

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    folder = convert_released(
        arguments.checkpoint,
        arguments.output,
        arguments.encoder_config,
        arguments.lora_alpha,
        arguments.licence or LICENCE,
    )
    print(folder)
