"""A trained model as its users load it: recordings → embeddings, and voices.

    embedder = SpeakerEmbedder.from_hparams(source="results/stage3_lmft/final")
    embeddings = embedder.encode_files(paths)

SpeechBrain's inference class with strict loading, any recordings, and batches. What
compares voices is :class:`~speechbrain_ext.inference.verifier.SpeakerVerifier`.
"""

import os
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.inference.speaker import SpeakerRecognition

from speechbrain_ext.allocator import keep_freed_memory
from speechbrain_ext.errors import InputError
from speechbrain_ext.inference.batching import embed_files
from speechbrain_ext.inference.loading import find_folder, load_model
from speechbrain_ext.inference.recordings import (
    inspect_file,
    read_piece,
    warn_of_conversions,
)
from speechbrain_ext.inference.run_options import checked_run_opts
from speechbrain_ext.precision import autocast_type


class Voice(NamedTuple):
    """An enrolled speaker: ``embedding`` float32 [E], ``seconds`` of audio behind."""

    embedding: np.ndarray
    seconds: float


class SpeakerEmbedder(SpeakerRecognition):
    """SpeechBrain's SpeakerRecognition as far as embeddings go.

    Its process keeps freed memory from here on (:mod:`speechbrain_ext.allocator`).

    Arguments
    ---------
    model : speechbrain_ext.inference.loading.Model
        From a folder; :meth:`from_hparams` reads it.
    source : str
        Where it is from, for messages.
    run_opts : dict or RunOptions or None
        SpeechBrain's: ``device`` (a GPU where there is one), ``precision`` (``fp32``;
        ``bf16`` and ``fp16`` apply to the encoder, on a GPU), ``noprogressbar``, …
    freeze_params : bool
        No gradients.

    Attributes
    ----------
    rules : Rules
        Shortest recording, windows.
    """

    MODULES_NEEDED = ["speaker_encoder"]

    def __init__(self, model, source, run_opts=None, freeze_params=True):
        keep_freed_memory()
        modules = {"speaker_encoder": model.hparams["speaker_encoder"]}
        run_opts = checked_run_opts(run_opts)
        super().__init__(modules, model.hparams, run_opts, freeze_params)
        self._half = autocast_type(self.precision)
        self.source = str(source)
        self.rules = model.rules

    @classmethod
    def from_hparams(
        cls,
        source,
        savedir=None,
        run_opts=None,
        overrides=None,
        fetch_config=None,
        freeze_params=True,
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

        Returns
        -------
        SpeakerEmbedder or SpeakerVerifier
            Of the class that is asked.

        Raises
        ------
        InputError
            Names the file that is missing, damaged, or does not fit.
        """
        folder = find_folder(source, savedir, fetch_config)
        return cls(load_model(folder, overrides), source, run_opts, freeze_params)

    @property
    def embedding_size(self):
        """Width E of the embeddings."""
        return self.mods.speaker_encoder.embedding_size

    def forward(self, wavs, wav_lens=None):
        """wavs [B, T] → embeddings [B, 1, E]."""
        return self.encode_batch(wavs, wav_lens)

    def encode_batch(self, wavs, wav_lens=None, normalize=False):
        """Embed waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            [B, T] or [T], ±1 at 16 kHz, padded on the right.
        wav_lens : torch.Tensor or None
            [B], valid part of each row relative to T; None: all rows are full.
        normalize : bool
            Scale to length 1. (SpeechBrain subtracts a mean here; the mean of a cohort
            belongs to AS-norm.)

        Returns
        -------
        torch.Tensor
            float32 [B, 1, E] on the model's device.

        Raises
        ------
        InputError
            Wrong shape; a row that is too short, silent, or not finite.
        """
        if wavs.dim() == 1:
            wavs = wavs.unsqueeze(0)
        wavs = wavs.to(self.device).float()
        if wav_lens is None:
            wav_lens = torch.ones(len(wavs))
        wav_lens = wav_lens.to(self.device)
        _check_audible(wavs, wav_lens)
        embeddings = self._encode(wavs, wav_lens)
        if normalize:
            embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
        return embeddings

    def encode_files(
        self,
        paths,
        batch_size=64,
        on_error="raise",
        max_batch_seconds=None,
        window_seconds=None,
        hop_seconds=None,
    ):
        """Embed files of any rate and number of channels, thousands of them.

        Arguments
        ---------
        paths : list of str or Path
            N files: wav, flac, ogg or mp3.
        batch_size : int
            Recordings in one batch, at most.
        on_error : str
            ``raise`` stops at a bad file, ``collect`` goes on and lists it.
        max_batch_seconds : float or None
            Padded seconds in one batch, at most: bounds the memory. None takes 12 s on
            a CPU, where each core has a batch of its own, and 120 s on a GPU.
        window_seconds, hop_seconds : float or None
            None takes the model's; ``float("inf")`` embeds long recordings whole.

        Returns
        -------
        embeddings : torch.Tensor
            float32 [N, E] on the CPU, in the order of ``paths``.
        failures : list of Failure
            With ``on_error="collect"`` only: (row, path, reason); their embeddings are
            NaN.

        Raises
        ------
        InputError
            One line that names the file which is missing, not sound, truncated, too
            short, silent or not finite; a setting out of range.
        """
        if on_error not in ("raise", "collect"):
            raise InputError(f"on_error {on_error!r}, expected raise or collect")
        rules = self.rules.changed(window_seconds, hop_seconds)
        options = {"batch_size": batch_size, "max_batch_seconds": max_batch_seconds}
        collect = on_error == "collect"
        found = self._embed(paths, rules, collect=collect, **options)
        embeddings = torch.from_numpy(found.vectors)
        return (embeddings, found.failures) if collect else embeddings

    def enrol(self, files):
        """A voice from one or several recordings: the mean of their embeddings.

        The embeddings are averaged as they are, as in the trial lists of an
        evaluation: one of larger magnitude weighs more
        (:func:`~speechbrain_ext.scoring.enrolment.average_enrolment`).

        Arguments
        ---------
        files : str, Path or list of them, or Voice
            A voice is given back.

        Returns
        -------
        Voice

        Raises
        ------
        InputError
            As :meth:`encode_files`; no recording.
        """
        if isinstance(files, Voice):
            return files
        found = self._embed(files, self.rules)
        if not len(found.vectors):
            raise InputError("no recordings to enrol from, expected at least one")
        mean = found.vectors.mean(axis=0, dtype=np.float64)
        return Voice(mean.astype(np.float32), float(found.seconds.sum()))

    def load_audio(self, path):
        """One local file as the model wants it → float32 [T] at 16 kHz.

        Raises
        ------
        InputError
            As :meth:`encode_files`.
        """
        recording = inspect_file(path, self.rules.min_seconds)
        warn_of_conversions([recording])
        wav = read_piece(recording)
        if wav is None:
            raise InputError(f"{path}: silent, expected speech")
        return wav.to(self.device)

    def _encode(self, wavs, wav_lens):
        """wavs [B, T], wav_lens [B] on any device → [B, 1, E]."""
        model = self.mods.speaker_encoder
        wavs, wav_lens = wavs.to(self.device), wav_lens.to(self.device)
        if self._half is None:
            return model(wavs, wav_lens)
        with torch.autocast(self.device_type, self._half):
            states, lens = model.encoder(wavs, wav_lens)
        return model.head([state.float() for state in states], lens)

    def _embed(self, paths, rules, **options):
        progress = not self.noprogressbar
        return embed_files(
            *(self._encode, self.embedding_size, _as_list(paths), rules),
            on_cpu=self.device_type == "cpu",
            progress=progress,
            **options,
        )


def _as_list(paths):
    """One path or several → list of str."""
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    try:
        return [os.fspath(path) for path in paths]
    except TypeError as error:
        raise InputError(f"{paths!r}, expected paths of recordings") from error


def _check_audible(wavs, wav_lens):
    """InputError for a row [T] of a batch that is silent or not finite."""
    if wavs.dim() != 2 or wav_lens.shape != wavs.shape[:1]:
        return  # the features say what is wrong
    samples = torch.round(wav_lens.double() * wavs.shape[1]).long().tolist()
    for row, (wav, length) in enumerate(zip(wavs, samples)):
        valid = wav[:length]
        if not len(valid):
            return
        low, high = torch.stack(valid.aminmax()).tolist()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(
                f"row {row}: NaN or infinite samples, expected finite ones"
            )
        if low == high:
            raise InputError(f"row {row}: silent, expected speech")
