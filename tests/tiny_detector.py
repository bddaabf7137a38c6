"""Folders of a tiny spoofing detector, for several tests."""

import numpy as np
import torch
from tiny_encoder import noise, randomise
from tiny_extraction import make_model

from speechbrain_ext.inference.detector import SpoofingDetector
from speechbrain_ext.inference.thresholds import Thresholds, save_thresholds
from speechbrain_ext.lobes.heads import Detection
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.scoring.calibration import QualityCalibrator

PRIOR = (0.7, 0.3)  # spoof, bona fide


def make_detector_model(seed=0, **options):
    """Random, in eval mode; statistics and priors are of their own."""
    model = make_model(**options)
    model = randomise(SpeakerEncoder(model.encoder, Detection(model.head)), seed)
    norm = model.head.norm
    norm.running_mean.copy_(0.1 * noise(norm.num_features))
    norm.running_var.copy_(0.05 + 0.02 * noise(norm.num_features).abs())
    model.head.log_prior.copy_(torch.tensor(PRIOR).log())
    return model.eval()


def make_detector(path, calibrated=True, inference=None, **options):
    """Made-up voices are tones, which are no speech: they are scored as they are."""
    inference = {"speech_detection": False, **(inference or {})}
    folder = save_pretrained(path, make_detector_model(**options), inference=inference)
    if calibrated:
        generator = np.random.default_rng(3)
        labels = np.arange(400) % 4 == 0
        scores = generator.normal(np.where(labels, 1.0, -1.0), 1.0)
        QualityCalibrator(["llr"]).fit(scores[:, None], labels).save(
            folder / "calibration.json"
        )
        curve = Thresholds.from_scores(scores, labels)
        save_thresholds(folder / "thresholds.json", {"llr": curve})
    return folder


def load_detector(folder, **options):
    run_opts = {"device": "cpu", "noprogressbar": True}
    return SpoofingDetector.from_hparams(folder, run_opts=run_opts, **options)
