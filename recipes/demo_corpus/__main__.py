"""Make the demonstration corpus.

> python recipes/demo_corpus FOLDER
> python recipes/demo_corpus FOLDER --train_speakers 8 --seed 1
"""

import sys
from pathlib import Path

from speechbrain_ext.utils.command import Parser
from speechbrain_ext.utils.errors import command_line

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demo_corpus.corpus import make_demo_corpus


@command_line
def main(argv=None):
    """Read the command line, make the corpus, print where its parts are."""
    parser = Parser(
        prog="python recipes/demo_corpus",
        description="Make a small synthetic corpus in the layout of VoxCeleb, MUSAN, "
        "RIRS_NOISES and ASVspoof 5. Needs the extra: pip install '.[demo]' in this "
        "checkout.",
    )
    parser.add_argument("folder", help="where to put it; must not exist yet")
    for option, default, help_text in (
        ("--train_speakers", 24, "speakers in voxceleb2/dev"),
        ("--test_speakers", 10, "speakers in voxceleb1"),
        ("--sessions", 3, "sessions of each speaker, at least 2"),
        ("--utterances", 4, "utterances of each session"),
        ("--seed", 7, "the same seed gives the same bytes"),
        ("--spoofs", 2, "spoofs of each bona fide recording in spoof; 0: no spoof"),
    ):
        parser.add_argument(
            option, type=int, default=default, help=f"{help_text} (default: {default})"
        )
    args = parser.parse_args(argv)
    corpus = make_demo_corpus(
        args.folder,
        n_train_speakers=args.train_speakers,
        n_test_speakers=args.test_speakers,
        sessions=args.sessions,
        utterances=args.utterances,
        seed=args.seed,
        spoofs=args.spoofs,
    )
    for name, path in corpus._asdict().items():
        if path:
            print(f"{name:10s} {path}")


if __name__ == "__main__":
    main()
