"""What a verifier and a detector are alike in: loaded from a folder, one engine.

from_hparams   a folder or a hub id, strictly
recordings     → padded batches → the output of the model for each
"""

import functools

import torch

from speechbrain_ext.inference.audio_input import check_batch, load_recording
from speechbrain_ext.inference.channels import checked_channel
from speechbrain_ext.inference.engine import encode
from speechbrain_ext.inference.extraction import embed_files
from speechbrain_ext.inference.folder import checked_run_opts, find_folder
from speechbrain_ext.inference.sources import batch_of, sources_of
from speechbrain_ext.inference.speech import SpeechDetector
from speechbrain_ext.lobes.int8 import in_int8
from speechbrain_ext.utils.allocator import keep_freed_memory
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.jobs import model_fingerprint
from speechbrain_ext.utils.precision import allow_tf32, autocast_type, has_float64


class LoadedModel:
    """Comes before a class of SpeechBrain's in the bases of another.

    Arguments
    ---------
    model : NamedTuple
        What is in a folder: ``hparams``, ``chunking``, ``speech``, ``thresholds``.
    source : str
        Where it is from, for messages.
    run_opts : dict or RunOptions or None
        SpeechBrain's.
    freeze_params : bool
        No gradients.
    """

    MODULES_NEEDED = ["speaker_encoder"]
    read_folder = None  # (folder, overrides) → ``model``

    def __init__(self, model, source, run_opts=None, freeze_params=True):
        keep_freed_memory()
        modules = {"speaker_encoder": model.hparams["speaker_encoder"]}
        run_opts = checked_run_opts(run_opts)
        int8 = run_opts.get("precision") == "int8"
        if int8 and not freeze_params:
            raise InputError(
                "precision int8: has no gradients, expected freeze_params=True"
            )
        known = {**run_opts, "precision": "fp32"} if int8 else run_opts
        super().__init__(modules, model.hparams, known, freeze_params)
        self._half = autocast_type(self.precision)
        self.source, self.chunking = str(source), model.chunking
        self.speech, self.thresholds = model.speech, model.thresholds
        allow_tf32(False)  # fp32 is what it says; whoever loads may allow it again
        if int8:
            self._to_int8()

    def _to_int8(self):
        """Multiply in 8 bits from now on."""
        _ = self.fingerprint  # of weights that are not kept
        self.precision = "int8"
        in_int8(self.mods.speaker_encoder)

    @classmethod
    def from_hparams(
        cls,
        source,
        savedir=None,
        run_opts=None,
        overrides=None,
        fetch_config=None,
        freeze_params=True,
        precision=None,
    ):
        """Load a model, strictly.

        ``hyperparams.yaml`` is code: load folders of people you trust.

        Arguments
        ---------
        source : str or Path
            A model's folder, which is read where it lies, without any network; or a
            hub id, ``owner/name``.
        savedir : str or Path or None
            Folder for files from the hub; None leaves them in the hub's cache.
        run_opts : dict or RunOptions or None
            As for the class: ``{"device": "cuda:0"}``.
        overrides : dict or None
            Values for keys of ``hyperparams.yaml``: ``{"window_seconds": 30}``.
        fetch_config : speechbrain.utils.fetching.FetchConfig or None
            ``revision``, ``token``, ``huggingface_cache_dir``, ``allow_network`` of a
            hub id.
        freeze_params : bool
            No gradients.
        precision : str or None
            Of the encoder: ``fp32``, ``bf16``, ``fp16``, or ``int8`` on a CPU
            (:mod:`speechbrain_ext.lobes.int8`); None: that of ``run_opts``, else fp32.

        Returns
        -------
        SpeakerVerifier or SpoofingDetector
            Of the class that is asked.

        Raises
        ------
        InputError
            Names the file that is missing, damaged, or does not fit; a folder of the
            other kind of model; a precision that the machine or the encoder has not.
        """
        run_opts = checked_run_opts(run_opts, precision)
        folder = find_folder(source, savedir, fetch_config)
        model = cls.read_folder(folder, overrides)
        return cls(model, source, run_opts, freeze_params)

    @property
    def embedding_size(self):
        """Width E of the model's output."""
        return self.mods.speaker_encoder.embedding_size

    @functools.cached_property
    def fingerprint(self):
        """Of weights and windows: equal where embeddings can be compared."""
        settings = self.chunking._asdict()
        del settings["min_seconds"]  # refuses recordings and changes none
        return model_fingerprint(self.mods.speaker_encoder, **settings)

    @functools.cached_property
    def detector(self):
        """The SpeechDetector, on the model's device."""
        return self._speech_detector().to(self.device)

    def _speech_detector(self):
        return SpeechDetector(self.speech)

    def load_audio(self, path, channel="mean"):
        """One recording as the model wants it → float32 [T] at 16 kHz.

        Arguments
        ---------
        path : recording
            A local file, an array or tensor, a tuple (array, rate), bytes or a file
            object of a sound file.
        channel : str or int
            Of several: ``left``, ``right``, a number (the first is 1), their ``mean``,
            or the ``best`` by an estimate of the signal-to-noise ratio.

        Raises
        ------
        InputError
            A recording that is missing, not sound, truncated, too short, silent or not
            finite, or has no such channel.
        """
        return load_recording(
            *(sources_of(path), self.chunking.min_seconds, checked_channel(channel))
        ).to(self.device)

    def _encode_batch(self, wavs, wav_lens):
        """Waveforms [B, T] or [T], and lengths or None, checked → [B, 1, E]."""
        wavs = batch_of(wavs).to(self.device)
        wav_lens = torch.ones(len(wavs)) if wav_lens is None else wav_lens
        wav_lens = torch.as_tensor(wav_lens)
        if not has_float64(wavs.device):
            wav_lens = wav_lens.float()
        wav_lens = wav_lens.to(self.device)
        check_batch(wavs, wav_lens)
        return self._encode(wavs, wav_lens)

    def _encode(self, wavs, wav_lens):
        """wavs [B, T], wav_lens [B] on any device → [B, 1, E]."""
        model = self.mods.speaker_encoder
        return encode(model, wavs, wav_lens, self.device, self._half)

    def _embed_files(
        self,
        paths,
        batch_size,
        on_error,
        max_batch_seconds,
        window_seconds,
        hop_seconds,
        speech_detection,
        channel,
    ):
        """Recordings with what a caller may set → Embedded, without failures unless
        they are to be collected."""
        self._check_on_error(on_error)
        chunking = self.chunking.changed(window_seconds, hop_seconds)
        chunking = chunking.checked(self.mods.speaker_encoder.encoder)
        options = {"batch_size": batch_size, "max_batch_seconds": max_batch_seconds}
        options |= {"collect": on_error == "collect"}
        return self._embed(paths, chunking, speech_detection, channel, **options)

    @staticmethod
    def _check_on_error(on_error):
        if on_error not in ("raise", "collect"):
            raise InputError(f"on_error {on_error!r}, expected raise or collect")

    def _embed(self, recordings, chunking, speech_detection, channel, **options):
        if speech_detection is None:
            speech_detection = self.speech.speech_detection
        sources, channel = sources_of(recordings), checked_channel(channel)
        return embed_files(
            torch.inference_mode()(self._encode),  # 8 % faster than no_grad
            *(self.embedding_size, sources, chunking, channel),
            on_cpu=self.device_type == "cpu",
            progress=not self.noprogressbar,
            detector=self.detector if speech_detection else None,
            **options,
        )
