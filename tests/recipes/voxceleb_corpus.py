"""Made-up corpora in VoxCeleb's shape, and the recipe that prepares them."""

import itertools
from pathlib import Path

import numpy as np
import soundfile

from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.scoring.trials import read_trials, rows_of

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "recipes/VoxCeleb/SpeakerRec/voxceleb_prepare.py"
N_SPEAKERS = 12


def write_noise(path, seconds=0.5, rate=16000, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    noise = rng.standard_normal((round(seconds * rate), channels)) * 0.1
    soundfile.write(path, noise, rate)


def make_corpus(folder, extension="wav", n_speakers=N_SPEAKERS):
    """Speakers id00... of two sessions, 3 + 2 recordings of 0.5 s each."""
    for number, (session, size) in itertools.product(
        range(n_speakers), (("a", 3), ("b", 2))
    ):
        for take in range(size):
            name = f"id{number:02d}/{session}/{take:05d}.{extension}"
            write_noise(folder / name)


def make_arguments(tmp_path):
    """12 speakers; a trial list of speakers 0 and 1; arguments to prepare them."""
    make_corpus(tmp_path / "vox/wav")
    (tmp_path / "trials.txt").write_text(
        "1 id00/a/00000.wav id00/b/00001.wav\n"
        "0 id00/a/00000.wav id01/a/00000.wav\n"
        "0 id01/b/00000.wav id00/b/00001.wav\n"
    )
    return {
        "train_folders": tmp_path / "vox",
        "save_folder": tmp_path / "save",
        "trial_lists": tmp_path / "trials.txt",
        "n_valid_speakers": 3,
    }


def check_no_leak(prepared, trial_lists):
    """No speaker is in two of training, validation and test."""
    train, valid, test = (read_manifest(p) for p in prepared[:2] + prepared[3:4])
    speakers = [set(m.speaker_names.tolist()) for m in (train, valid, test)]
    assert sum(map(len, speakers)) == len(set.union(*speakers))
    for path in trial_lists:
        trials = read_trials(path)
        rows_of(trials, test.ids, "test.csv")
        of_trials = {name.split("/")[0] for name in trials.names.tolist()}
        assert of_trials.isdisjoint(speakers[0] | speakers[1])
    trials = read_trials(prepared.valid_trials)
    rows_of(trials, valid.ids, "valid.csv")
    assert trials.n_target == trials.n_nontarget > 0
    names = trials.names.tolist()
    for a, b, label in zip(trials.enrol, trials.test, trials.labels):
        assert a != b
        assert (names[a].split("/")[0] == names[b].split("/")[0]) == label
    return train, valid, test
