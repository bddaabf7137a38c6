"""A Space of the hub: compare two clips by a model in the format of speechbrain_ext.

> MODEL=owner/model python app.py
"""

import os

from speechbrain_ext.app import launch
from speechbrain_ext.inference import SpeakerVerifier

MODEL = os.environ.get("MODEL", "owner/model")  # or write the hub id of yours here

launch(SpeakerVerifier.from_hparams(MODEL), MODEL)
