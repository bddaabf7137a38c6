"""The recipe's scripts, called as by the command line, without its start."""

import functools
import importlib
import os
import socket
import sys
from pathlib import Path

import speechbrain.utils.logger
from tiny_training import start, tiny_config, write_corpus, write_voices

REPOSITORY = Path(__file__).parents[2]
RECIPE = REPOSITORY / "recipes/VoxCeleb/SpeakerRec"
HPARAMS = RECIPE / "hparams"
ANTISPOOFING = REPOSITORY / "recipes/ASVspoof5/AntiSpoofing"


def script(name, recipe=RECIPE):
    """train, verify, evaluate: imported from the folder of a recipe that has it."""
    for folder in (recipe, ANTISPOOFING):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return importlib.import_module(name)


def run_script(name, *words, recipe=RECIPE):
    """Call main() in a recipe's folder with these words on its command line.

    Changes the process: only for one that a test started.
    """
    module = script(name, recipe)
    # It asks pip for all that is installed: most of the time of a tiny run.
    speechbrain.utils.logger.get_environment_description = lambda: "left out in tests"
    os.chdir(recipe)
    sys.argv = [f"{name}.py", *map(str, words)]
    module.main()


def run_until(name, place, ending, *words, recipe=RECIPE):
    """Run, but a signal comes in the middle of (epoch, step)."""
    module = script(name, recipe)

    class Stopped(module.SpeakerBrain):
        def compute_objectives(self, *arguments):
            if place == (self.hparams.epoch_counter.current, self.step):
                os.kill(os.getpid(), ending)
            return super().compute_objectives(*arguments)

    module.SpeakerBrain = Stopped
    run_script(name, *words, recipe=recipe)


def run(name, words, stderr, seconds=100, recipe=RECIPE):
    """A script in a process of its own → (exit code, lines on stderr)."""
    function = functools.partial(run_script, recipe=recipe)
    process = start(function, name, *words, stderr=stderr)
    process.join(seconds)
    process.kill()
    return process.exitcode, Path(stderr).read_text().splitlines()


def run_on_two(name, words, folder, function=run_script):
    """A script on two ranks as torchrun starts it → exit codes, stderr of each.

    ``function`` is called as :func:`run_script` is.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [
        start(
            *(function, name, *words),
            stderr=folder / f"stderr{rank}",
            RANK=rank,
            LOCAL_RANK=rank,
            WORLD_SIZE=2,
            MASTER_ADDR="localhost",
            MASTER_PORT=port,
        )
        for rank in range(2)
    ]
    for process in processes:
        process.join(100)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes, [(folder / f"stderr{rank}").read_text() for rank in range(2)]


def write_recipe_corpus(folder):
    """Voices to train on and to test, a trial list, noises, a tiny encoder.

    ``voices``: 6 speakers × 7 recordings of 0.7 s; ``test``: 2 others.
    """
    write_corpus(folder)
    write_voices(folder / "test", n_speakers=2, n_utterances=3, first=6)
    names = [f"id{s:02d}/s{t % 2}/{t:05d}.wav" for s in (6, 7) for t in range(3)]
    lines = [
        f"{int(a[:4] == b[:4])} {a} {b}\n"
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    (folder / "trials.txt").write_text("".join(lines))
    tiny_config().to_json_file(folder / "tiny.json", use_diff=False)
    return folder


def data_words(corpus):
    """Where the data are, for any training YAML with noise."""
    return [
        f"--train_folders={corpus}/voices",
        f"--test_folders={corpus}/test",
        f"--trial_lists={corpus}/trials.txt",
        f"--musan_folder={corpus}/musan",
        f"--rirs_folder={corpus}/rirs",
    ]


# Epochs of 7 steps: 4 of the 6 speakers train.
SMALL = [
    *("--n_valid_speakers=2", "--batch_size=4", "--num_workers=0"),
    *("--crop_seconds=[0.4, 0.6]", "--number_of_epochs=2", "--noprogressbar"),
    *("--embedding_size=16",),
]
