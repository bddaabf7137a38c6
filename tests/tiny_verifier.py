"""Folders of a tiny model, with and without a back-end, for several tests."""

import numpy as np
import soundfile
import torch
from tiny_encoder import randomise
from tiny_extraction import make_model
from tiny_training import voice

from speechbrain_ext.inference.thresholds import Thresholds, save_thresholds
from speechbrain_ext.inference.verifier import SpeakerVerifier
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.scoring.backend import Backend, TrialSide, fit_calibrator
from speechbrain_ext.scoring.calibration.trials import draw_calibration_trials
from speechbrain_ext.scoring.cohort import save_cohort, speaker_means

CPU = {"device": "cpu"}
TOP_N = 4


def write_voice(path, number=0, seconds=1.0, seed=0, rate=16000, **options):
    """One recording of a made-up voice → its path as text."""
    generator = np.random.default_rng(seed)
    wav = voice(number, seconds, generator, rate)
    soundfile.write(path, wav, rate, **{"subtype": "PCM_16", **options})
    return str(path)


def make_folder(path, seed=0, inference=None, **options):
    """A folder without calibration, cohort and thresholds.

    Made-up voices are tones, which are no speech: they are embedded as they are.
    """
    model = randomise(make_model(), seed)
    inference = {"speech_detection": False, **(inference or {})}
    return save_pretrained(path, model, inference=inference, **options)


def make_whole(root):
    """A folder with cohort, calibration and thresholds, and the voices behind them."""
    folder = make_folder(root / "model", inference={"as_norm_top_n": 4})
    add_backend(folder, root / "voices")
    return folder


def load(folder, **options):
    return SpeakerVerifier.from_hparams(folder, run_opts=CPU, **options)


def add_backend(folder, wav_folder, with_cohort=True, with_durations=True):
    """Cohort, calibrator and thresholds as a verification makes them → the Backend.

    From 8 voices × 4 recordings of the cohort's, and as many others for calibration.
    """
    verifier, backend = load(folder), Backend(top_n=TOP_N)
    embedded = [_voices(verifier, wav_folder, first) for first in (0, 8)]
    if with_cohort:
        side, speakers = embedded[0]
        cohort = speaker_means(side.vectors, speakers)
        save_cohort(folder / "cohort.npz", cohort)
        backend = Backend(cohort, top_n=TOP_N)
    side, speakers = embedded[1]
    trials = draw_calibration_trials(speakers, side.durations, 60, 0.8, 0.1)
    if not with_durations:
        side = side._replace(durations=None)
    backend = fit_calibrator(backend, side, speakers, trials, l2=0.01)
    backend.calibrator.save(folder / "calibration.json")
    rows = np.stack([trials.enrol, trials.test], axis=1)
    scores = backend.scores(side, side, rows)
    thresholds = {
        k: Thresholds.from_scores(s, trials.labels) for k, s in scores.items()
    }
    save_thresholds(folder / "thresholds.json", thresholds)
    return backend


def plain(model, path):
    """A 16 kHz mono recording embedded alone, without any of what is tested."""
    wav = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    with torch.no_grad():
        return model(wav[None])[0, 0].numpy()


def _voices(verifier, folder, first):
    folder.mkdir(exist_ok=True)
    paths, speakers = [], []
    for number in range(first, first + 8):
        for take in range(4):
            path = folder / f"{number}_{take}.wav"
            seconds = 0.5 + 0.2 * take
            paths.append(write_voice(path, number, seconds, 10 * number + take))
            speakers.append(f"v{number}")
    vectors = verifier.encode_files(paths).numpy()
    seconds = np.array([soundfile.info(path).duration for path in paths])
    return TrialSide(vectors, seconds), np.array(speakers)
