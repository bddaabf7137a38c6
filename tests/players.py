"""What a player makes of a recording: ffmpeg decodes it, sample by sample."""

import shutil
import subprocess

import numpy as np
import pytest

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="ffmpeg is not on PATH"
)


def ffmpeg(*words, **options):
    """Run ffmpeg quietly."""
    command = ["ffmpeg", "-nostdin", "-y", "-v", "error", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, **options).stdout


def as_ffmpeg(path, *options):
    """float32 [T], its channels averaged, as ``read_mono``, and the rate."""
    content = ffmpeg(
        *("-i", f"file:{path}", "-map", "0:a:0", *options, "-map_metadata", "-1"),
        *("-c:a", "pcm_f32be", "-f", "au", "pipe:1"),
    )
    begin, rate, channels = (
        int.from_bytes(content[at : at + 4], "big") for at in (4, 16, 20)
    )
    wav = np.frombuffer(content, ">f4", offset=begin).reshape(-1, channels)
    wav = wav.astype(np.float32)
    return (wav[:, 0] if channels == 1 else wav.mean(axis=1)), rate


def noise(seconds, channels=1, rate=16000, seed=0):
    """int16 [T, C], with some quiet and some loud stretches."""
    generator = np.random.default_rng(seed)
    n = round(seconds * rate)
    loud = 3000 * (1.1 + np.sin(np.arange(n) / 1500))[:, None]
    return (
        (loud * generator.standard_normal((n, channels)))
        .clip(-32768, 32767)
        .astype(np.int16)
    )
