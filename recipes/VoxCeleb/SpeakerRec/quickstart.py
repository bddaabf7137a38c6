#!/usr/bin/env python3
"""The whole recipe on a demonstration corpus, in a few minutes on two CPU cores.

    make quickstart          (or: python recipes/VoxCeleb/SpeakerRec/quickstart.py)

It is the chain chains/quickstart.yaml: scripts and YAML files of this recipe, with a
tiny encoder in place of w2v-BERT 2.0 and a few overrides that fit its size. Every
command is printed, so that it can be copied; stopped, it continues. The voices are
synthetic and the encoder starts from random weights: this shows the pipeline, not the
accuracy.
"""

from pathlib import Path

from speechbrain_ext.chains.runner import run_chain
from speechbrain_ext.chains.stages import read_chain
from speechbrain_ext.utils.command import Parser
from speechbrain_ext.utils.errors import command_line

HERE = Path(__file__).resolve().parent


@command_line
def main():
    """Read where all goes, run the chain."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", default="quickstart", help="where all goes")
    words = [f"--output_folder={parser.parse_args().folder}"]
    run_chain(read_chain(HERE / "chains" / "quickstart.yaml", words, HERE))


if __name__ == "__main__":
    main()
