"""Made-up corpora in CN-Celeb's true layout, and the recipe that prepares them."""

from pathlib import Path

import numpy as np
import soundfile
from tiny_training import voice

REPOSITORY = Path(__file__).parents[2]
RECIPE = REPOSITORY / "recipes/CNCeleb/SpeakerRec"
DEV = [f"id{n:05d}" for n in range(3)]
EVAL = [f"id{n:05d}" for n in (800, 801, 802, 803)]
SECOND = [f"id{n:05d}" for n in (10000, 10001, 10002)]
# Of every speaker: (genre-session, seconds of its recordings).
TAKES = {
    "interview-01": (0.5, 0.7, 0.5, 0.6),
    "interview-02": (0.5,),
    "singing-01": (0.8, 0.6),
    "live_broadcast-01": (1.3,),
}
JOIN_SECONDS = 1.0


def write_take(path, speaker, seconds, generator):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, voice(int(speaker[2:]) % 13, seconds, generator), 16000)


def write_speaker(folder, speaker, generator, extension="flac"):
    for session, lengths in TAKES.items():
        for number, seconds in enumerate(lengths, 1):
            path = folder / f"data/{speaker}/{session}-{number:03d}.{extension}"
            write_take(path, speaker, seconds, generator)


def write_cnceleb(folder, extension="flac"):
    """CN-Celeb_flac and CN-Celeb2_flac below a folder → both.

    3 + 3 training speakers of 8 recordings each. Four of the evaluation; of each, the
    first two recordings of an interview enrol a model, and four others are tested. The
    last has no model, as four of the true ones.
    """
    generator = np.random.default_rng(0)
    first, second = Path(folder) / "CN-Celeb_flac", Path(folder) / "CN-Celeb2_flac"
    for speaker in DEV + EVAL:
        write_speaker(first, speaker, generator, extension)
    for speaker in SECOND:
        write_speaker(second, speaker, generator, extension)
    write_lines(first / "dev/dev.lst", DEV)
    write_lines(second / "spk.lst", SECOND)
    tests = []
    for speaker in EVAL:
        joined = []
        for number in (1, 2):
            path = first / f"data/{speaker}/interview-01-{number:03d}.{extension}"
            joined.append(soundfile.read(path)[0])
        if speaker != EVAL[-1]:
            path = first / f"eval/enroll/{speaker}-enroll.{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.concatenate(joined), 16000)
        for session in ("interview-03-001", "interview-03-002", "singing-02-001"):
            name = f"test/{speaker}-{session}"
            write_take(first / f"eval/{name}.{extension}", speaker, 0.7, generator)
            tests.append(f"{name}.wav")
    write_lists(first / "eval/lists", EVAL[:-1], tests)
    return first, second


def write_lists(folder, models, tests):
    """The three lists, all models against all tests; names end in .wav."""
    maps = [f"interview-01-{number:03d}.wav" for number in (1, 2)]
    write_lines(
        folder / "enroll.map",
        [f"{m}-enroll " + " ".join(f"{m}/{name}" for name in maps) for m in models],
    )
    write_lines(
        folder / "enroll.lst", [f"{m}-enroll enroll/{m}-enroll.wav" for m in models]
    )
    write_lines(folder / "test.lst", tests)
    write_lines(
        folder / "trials.lst",
        [
            f"{m}-enroll {test} {int(test[5:].startswith(m))}"
            for m in models
            for test in tests
        ],
    )


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def make_arguments(folder):
    """A corpus below a folder, and the arguments to prepare it."""
    first, second = write_cnceleb(folder)
    return {
        "cnceleb1_folder": first,
        "cnceleb2_folder": second,
        "save_folder": Path(folder) / "save",
        "join_seconds": JOIN_SECONDS,
        "n_valid_speakers": 2,
    }
