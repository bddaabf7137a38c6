"""What SpeechBrain's own classes load a model's folder by, from a disk or from the hub.

    SpeakerRecognition.from_hparams(source="owner/name")
    EncoderClassifier.from_hparams(source="a/folder")
    foreign_class("a/folder", pymodule_file="custom_interface.py",
                  classname="SpeakerVerifier")

They read hyperparams.yaml wherever it lies, build its modules, and have its pretrainer
fetch and load the rest. They compute features, normalise them, then embed: our encoder
does all three, and the first two are passed through.
"""

import torch
from speechbrain.utils.fetching import FetchSource
from speechbrain.utils.parameter_transfer import Pretrainer

from speechbrain_ext.inference import verifier
from speechbrain_ext.inference.folder import complete_model, find_folder
from speechbrain_ext.pretrained import check_config, load_model_weights


class PassThrough(torch.nn.Module):
    """Gives back what it gets, with or without lengths."""

    def forward(self, x, lengths=None):
        """x → x."""
        return x


class FolderPretrainer(Pretrainer):
    """Loads the weights of a model's folder, strictly: SpeechBrain's own only warns.

    Arguments
    ---------
    speaker_encoder : SpeakerEncoder
        Gets the weights.

    Attributes
    ----------
    folder : Path or None
        Where the model lies, once its files are collected.
    """

    def __init__(self, speaker_encoder):
        super().__init__()
        self.speaker_encoder, self.folder = speaker_encoder, None

    def collect_files(
        self, default_source=None, local_strategy=None, fetch_config=None
    ):
        """Find the folder, or fetch it from the hub into the hub's cache.

        Raises
        ------
        InputError
            As :func:`~speechbrain_ext.inference.folder.find_folder`.
        """
        if isinstance(default_source, FetchSource):
            default_source = default_source[1]
        self.folder = find_folder(default_source, fetch_config=fetch_config)
        return {}

    def load_collected(self):
        """Load the weights.

        Raises
        ------
        InputError
            A tensor that is missing, of another shape, or one too many; an
            encoder_config.json of another model.
        """
        check_config(self.folder)
        load_model_weights(self.speaker_encoder, self.folder)


class SpeakerVerifier(verifier.SpeakerVerifier):
    """For ``foreign_class``, which makes it of what it has loaded.

    Arguments
    ---------
    modules, hparams : dict
        Of hyperparams.yaml, its pretrainer done.
    run_opts, freeze_params
        As for :class:`~speechbrain_ext.inference.SpeakerVerifier`.
    """

    def __init__(self, modules, hparams, run_opts=None, freeze_params=True):
        folder = hparams["pretrainer"].folder
        model = complete_model(folder, hparams)
        super().__init__(model, folder, run_opts, freeze_params)
