"""Embeddings from an exported model: numpy and onnxruntime, no torch.

    from speechbrain_ext.inference.onnx_runner import OnnxSpeakerEncoder

    encoder = OnnxSpeakerEncoder("model.onnx")
    one, other = encoder.embed_files(["a.wav", "b.flac"])  # needs soundfile
    print(cosine(one, other))

This file needs nothing else of its package: a service may copy it as it is.
"""

import numpy as np
import onnxruntime

try:
    from speechbrain_ext.utils.errors import InputError
except ImportError:  # copied out of its package

    class InputError(Exception):
        """The user's input is wrong. The message is one line."""


ERRORS_ONLY = 3  # of onnxruntime, which else warns of the default of wav_lens


class OnnxSpeakerEncoder:
    """Waveforms → embeddings, by a file that ``python -m speechbrain_ext onnx`` wrote.

    Arguments
    ---------
    path : str or Path
        ``model.onnx``; where it has a second file of weights, both in one folder.
    threads : int
        None: onnxruntime's choice, which is all cores.
    providers : sequence of str
        Of onnxruntime, the first that can compute a step does.

    Attributes
    ----------
    sample_rate : int
        Hz.
    min_samples : int
        Fewest samples of a recording.
    embedding_size : int
        E.
    metadata : dict of str to str
        All that the file says of itself.
    """

    def __init__(self, path, threads=None, providers=("CPUExecutionProvider",)):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads = threads or 0
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=list(providers)
            )
        except Exception as error:  # onnxruntime has a class for every cause
            reason = " ".join(str(error).split())
            raise InputError(f"{path}: cannot be loaded as ONNX ({reason})") from error
        self.metadata = self.session.get_modelmeta().custom_metadata_map
        try:
            self.sample_rate, self.min_samples, self.embedding_size = (
                int(self.metadata[name])
                for name in ("sample_rate", "min_samples", "embedding_size")
            )
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path}: no {error} in its metadata, expected a file written by "
                "python -m speechbrain_ext onnx"
            ) from error

    def embed(self, wavs, batch_size=8):
        """Embed recordings, those of like length together.

        Arguments
        ---------
        wavs : np.ndarray or list of np.ndarray
            [T], [B, T], or a list of [T]; ±1 at ``sample_rate``.
        batch_size : int
            Recordings padded to one length and run at once.

        Returns
        -------
        np.ndarray
            [B, E] float32, in the order of ``wavs``; [E] for a single [T].

        Raises
        ------
        InputError
            Where a recording is not one channel of finite numbers, or too short.
        """
        if isinstance(wavs, np.ndarray) and wavs.ndim == 1:
            return self.embed([wavs])[0]
        wavs = [
            self._checked(wav, f"recording {number}") for number, wav in enumerate(wavs)
        ]
        embeddings = np.empty((len(wavs), self.embedding_size), np.float32)
        by_length = np.argsort([len(wav) for wav in wavs], kind="stable")
        for start in range(0, len(wavs), batch_size):
            rows = by_length[start : start + batch_size]
            embeddings[rows] = self._run([wavs[row] for row in rows])
        return embeddings

    def embed_files(self, paths, batch_size=8):
        """Embed sound files (wav, flac, ogg, mp3) → [N, E].

        Channels are averaged. Another sampling rate is an error: resample first.
        At most ``batch_size`` recordings are in memory.
        """
        paths = list(paths)
        embeddings = np.empty((len(paths), self.embedding_size), np.float32)
        for start in range(0, len(paths), batch_size):
            some = paths[start : start + batch_size]
            wavs = [self.read(path) for path in some]
            embeddings[start : start + batch_size] = self.embed(wavs, batch_size)
        return embeddings

    def read(self, path):
        """A sound file → [T] float32, checked."""
        try:
            import soundfile
        except ImportError as error:
            raise InputError(
                f"{path}: reading files needs pip install soundfile"
            ) from error
        try:
            wav, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
        except (RuntimeError, OSError) as error:  # soundfile's own are RuntimeErrors
            raise InputError(f"{path}: cannot be read as sound ({error})") from error
        if rate != self.sample_rate:
            raise InputError(f"{path}: {rate} Hz, expected {self.sample_rate} Hz")
        return self._checked(wav.mean(1), path)

    def _checked(self, wav, name):
        wav = np.asarray(wav)
        if wav.ndim != 1 or wav.dtype.kind != "f":
            raise InputError(
                f"{name}: {wav.dtype} of shape {wav.shape}, expected floats in ±1 [T]"
            )
        if len(wav) < self.min_samples:
            raise InputError(
                f"{name}: {len(wav)} samples ({len(wav) / self.sample_rate:.3f} s), "
                f"expected {self.min_samples} or more "
                f"({self.min_samples / self.sample_rate:.3f} s)"
            )
        if not np.isfinite(wav).all():
            raise InputError(f"{name}: NaN or infinite samples, expected finite ones")
        return wav.astype(np.float32, copy=False)

    def _run(self, wavs):
        """A few recordings → [B, E]."""
        lengths = np.array([len(wav) for wav in wavs])
        batch = np.zeros((len(wavs), lengths.max()), np.float32)
        for row, wav in zip(batch, wavs):
            row[: len(wav)] = wav
        relative = (lengths / lengths.max()).astype(np.float32)
        return self.session.run(None, {"wavs": batch, "wav_lens": relative})[0]


def cosine(one, other):
    """Similarity of embeddings, pair by pair: [..., E], [..., E] → [...]."""
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return (one * other).sum(-1) / norms
