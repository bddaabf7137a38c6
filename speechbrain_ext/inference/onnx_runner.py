"""Embeddings from an exported model: numpy and onnxruntime, no torch.

    from speechbrain_ext.inference.onnx_runner import OnnxSpeakerEncoder

    encoder = OnnxSpeakerEncoder("model.onnx")
    one, other = encoder.embed_files(["a.wav", "b.flac"])  # needs soundfile
    print(cosine(one, other))

Recordings are treated as ``SpeakerVerifier`` treats them before a decision: only speech
is embedded, found by ``silero_vad.onnx`` beside the model; what is longer than a window
is embedded in windows, and averaged. This file needs nothing else of its package: a
service may copy it as it is.
"""

import logging
import os
from pathlib import Path

import numpy as np

try:
    from speechbrain_ext.utils.errors import InputError, NoSpeechError
except ImportError:  # copied out of its package

    class InputError(Exception):
        """The user's input is wrong. The message is one line."""

    class NoSpeechError(InputError):
        """A recording holds no speech, or too little: an answer of its own."""


logger = logging.getLogger(__name__)

ERRORS_ONLY = 3  # of onnxruntime, which else warns of the default of wav_lens
VAD_FILE = "silero_vad.onnx"
# The detector's windows, in samples at 16 kHz; each is heard with those before it.
VAD_WINDOW, VAD_CONTEXT = 512, 64
VAD_BLOCK = 512  # windows of one call
# Quiet recordings are made louder for it: RMS of their loudest window.
VAD_LEVEL, VAD_MOST_GAIN = 0.05, 1000.0
UNKNOWN_SIZE = 0x7FFF0000  # of a wav file that was written into a pipe
# Bytes: of a wav's header, by which programs exceed its sizes, that follow its sound.
HEAD, SLACK, FOLLOWING = 4096, 128, 1 << 16
HYSTERESIS = 0.15  # speech goes on down to so much below the threshold
# Of files that were exported without them; in seconds, but the threshold.
DEFAULTS = {
    "min_seconds": 0.25,
    "window_seconds": 60.0,
    "hop_seconds": 60.0,
    "speech_threshold": 0.5,
    "min_speech_seconds": 0.25,
    "max_pause_seconds": 0.5,
    "speech_margin_seconds": 0.25,
}


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
    speech_detection : bool or None
        Embed speech alone; None does where ``silero_vad.onnx`` lies beside the model,
        and warns where it does not.

    Attributes
    ----------
    sample_rate : int
        Hz.
    min_samples : int
        Fewest samples of a recording that the model takes.
    max_samples : int or None
        Most of them; None: any number. Windows are not longer.
    embedding_size : int
        E.
    settings : dict of str to float
        How recordings are treated: the keys of :data:`DEFAULTS`.
    speech_detection : bool
        Whether speech alone is embedded.
    metadata : dict of str to str
        All that the file says of itself.
    """

    output = "embeddings"  # what the file gives; None: whatever it is

    def __init__(
        self,
        path,
        threads=None,
        providers=("CPUExecutionProvider",),
        speech_detection=None,
    ):
        self._options = {"threads": threads, "providers": list(providers)}
        self.session = _session(path, **self._options)
        self.metadata = self.session.get_modelmeta().custom_metadata_map
        output = self.metadata.get("output", "embeddings")
        if self.output not in (None, output):
            raise InputError(f"{path}: gives {output}, expected {self.output}")
        try:
            self.sample_rate, self.min_samples, self.embedding_size = (
                int(self.metadata[name])
                for name in ("sample_rate", "min_samples", "embedding_size")
            )
            longest = self.metadata.get("max_samples")
            self.max_samples = None if longest is None else int(longest)
            self.settings = {
                name: float(self.metadata.get(name, value))
                for name, value in DEFAULTS.items()
            }
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path}: no {error} in its metadata, expected a file written by "
                "python -m speechbrain_ext onnx"
            ) from error
        detector = Path(path).with_name(VAD_FILE)
        if speech_detection is None:
            speech_detection = self.metadata.get("speech_detection", "True") == "True"
            if speech_detection and not detector.is_file():
                logger.warning(
                    "%s: no such file, so there is no speech detection: noise and "
                    "silence are embedded as if they were speech",
                    detector,
                )
                speech_detection = False
        self.speech_detection = speech_detection
        if speech_detection:
            if not detector.is_file():
                raise InputError(f"{detector}: no such file, expected for detection")
            self._detector = _session(detector, **self._options)

    def embed(self, wavs, batch_size=8):
        """Embed recordings, those of like length together.

        Arguments
        ---------
        wavs : np.ndarray or list of np.ndarray
            [T], [B, T], or a list of [T]; ±1 at ``sample_rate``.
        batch_size : int
            Windows, or recordings, padded to one length and run at once.

        Returns
        -------
        np.ndarray
            [B, E] float32, in the order of ``wavs``; [E] for a single [T].

        Raises
        ------
        NoSpeechError
            With speech detection: a recording without speech, or with too little.
        InputError
            Where a recording is not one channel of finite numbers, too short or silent,
            or its embedding is not finite.
        """
        if isinstance(wavs, np.ndarray) and wavs.ndim == 1:
            return self.embed([wavs])[0]
        names = [f"recording {number}" for number in range(len(wavs))]
        return self._embed(wavs, names, batch_size)

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
            embeddings[start : start + batch_size] = self._embed(wavs, some, batch_size)
        return embeddings

    def read(self, path):
        """A sound file → [T] float32, checked."""
        if not os.path.isfile(path):  # of a pipe nobody may ever write
            raise InputError(f"{path}: no such file, expected a sound file")
        try:
            import soundfile
        except ImportError as error:
            raise InputError(
                f"{path}: reading files needs pip install soundfile"
            ) from error
        try:
            with soundfile.SoundFile(str(path)) as file:
                rate, frames = file.samplerate, file.frames
                wav = file.read(dtype="float32", always_2d=True)
        except (RuntimeError, OSError) as error:  # soundfile's own are RuntimeErrors
            raise InputError(f"{path}: cannot be read as sound ({error})") from error
        if rate != self.sample_rate:
            raise InputError(f"{path}: {rate} Hz, expected {self.sample_rate} Hz")
        if len(wav) < frames:
            raise InputError(f"{path}: {len(wav)} samples decoded, expected {frames}")
        _check_end(path)
        return self._checked(wav.mean(1), path)

    def speech(self, wav):
        """Where somebody speaks in a recording [T] → (start, stop) samples, [S, 2]."""
        return speech_segments(self._probabilities(wav), len(wav), **self._rule())

    def _embed(self, wavs, names, batch_size):
        windows, rows = [], []
        for row, (wav, name) in enumerate(zip(wavs, names, strict=True)):
            cut = self._windows(self._checked(wav, name), name)
            windows += cut
            rows += [row] * len(cut)
        vectors = np.empty((len(windows), self.embedding_size), np.float32)
        by_length = np.argsort([len(window) for window in windows], kind="stable")
        for start in range(0, len(windows), batch_size):
            some = by_length[start : start + batch_size]
            vectors[some] = self._run([windows[number] for number in some])
        embeddings = np.zeros((len(names), self.embedding_size), np.float32)
        np.add.at(embeddings, rows, vectors)
        embeddings /= np.bincount(rows, minlength=len(names))[:, None]
        for name, embedding in zip(names, embeddings):
            if not np.isfinite(embedding).all():
                raise InputError(f"{name}: its embedding is not finite")
        return embeddings

    def _windows(self, wav, name):
        """What is embedded of a recording: one window, or several of equal length."""
        if self.speech_detection:
            segments = self._found_speech(wav, name)
            wav = np.concatenate([wav[a:b] for a, b in segments])
        windows = [wav[a:b] for a, b in self._cut(wav)]
        return self._with_sound(windows, name)

    def _found_speech(self, wav, name):
        """Segments [S, 2] of speech, enough of it."""
        segments = self.speech(wav)
        spoken = int((segments[:, 1] - segments[:, 0]).sum())
        seconds, least = spoken / self.sample_rate, self.settings["min_seconds"]
        if not spoken or seconds < least:
            raise NoSpeechError(f"{name}: {lack_of_speech(seconds, least)}")
        return segments

    def _cut(self, wav):
        """Start and stop of one window, or of several of equal length."""
        most = len(wav) if self.max_samples is None else self.max_samples
        most = min(most, len(wav))
        window, hop = (
            min(round(min(self.settings[key], 1e9) * self.sample_rate), most)
            for key in ("window_seconds", "hop_seconds")
        )
        starts = [*range(0, len(wav) - window, max(hop, 1)), len(wav) - window]
        return [(start, start + window) for start in starts]

    def _with_sound(self, windows, name):
        windows = [window for window in windows if window.min() < window.max()]
        if not windows:
            raise InputError(f"{name}: silent, expected speech")
        return windows

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
        """A few windows → [B, E]."""
        lengths = np.array([len(wav) for wav in wavs])
        batch = np.zeros((len(wavs), lengths.max()), np.float32)
        for row, wav in zip(batch, wavs):
            row[: len(wav)] = wav
        relative = (lengths / lengths.max()).astype(np.float32)
        return self.session.run(None, {"wavs": batch, "wav_lens": relative})[0]

    def _probabilities(self, wav):
        """[T] → probability of speech of every window of the detector, [N]."""
        padded = np.pad(wav, (VAD_CONTEXT, -len(wav) % VAD_WINDOW))
        power = np.square(padded[VAD_CONTEXT:].reshape(-1, VAD_WINDOW)).mean(1).max()
        gain = VAD_LEVEL / max(float(power) ** 0.5, VAD_LEVEL / VAD_MOST_GAIN)
        # louder where it is quiet, quieter where samples are far outside ±1
        padded *= np.float32(gain if power > 1 else max(gain, 1.0))
        windows = np.lib.stride_tricks.sliding_window_view(
            padded, VAD_CONTEXT + VAD_WINDOW
        )[::VAD_WINDOW]
        hidden, cell = np.zeros((2, 1, 1, 128), np.float32)
        found = []
        for start in range(0, len(windows), VAD_BLOCK):
            block = np.ascontiguousarray(windows[start : start + VAD_BLOCK])
            values, hidden, cell = self._detector.run(
                ["speech_probs", "hn", "cn"], {"input": block, "h": hidden, "c": cell}
            )
            found.append(values.reshape(-1))
        return np.concatenate(found)

    def _rule(self):
        names = tuple(DEFAULTS)[3:]
        return {name: self.settings[name] for name in names}


class OnnxSpoofingDetector(OnnxSpeakerEncoder):
    """Waveforms → log-likelihood ratios of bona fide speech, by a detector's file.

    Arguments and attributes are those of :class:`OnnxSpeakerEncoder`. Recordings are
    heard whole, as in training; with speech detection those without speech are refused,
    and windows of long ones without it left out.
    """

    output = "logits"

    def score(self, wavs, batch_size=8):
        """Natural-log likelihood ratios, float64 [B], or one of a single [T].

        Arguments and errors are those of :meth:`OnnxSpeakerEncoder.embed`.
        """
        return self._ratio(self.embed(wavs, batch_size))

    def score_files(self, paths, batch_size=8):
        """Of sound files (wav, flac, ogg, mp3) at ``sample_rate`` → float64 [N]."""
        return self._ratio(self.embed_files(paths, batch_size))

    def _ratio(self, logits):
        """Logits [..., (spoof, bona fide)] → a (z_b − z_s) + b."""
        scale, offset = (float(self.metadata[f"llr_{n}"]) for n in ("scale", "offset"))
        logits = logits.astype(np.float64)
        return scale * (logits[..., 1] - logits[..., 0]) + offset

    def _windows(self, wav, name):
        cuts = self._cut(wav)
        if self.speech_detection:
            first, last = self._found_speech(wav, name).T
            cuts = [(a, b) for a, b in cuts if ((first < b) & (last > a)).any()]
        return self._with_sound([wav[a:b] for a, b in cuts], name)


def speech_segments(
    probabilities,
    samples,
    speech_threshold,
    min_speech_seconds,
    max_pause_seconds,
    speech_margin_seconds,
):
    """Silero's rule: probabilities of windows → where somebody speaks.

    Speech begins with a window at the threshold or above. It ends with the first one
    0.15 below the threshold after which, for longer than the longest pause, none is at
    the threshold again; at the end of a recording the last pause may be shorter, which
    is where this differs from Silero's own code. Speech that is too short is left out,
    then a margin is added on both sides, at most half of what lies between.

    Arguments
    ---------
    probabilities : np.ndarray
        [N], of windows of 512 samples.
    samples : int
        Of the recording, at 16 kHz.
    speech_threshold, min_speech_seconds, max_pause_seconds, speech_margin_seconds
        Keys of a model's ``hyperparams.yaml``.

    Returns
    -------
    np.ndarray
        int64 [S, 2], first sample and the one after the last.
    """
    shortest, pause, margin = (
        round(seconds * 16000)
        for seconds in (min_speech_seconds, max_pause_seconds, speech_margin_seconds)
    )
    found, start, end = [], None, None
    for number, probability in enumerate(np.asarray(probabilities).tolist()):
        if probability >= speech_threshold:
            start, end = (number if start is None else start), None
        elif start is not None and probability < speech_threshold - HYSTERESIS:
            end = number if end is None else end
            if (number - end) * VAD_WINDOW >= pause:
                found.append((start, end))
                start = None
    if start is not None:
        found.append((start, len(probabilities) if end is None else end))
    segments = np.array(found, dtype=np.int64).reshape(-1, 2) * VAD_WINDOW
    segments = segments.clip(max=samples)
    segments = segments[segments[:, 1] - segments[:, 0] > shortest]
    if len(segments):
        room = np.minimum((segments[1:, 0] - segments[:-1, 1]) // 2, margin)
        segments[1:, 0] -= room
        segments[:-1, 1] += room
        segments[0, 0] = max(segments[0, 0] - margin, 0)
        segments[-1, 1] = min(segments[-1, 1] + margin, samples)
    return segments


def lack_of_speech(seconds, least=0):
    """In words, that a recording has so little speech."""
    if not seconds:
        return "no speech found"
    return f"too little speech found: {seconds:.2g} s, expected {least:g} s or more"


def cosine(one, other):
    """Similarity of embeddings, pair by pair: [..., E], [..., E] → [...]."""
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return (one * other).sum(-1) / norms


def _check_end(path):
    """A wav file of half its size is read without complaint, as half the speech.

    Where both of its sizes say that it is cut, it is refused; where one does, told.
    """
    with open(path, "rb") as file:
        start = file.read(HEAD)
        size = file.seek(0, os.SEEK_END)
    said = int.from_bytes(start[4:8], "little") + 8
    if start[:4] == b"RIFF" and size < said - 1 and said < UNKNOWN_SIZE:
        begin = start.find(b"data") + 8
        end = begin + int.from_bytes(start[begin - 4 : begin], "little")
        if end - size > SLACK and -SLACK <= said - end <= FOLLOWING:
            raise InputError(f"{path}: {size} bytes, its header says {said}: truncated")
        logger.warning(
            "%s: %d bytes, its header says %d: what is there is embedded",
            *(path, size, said),
        )


def _session(path, threads, providers):
    """onnxruntime's session of a file."""
    import onnxruntime  # an extra, which the rule of speech does without

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads or 0
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime has a class for every cause
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be loaded as ONNX ({reason})") from error
