"""A Space of the hub: compare two clips by a model in the format of speechbrain_ext.

> MODEL=owner/model python app.py

With DETECTOR=owner/detector it also says whether the voices are real.
"""

import os

from speechbrain_ext.app import launch
from speechbrain_ext.inference import SpeakerVerifier, SpoofingDetector

MODEL = os.environ.get("MODEL", "owner/model")  # or write the hub id of yours here
DETECTOR = os.environ.get("DETECTOR")  # of a spoofing detector; None: there is none

detector = SpoofingDetector.from_hparams(DETECTOR) if DETECTOR else None
launch(SpeakerVerifier.from_hparams(MODEL), MODEL, detector=detector)
