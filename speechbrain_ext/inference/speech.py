"""Where somebody speaks: Silero VAD, all windows of all recordings of a batch at once.

    wav [T] → N windows of 512 samples, each with the 64 before it
            → |STFT| of 4 frames → 4 convolutions, ReLU → x [N, 128]
            → LSTM over the windows → p [N], the probability of speech → segments

Network and weights are those of the package silero-vad (MIT), which holds them as a
file. Its own code runs one window of 32 ms after the other, 20 times as long. Over 4
frames a convolution is a matrix; the windows do not depend on each other before the
LSTM. Nothing of the package is imported, as that would set torch to one thread.

Its rule makes segments of probabilities
(:func:`~speechbrain_ext.inference.onnx_runner.speech_segments`, where a program without
torch has it, too). A model that was trained on speech with its natural pauses embeds
it with them: only pauses longer than ``max_pause_seconds`` are cut out.
"""

import importlib.util
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from speechbrain_ext.data.audio import SAMPLE_RATE
from speechbrain_ext.inference.audio_input import Chunk, read_chunk, windows_of
from speechbrain_ext.inference.onnx_runner import (
    VAD_CONTEXT,
    VAD_LEVEL,
    VAD_MOST_GAIN,
    VAD_WINDOW,
    lack_of_speech,
    speech_segments,
)
from speechbrain_ext.pretrained import INFERENCE
from speechbrain_ext.utils.errors import InputError, NoSpeechError
from speechbrain_ext.utils.precision import valid_counts

NETWORK = "silero_vad.jit"  # the package's safetensors are those of an older network
FFT, HOP = 256, 128
FRAMES = VAD_WINDOW // HOP
AT_ONCE = 1024  # windows: what a step computes stays in the cache of a CPU
BLOCK_SECONDS = 32  # of a long recording, read at once: a whole number of windows


class SpeechConfig(NamedTuple):
    """What counts as speech: keys of a model's ``hyperparams.yaml``.

    Attributes
    ----------
    speech_detection : bool
        Whether only speech is embedded before a decision, unless a call says otherwise.
    speech_threshold : float
        Probability from which a window of 32 ms is speech.
    min_speech_seconds : float
        Shorter sounds are no speech.
    max_pause_seconds : float
        Longer pauses are cut out.
    speech_margin_seconds : float
        Kept before and after speech.
    """

    speech_detection: bool = INFERENCE["speech_detection"]
    speech_threshold: float = INFERENCE["speech_threshold"]
    min_speech_seconds: float = INFERENCE["min_speech_seconds"]
    max_pause_seconds: float = INFERENCE["max_pause_seconds"]
    speech_margin_seconds: float = INFERENCE["speech_margin_seconds"]

    @classmethod
    def of(cls, hparams):
        """From keys of a model's ``hyperparams.yaml``; absent ones have defaults."""
        return cls(**{name: hparams.get(name, INFERENCE[name]) for name in cls._fields})

    def checked(self):
        """The same, or InputError where a value is out of range."""
        if not isinstance(self.speech_detection, bool):
            raise InputError(
                f"speech_detection is {self.speech_detection!r}, expected True or False"
            )
        for name, value in zip(self._fields[1:], self[1:]):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            most = 1 if name == "speech_threshold" else 3600
            if not number or not 0 <= value <= most:
                raise InputError(f"{name} is {value!r}, expected 0 to {most}")
        return self


class SpeechDetector(torch.nn.Module):
    """Finds speech in recordings of 16 kHz.

    Arguments
    ---------
    config : SpeechConfig or None
        None: that of a model's folder without any.
    """

    def __init__(self, config=None):
        super().__init__()
        self.config = config or SpeechConfig()
        weights = _weights()
        # the transform's first row is the cosine of 0, times the window
        window = weights["stft.forward_basis_buffer"][0, 0]
        self.register_buffer("window", window)
        n_frames, self.convolutions = FRAMES, torch.nn.ModuleList()
        for number, stride in enumerate((1, 2, 2, 1)):
            name = f"encoder.{number}.reparam_conv"
            kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            self.convolutions.append(_FewFrames(kernel, bias, n_frames, stride))
            n_frames = -(-n_frames // stride)
        self.lstm = torch.nn.LSTM(128, 128, batch_first=True)
        self.lstm.load_state_dict(
            {
                f"{name}_l0": weights[f"decoder.rnn.{name}"]
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
        )
        last = weights["decoder.decoder.2.weight"].reshape(1, 128)
        self.register_buffer("last", last)
        self.register_buffer("last_bias", weights["decoder.decoder.2.bias"])
        self.requires_grad_(False).eval()

    def forward(self, wavs, wav_lens=None):
        """wavs [B, T] at 16 kHz, wav_lens [B] or None → B times segments [S, 2]."""
        lengths = [wavs.shape[1]] * len(wavs)
        if wav_lens is not None:
            lengths = valid_counts(wav_lens, wavs.shape[1])
            inside = torch.arange(wavs.shape[1], device=wavs.device)
            wavs = wavs.where(inside < lengths.to(wavs.device)[:, None], 0)
            lengths = lengths.tolist()
        return self._of_padded(wavs, lengths)

    def segments(self, wav):
        """Where somebody speaks in one recording.

        Arguments
        ---------
        wav : np.ndarray or torch.Tensor
            float32 [T], ±1 at 16 kHz.

        Returns
        -------
        np.ndarray
            int64 [S, 2], the first sample and the one after the last of each segment;
            for :func:`speech_of`.
        """
        wav = torch.as_tensor(wav).to(self.window)
        return self(wav[None])[0]

    def trimmed(self, wavs):
        """B waveforms [T] on any device → B waveforms of speech alone, some empty."""
        padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
        found = self._of_padded(padded.to(self.window), [len(wav) for wav in wavs])
        return [speech_of(wav, segments) for wav, segments in zip(wavs, found)]

    @torch.inference_mode()
    def probabilities(self, wavs, before=None):
        """The probability of speech of every window of 512 samples.

        Arguments
        ---------
        wavs : torch.Tensor
            [B, T] at 16 kHz, on the detector's device. The last window is filled up
            with zeros.
        before : tuple or None
            What an earlier call returned, of the part before this one, whose length was
            a whole number of windows.

        Returns
        -------
        probabilities : torch.Tensor
            [B, N].
        after : tuple
            For the part that follows.
        """
        context, state = before or (wavs.new_zeros(len(wavs), VAD_CONTEXT), None)
        rest = -wavs.shape[1] % VAD_WINDOW
        wavs = torch.cat([context, F.pad(wavs, (0, rest + VAD_CONTEXT))], dim=1)
        frames = wavs.unfold(1, FFT, HOP)  # [B, 4 N, 256]
        size = max(FRAMES * (AT_ONCE // len(wavs)), FRAMES)
        x = torch.cat([self._convolved(part) for part in frames.split(size, 1)], 1)
        x, state = self.lstm(x, state)
        probabilities = F.linear(x.relu(), self.last, self.last_bias).sigmoid()
        context = wavs[:, -2 * VAD_CONTEXT : -VAD_CONTEXT]
        return probabilities.squeeze(2), (context, state)

    def _convolved(self, frames):
        """Frames [B, 4 N, 256] → [B, N, 128], what the LSTM hears of each window."""
        x = frames * self.window
        # The last of every 4 reaches 64 samples too far, in the place of which the
        # window's own last ones stand mirrored.
        mirrored = frames[:, FRAMES - 1 :: FRAMES, -129:-65].flip(2)
        x[:, FRAMES - 1 :: FRAMES, -64:] = mirrored * self.window[-64:]
        x = torch.fft.rfft(x)
        x = (x.real.square() + x.imag.square()).sqrt_()  # a third of the time of abs
        x = x.view(-1, FRAMES * x.shape[2])  # [B N, 4 · 129]
        for convolution in self.convolutions:
            x = convolution(x).relu_()
        return x.view(len(frames), -1, x.shape[1])

    def windows_of_speech(self, row, recording, chunking):
        """Speech of a long file, found in one pass through it.

        Arguments
        ---------
        row : int
            Number of the recording.
        recording : Recording
        chunking : ChunkingConfig

        Returns
        -------
        chunks : list of Chunk
            The windows of its speech.
        seconds : float
            Of speech.

        Raises
        ------
        NoSpeechError
            None, or less than ``min_seconds``.
        InputError
            As :func:`~speechbrain_ext.inference.audio_input.read_chunk`.
        """
        segments = self._of_file(recording)
        lengths = segments[:, 1] - segments[:, 0]
        ends = lengths.cumsum()
        total = int(lengths.sum())
        check_speech(recording.path, total / SAMPLE_RATE, chunking.min_seconds)
        chunks = []
        for start, stop in windows_of(total, chunking, SAMPLE_RATE):
            # the parts of the segments that lie between start and stop of the speech
            first = segments[:, 0] + (start - (ends - lengths)).clip(min=0)
            last = segments[:, 1] - (ends - stop).clip(min=0)
            pieces = np.stack([first, last], axis=1)[first < last].tolist()
            chunks.append(Chunk(row, 0, -1, (stop - start) / SAMPLE_RATE, pieces))
        return chunks, total / SAMPLE_RATE

    def _of_file(self, recording):
        """Segments [S, 2] of a long recording, of which a block is held at a time."""
        block = BLOCK_SECONDS * recording.sample_rate
        found, samples, before = [], 0, None
        for start in range(0, recording.frames, block):
            frames = min(block, recording.frames - start)
            seconds = frames / recording.sample_rate
            wav, _ = read_chunk(recording, Chunk(0, start, frames, seconds), 0)
            size = round(seconds * SAMPLE_RATE)
            if wav is None:
                wav = torch.zeros(size)
            wav = F.pad(wav, (0, size - len(wav)))  # a rate's fraction is rounded
            wav = _raised(wav.to(self.window)[None])
            values, before = self.probabilities(wav, before)
            found.append(values[0].cpu().numpy())
            samples += size
        return self._by_rule(np.concatenate(found), samples)

    def _of_padded(self, wavs, lengths):
        """wavs [B, T] with zeros behind, and how long each is → B times [S, 2]."""
        rows = self.probabilities(_raised(wavs))[0].cpu().numpy()
        return [self._by_rule(row, length) for row, length in zip(rows, lengths)]

    def _by_rule(self, probabilities, samples):
        n_windows = -(-samples // VAD_WINDOW)
        rule = self.config._asdict()
        del rule["speech_detection"]
        return speech_segments(probabilities[:n_windows], samples, **rule)


class SpeechGate(SpeechDetector):
    """Lets recordings with speech pass whole, and no others.

    For a model that hears spoofs in the pauses, too, and was trained with them.

    Arguments
    ---------
    config : SpeechConfig or None
    least : float
        Seconds of speech that a recording needs.
    """

    def __init__(self, config=None, least=0.0):
        super().__init__(config)
        self.least = least

    def trimmed(self, wavs):
        """B waveforms [T] → the same; of those with too little speech, only that."""
        enough = max(round(self.least * SAMPLE_RATE), 1)
        return [
            wav if len(spoken) >= enough else spoken
            for wav, spoken in zip(wavs, super().trimmed(wavs))
        ]

    def windows_of_speech(self, row, recording, chunking):
        """The windows of a long file in which somebody speaks, and their seconds.

        Arguments and errors are those of :class:`SpeechDetector`.
        """
        segments = self._of_file(recording)
        spoken = int((segments[:, 1] - segments[:, 0]).sum())
        check_speech(recording.path, spoken / SAMPLE_RATE, self.least)
        samples = int(recording.seconds * SAMPLE_RATE)
        chunks = [
            Chunk(row, 0, -1, (stop - start) / SAMPLE_RATE, [[start, stop]])
            for start, stop in windows_of(samples, chunking, SAMPLE_RATE)
            if ((segments[:, 0] < stop) & (segments[:, 1] > start)).any()
        ]
        return chunks, samples / SAMPLE_RATE


def speech_of(wav, segments):
    """What lies in the segments [S, 2] of a waveform [T], array or tensor → [T']."""
    parts = [wav[start:stop] for start, stop in segments] or [wav[:0]]
    return torch.cat(parts) if torch.is_tensor(wav) else np.concatenate(parts)


def check_speech(path, seconds, least):
    """NoSpeechError where there is none, or less than ``least`` seconds."""
    if not seconds or seconds < least:
        raise NoSpeechError(f"{path}: {lack_of_speech(seconds, least)}")


def silero_file(name):
    """Path of a file in silero-vad's data; InputError where that is not installed."""
    found = importlib.util.find_spec("silero_vad")
    if found is None:
        raise InputError(
            "speech detection: the package silero-vad is missing, expected it "
            "installed: pip install silero-vad; or speech_detection=False"
        )
    return Path(found.submodule_search_locations[0]) / "data" / name


def _raised(wavs):
    """wavs [B, T], the quiet ones louder: the network misses what is below its range.

    And those that exceed it, integers stored as floats, quieter.

    Of real speech with peaks at 0.01 it lost 5 of 170 recordings, at 0.003 46, and none
    where the loudest of their windows had been brought to an RMS of 0.05.
    """
    windows = F.pad(wavs, (0, -wavs.shape[1] % VAD_WINDOW)).view(
        len(wavs), -1, VAD_WINDOW
    )
    loudest = torch.linalg.vector_norm(windows, dim=2).amax(1) / VAD_WINDOW**0.5
    gain = (VAD_LEVEL / loudest).clamp(max=VAD_MOST_GAIN)
    gain = gain.where((gain > 1) | (loudest > 1), 1)
    return wavs * gain[:, None] if (gain != 1).any() else wavs


def _weights():
    """Of the library's network for 16 kHz, on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself
        network = torch.jit.load(silero_file(NETWORK), map_location="cpu")
    return {
        name.removeprefix("_model."): value.detach().clone()
        for name, value in network.state_dict().items()
    }


class _FewFrames(torch.nn.Module):
    """A convolution of 3 frames over few, with zeros on both sides, as matrices.

    x [M, n · C] → [M, n' · C']. The first half of the frames that come out, and the
    second, has a matrix each, without the frames that it does not see.
    """

    def __init__(self, kernel, bias, n_frames, stride):
        super().__init__()
        channels = kernel.shape[1]
        unit = torch.eye(n_frames * channels).view(-1, n_frames, channels).mT
        whole = F.conv1d(unit, kernel, stride=stride, padding=1).mT  # [n · C, n', C']
        n_out, self.seen = whole.shape[1], []
        middle = (n_out + 1) // 2
        for start, stop in ((0, middle), (middle, n_out))[: 1 + (n_out > 1)]:
            first = max(start * stride - 1, 0) * channels
            last = min((stop - 1) * stride + 2, n_frames) * channels
            matrix = whole[first:last, start:stop].flatten(1).contiguous()
            self.register_buffer(f"matrix{len(self.seen)}", matrix)
            self.register_buffer(f"bias{len(self.seen)}", bias.repeat(stop - start))
            self.seen.append((first, last))

    def forward(self, x):
        """[M, n · C] → [M, n' · C']."""
        parts = [
            torch.addmm(
                getattr(self, f"bias{half}"), x[:, a:b], getattr(self, f"matrix{half}")
            )
            for half, (a, b) in enumerate(self.seen)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
