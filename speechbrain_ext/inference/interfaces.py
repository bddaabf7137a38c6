"""What SpeechBrain's own classes load a model's folder by, from a disk or from the hub.

    SpeakerRecognition.from_hparams(source="owner/name")
    EncoderClassifier.from_hparams(source="a/folder")
    foreign_class("a/folder", pymodule_file="custom_interface.py",
                  classname="SpeakerVerifier")

They read hyperparams.yaml wherever it lies, build its modules, and have its pretrainer
fetch and load the rest. They compute features, normalise them, then embed: our encoder
does all three, and the first two are passed through. The modules are made with random
weights first; the pretrainer, which is made last, puts the caller's random state back.
"""

import torch
from speechbrain.utils.fetching import FetchSource
from speechbrain.utils.parameter_transfer import Pretrainer

from speechbrain_ext.inference import detector, verifier
from speechbrain_ext.inference.folder import complete_model, find_folder
from speechbrain_ext.pretrained import check_config, load_model_weights


class PassThrough(torch.nn.Module):
    """Gives back what it gets, with or without lengths."""

    def forward(self, x, lengths=None):
        """x → x."""
        return x


class UnitLength(torch.nn.Module):
    """Scales embeddings to length 1.

    What SpeechBrain calls ``mean_var_norm_emb`` subtracts the mean of its training set.
    Our models have none: that of a cohort belongs to AS-norm.
    """

    def forward(self, x, lengths=None):
        """[..., E] → the same shape."""
        return torch.nn.functional.normalize(x, dim=-1)


class FolderPretrainer(Pretrainer):
    """Loads the weights of a model's folder, strictly: SpeechBrain's own only warns.

    Arguments
    ---------
    speaker_encoder : SpeakerEncoder
        Gets the weights.
    random_state : torch.Tensor, optional
        Of torch's generator before the modules were made, which is set again.

    Attributes
    ----------
    folder : Path or None
        Where the model lies, once its files are collected.
    """

    def __init__(self, speaker_encoder, random_state=None):
        super().__init__()
        self.speaker_encoder, self.folder = speaker_encoder, None
        if random_state is not None:
            torch.set_rng_state(random_state)

    def collect_files(
        self, default_source=None, local_strategy=None, fetch_config=None
    ):
        """Find the folder, or fetch it from the hub into the hub's cache.

        Whole, with the few MB of cohort and thresholds that only a verifier uses: one
        that finds the cache without a network would decide without them.

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


class SpoofingDetector(detector.SpoofingDetector):
    """As the class before, for the folder of a detector."""

    def __init__(self, modules, hparams, run_opts=None, freeze_params=True):
        folder = hparams["pretrainer"].folder
        model = detector.complete_detector(folder, hparams)
        super().__init__(model, folder, run_opts, freeze_params)
