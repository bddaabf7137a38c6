"""Speech as codecs leave it: encoded and decoded again, in memory, by PyAV.

    x → at the codec's rate → encode at a drawn bit rate → decode → at 16 kHz → y

Length and time stay: what encoder and decoder delay together is measured once, by the
peak of the correlation of a chirp with what comes out. A codec of 8 kHz leaves a narrow
band. Those of ASVspoof 5's evaluation (Wang et al., ASVspoof workshop 2024) are opus,
amr_wb, speex, mp3, m4a, opus_nb, amr_nb and speex_nb; which of them there are depends
on how PyAV's ffmpeg was built. An encoder takes 2 to 40 ms of a core for 3 s of speech.
"""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from scipy.signal import chirp, correlate, resample_poly

from speechbrain_ext.utils.errors import InputError, how_to_install

RATE = 16000  # Hz
SILENCE = 0.3  # seconds behind the end: no codec holds back more
_SAMPLE_FORMATS = ("fltp", "flt", "s16p", "s16")  # the first that an encoder takes


class _Kind(NamedTuple):
    """ffmpeg's names of a codec's two sides, its rate in Hz, and its bit rates."""

    encoder: str
    decoder: str
    rate: int
    kbps: tuple


CODECS = {
    "mp3": _Kind("libmp3lame", "mp3float", RATE, (16, 24, 32, 48, 64, 96, 128)),
    "m4a": _Kind("aac", "aac", RATE, (16, 24, 32, 48, 64, 96)),
    "vorbis": _Kind("libvorbis", "vorbis", RATE, (32, 48, 64)),
    "opus": _Kind("libopus", "libopus", RATE, (6, 9, 12, 16, 24, 30)),
    "opus_nb": _Kind("libopus", "libopus", 8000, (6, 8, 10, 12, 16)),
    "amr_wb": _Kind(
        *("libvo_amrwbenc", "amrwb", RATE),
        (6.6, 8.85, 12.65, 14.25, 15.85, 18.25, 19.85, 23.05, 23.85),
    ),
    "amr_nb": _Kind(
        *("libopencore_amrnb", "libopencore_amrnb", 8000),
        (4.75, 5.15, 5.9, 6.7, 7.4, 7.95, 10.2, 12.2),
    ),
    "speex": _Kind("libspeex", "speex", RATE, (6, 10, 13, 17, 21, 28)),
    "speex_nb": _Kind("libspeex", "speex", 8000, (4, 6, 8, 11, 15)),
    "g722": _Kind("g722", "g722", RATE, (64,)),
    "g723": _Kind("g723_1", "g723_1", 8000, (6.3,)),
    "gsm": _Kind("libgsm", "gsm", 8000, (13,)),
    "mulaw": _Kind("pcm_mulaw", "pcm_mulaw", 8000, (64,)),
    "alaw": _Kind("pcm_alaw", "pcm_alaw", 8000, (64,)),
}
USUAL = ("mp3", "m4a", "opus", "opus_nb", "amr_nb", "g722", "mulaw", "alaw")


class Codec:
    """Encode and decode by one drawn codec at one drawn bit rate.

    Arguments
    ---------
    codecs : list of str
        Some of ``CODECS``, drawn with equal chance.
    kbps : dict, optional
        Bit rates to draw from, of those that shall not have the usual ones:
        ``{mp3: [32, 64]}``.

    Raises
    ------
    InputError
        A codec that is unknown, or that the installed PyAV lacks; a bit rate that it
        refuses; no PyAV.
    """

    def __init__(self, codecs: list[str] = USUAL, kbps: dict | None = None):
        av = _pyav()
        self.codecs, given = list(codecs), dict(kbps or {})
        unknown = [name for name in (*self.codecs, *given) if name not in CODECS]
        if unknown or not self.codecs:
            raise InputError(
                f"codecs: {unknown[0] if unknown else 'none'}, expected some of "
                f"{', '.join(CODECS)}"
            )
        there = [name for name, kind in CODECS.items() if _is_there(av, kind)]
        missing = [name for name in self.codecs if name not in there]
        if missing:
            kind = CODECS[missing[0]]
            raise InputError(
                f"codecs: {missing[0]}: PyAV {av.__version__} lacks "
                f"{kind.encoder} or {kind.decoder}, expected some of those that it "
                f"has: {', '.join(there)}"
            )
        self.kbps = {
            name: _checked_rates(name, given.get(name, CODECS[name].kbps))
            for name in self.codecs
        }
        self.delays = {
            name: [_measured_delay(av, name, kbps) for kbps in rates]
            for name, rates in self.kbps.items()
        }

    def __call__(self, wav, generator):
        """Send the utterance through one drawn codec: [T] → [T]."""
        return self.transmit(wav, *self.draw(generator))

    def draw(self, generator):
        """Draw (name of a codec, number of one of its bit rates)."""
        name = self.codecs[generator.integers(len(self.codecs))]
        return name, int(generator.integers(len(self.kbps[name])))

    def transmit(self, wav, name, number):
        """[T] → [T] through a codec at one of its bit rates, by its number.

        Samples beyond ±1 are brought within on the way: codecs would clip them.
        """
        peak = max(float(np.abs(wav).max(initial=0)), 1.0)
        rate, delay = CODECS[name].rate, self.delays[name][number]
        sent = resample_poly(wav / np.float32(peak), rate, RATE)
        heard = _round_trip(_pyav(), CODECS[name], self.kbps[name][number], sent)
        heard = resample_poly(heard[delay:], RATE, rate)[: len(wav)]
        heard = np.pad(heard, (0, len(wav) - len(heard)))
        return heard.astype(np.float32) * np.float32(peak)


def _is_there(av, kind):
    try:
        av.codec.Codec(kind.encoder, "w")
        av.codec.Codec(kind.decoder, "r")
    except (av.error.FFmpegError, ValueError):
        return False
    return True


def _measured_delay(av, name, kbps):
    """Samples at the codec's rate by which sound comes late.

    The chirp has no period; the noise that a codec adds does not move the peak.
    """
    kind = CODECS[name]
    time = np.arange(kind.rate // 2) / kind.rate
    sound = 0.3 * chirp(time, 200, 0.5, 3000) * np.hanning(len(time))
    try:
        heard = _round_trip(av, kind, kbps, sound.astype(np.float32))
    except (av.error.FFmpegError, ValueError) as error:
        raise InputError(
            f"codecs: {name} at {kbps:g} kbps: {kind.encoder} refuses it ({error}),"
            f" expected bit rates such as {', '.join(map(str, kind.kbps))}"
        ) from error
    lags = correlate(heard, sound, method="fft")[len(sound) - 1 :]
    return int(np.argmax(lags))


def _round_trip(av, kind, kbps, wav):
    """Samples at the codec's rate → what is decoded, late, and longer."""
    encoder = av.CodecContext.create(kind.encoder, "w")
    known = [form.name for form in encoder.codec.audio_formats]
    form = next(name for name in _SAMPLE_FORMATS if name in known)
    encoder.sample_rate, encoder.layout, encoder.format = kind.rate, "mono", form
    encoder.bit_rate = round(1000 * kbps)
    encoder.time_base = Fraction(1, kind.rate)
    encoder.open()
    size = encoder.frame_size or 1024
    frames = -(-int(len(wav) + SILENCE * kind.rate) // size)
    sent = np.zeros((frames, 1, size), dtype=np.float32)
    sent.reshape(-1)[: len(wav)] = wav
    if form.startswith("s16"):
        sent = np.round(sent.clip(-1, 1) * 32767).astype(np.int16)
    packets = []
    for number, part in enumerate(sent):
        frame = av.AudioFrame.from_ndarray(part, format=form, layout="mono")
        frame.sample_rate, frame.pts = kind.rate, number * size
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoder = av.CodecContext.create(kind.decoder, "r")
    decoder.sample_rate, decoder.layout = kind.rate, "mono"
    if encoder.extradata:
        decoder.extradata = encoder.extradata
    heard = [f for packet in packets for f in decoder.decode(packet)]
    heard += decoder.decode(None)
    parts = [frame.to_ndarray().reshape(-1) for frame in heard]
    decoded = np.concatenate(parts)
    if decoded.dtype == np.int16:
        decoded = decoded.astype(np.float32) / 32768
    # Opus is decoded at 48 kHz whatever it was
    return resample_poly(decoded, kind.rate, heard[0].sample_rate)


def _checked_rates(name, rates):
    rates = list(rates) if isinstance(rates, (list, tuple)) else [rates]
    numbers = all(isinstance(r, (int, float)) and 0 < r < 1000 for r in rates)
    if not rates or not numbers:
        raise InputError(f"kbps of {name}: {rates}, expected bit rates such as 32")
    return rates


def _pyav():
    try:
        import av
    except ImportError:
        raise InputError(
            f"codecs: PyAV is not installed, expected it: {how_to_install('media')}"
        ) from None
    return av
