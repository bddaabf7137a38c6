"""Bona fide and spoofed speech in the layout of ASVspoof 5.

    spoof/flac_T/T_0000000001.flac          training: the first speakers of voxceleb2
    spoof/flac_D/D_0000000001.flac          development: its last speakers
    spoof/flac_E_eval/E_0000000001.flac     evaluation: the speakers of voxceleb1
    spoof/ASVspoof5.{train,dev.track_1,eval.track_1}.tsv

Speakers and attacks of one split come in no other. Development has Griffin-Lim again,
with other settings, and two methods that training has not; no method of the evaluation
is in either. Bona fide speech is what espeak-ng's formant synthesiser says; a spoof is
the same take through a vocoder or a conversion, or another voice with the speaker's
accent and pitch: of the same synthesiser and through a vocoder, or of Klatt's.

What could give a spoof away without a look at the speech is the same for both
classes: every recording, spoofed or not, then passes through a channel of its own from
one distribution (band, tilt, level, noise floor, silence at both ends), and its number
in the file's name is drawn by lot. In the evaluation every third recording comes a
second time through a lossy codec.
"""

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import soundfile
from scipy.signal import resample_poly

from demo_corpus import vocoders
from demo_corpus.espeak import Synthesiser, Voice
from demo_corpus.text import Reader
from demo_corpus.voices import make_channel, record, speak, vary
from speechbrain_ext.data.audio import SAMPLE_RATE

MOST_SPOOFS = 4  # of one recording: every method of its split once
SHORTEST, LONGEST = 1.8, 3.6  # seconds of a take
PROTOCOLS = {
    "T": ("flac_T", "ASVspoof5.train.tsv"),
    "D": ("flac_D", "ASVspoof5.dev.track_1.tsv"),
    "E": ("flac_E_eval", "ASVspoof5.eval.track_1.tsv"),
}
# Of ASVspoof 5: Opus wide band, MP3, Opus narrow band.
CODECS = {
    "C01": ("OGG", "OPUS", 16000),
    "C05": ("MP3", "MPEG_LAYER_III", 16000),
    "C08": ("OGG", "OPUS", 8000),
}


class Attack(NamedTuple):
    """A method of spoofing.

    label : its name in the protocols
    method : of :mod:`demo_corpus.vocoders`, (take, *random generator*, settings) → take
        of the same length; None: another synthesiser's voice as it is
    settings : of the method; of ``factor`` the range, drawn anew for every take
    variant : voice of espeak-ng in place of the speaker's own; None: copy-synthesis
    """

    label: str
    method: Callable | None
    settings: dict = {}
    variant: str | None = None

    def change(self, wav, rng):
        """Spoof a take: [T] → [T]."""
        if self.method is None:
            return wav
        if "factor" in self.settings:
            return self.method(wav, rng.uniform(*self.settings["factor"]))
        return self.method(wav, rng, **self.settings)


_COARSE = {"mels": 40, "size": 512, "hop": 128, "iterations": 12, "momentum": 0}
_MIDDLE = {"mels": 64, "size": 768, "hop": 192, "iterations": 16}
_FINE = {"mels": 80, "size": 1024, "hop": 256, "iterations": 16}
_HIGHER = {"factor": (1.08, 1.25)}
# Klatt's synthesiser is a second one within espeak-ng.
ATTACKS = {
    "T": (
        Attack("A01", vocoders.mel_griffin_lim, _FINE),
        Attack("A02", vocoders.lpc_vocoder),
        Attack("A03", vocoders.convert_pitch_in_time, _HIGHER),
        Attack("A04", vocoders.mel_griffin_lim, _COARSE, "john"),
    ),
    "D": (
        Attack("A09", vocoders.mel_griffin_lim, _MIDDLE),
        Attack("A10", vocoders.harmonic_vocoder),
        Attack("A11", vocoders.convert_pitch, _HIGHER),
        Attack("A12", vocoders.harmonic_vocoder, variant="zac"),
    ),
    "E": (
        Attack("A17", vocoders.mixed_vocoder),
        Attack("A18", vocoders.convert_formants, {"factor": (1.08, 1.2)}),
        Attack("A19", None, variant="klatt"),
        Attack("A20", vocoders.mixed_vocoder, variant="klatt3"),
    ),
}


class Job(NamedTuple):
    """All recordings of one speaker."""

    split: str
    name: str
    speaker: tuple
    takes: int
    spoofs: int  # of every take
    numbers: list  # of the files, one for every recording and coded copy
    coded: list  # of bool, one for every recording

    @property
    def identity(self):
        """The speaker's name in the protocols: id20001 is T_0001."""
        return f"{self.split}_{self.name.lstrip('id')[1:]}"


def spoof_files(jobs, generator):
    """Make every recording and protocol.

    Arguments
    ---------
    jobs : list of Job
        From :func:`plan`.
    generator : callable
        Name → np.random.Generator.

    Yields
    ------
    (str, bytes)
        Path in the corpus and content.
    """
    rows = {split: [] for split in PROTOCOLS}
    # espeak-ng and FFTs leave Python's lock: threads share the cores.
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for job, made in zip(jobs, pool.map(partial(_recordings, generator), jobs)):
            for row, content in made:
                yield f"spoof/{PROTOCOLS[job.split][0]}/{row[1]}.flac", content
                rows[job.split].append(row)
    finally:
        pool.shutdown(cancel_futures=True)
    for split, (_, protocol) in PROTOCOLS.items():
        lines = sorted(rows[split], key=lambda row: row[1])
        yield (
            f"spoof/{protocol}",
            "".join(" ".join(row) + "\n" for row in lines).encode(),
        )


def plan(speakers, takes, spoofs, generator):
    """Who is spoofed in which split, and under which file numbers.

    Arguments
    ---------
    speakers : dict
        Name → Speaker; ``id1…`` for testing, ``id2…`` for training.
    takes : int
        Bona fide recordings of every speaker.
    spoofs : int
        Spoofs of every take, at most ``MOST_SPOOFS``: the methods of a split in turn.
    generator : callable
        Name → np.random.Generator.

    Returns
    -------
    list of Job
    """
    names = [name for name in speakers if name.startswith("id2")]
    dev = max(1, len(names) // 3)
    parts = {
        "T": names[:-dev],
        "D": names[-dev:],
        "E": [name for name in speakers if name.startswith("id1")],
    }
    jobs = []
    for split, members in parts.items():
        count = takes * (1 + spoofs)
        coded = np.zeros((len(members), count), bool)
        rng = generator(f"spoof-{split}")
        if split == "E":
            chosen = rng.permutation(coded.size)[: coded.size // 3]
            coded.flat[chosen] = True
        numbers = rng.permutation(coded.size + coded.sum()) + 1
        for name, its in zip(members, coded):
            own, numbers = np.split(numbers, [count + its.sum()])
            jobs.append(
                Job(split, name, speakers[name], takes, spoofs, list(own), list(its))
            )
    return jobs


def _recordings(generator, job):
    """(row of the protocol, content) of every recording of one speaker."""
    made = []
    rng = generator(f"spoof-{job.name}")
    reader, numbers, coded = Reader(rng), iter(job.numbers), iter(job.coded)
    attacks = ATTACKS[job.split]

    def synthesiser():
        # One for every voice: how one speaks depends on what it has said before.
        return Synthesiser(seed=int(rng.integers(2**31)))

    with synthesiser() as own, synthesiser() as other:
        for number in range(job.takes):
            voice = vary(job.speaker.voice, rng, pitch=4, rate=0.06)
            take = _take(own, reader, voice, rng)
            made += _release(job, take, None, numbers, coded, rng)
            for turn in range(job.spoofs):
                attack = attacks[(number * job.spoofs + turn) % len(attacks)]
                source = take
                if attack.variant:
                    voice = voice._replace(variant=attack.variant)
                    source = _take(other, reader, voice, rng)
                wav = attack.change(source, rng)
                made += _release(job, wav, attack, numbers, coded, rng)
    return made


def _take(synthesiser, reader, voice: Voice, rng):
    least = rng.uniform(SHORTEST, LONGEST - 1.2)
    return speak(synthesiser, reader, voice, least, LONGEST)


def _release(job, wav, attack, numbers, coded, rng):
    """Record a take through a channel of its own, and again through a codec."""
    # Clean recordings of a wide band, as ASVspoof 5 has them.
    channel = make_channel(rng)._replace(
        low_pass=rng.uniform(5500, 7600), snr=rng.uniform(30, 50)
    )
    wav = record(wav, channel, rng)
    name = f"{job.split}_{next(numbers):010d}"
    quality = "0" if job.split == "E" else "-"
    method = ("AC1", attack.label, "spoof") if attack else ("-", "bonafide", "bonafide")

    def row(name, *codec):
        sex = job.speaker.sex.upper()
        return (job.identity, name, sex, *codec, *method, "-")

    yield row(name, "-", quality, "-"), _flac(wav)
    if next(coded):
        codec = list(CODECS)[rng.integers(len(CODECS))]
        copy = f"{job.split}_{next(numbers):010d}"
        yield row(copy, codec, "1", name), _flac(_through(wav, *CODECS[codec]))


def _through(wav, container, subtype, rate):
    """Encode and decode; as long as before."""
    narrow = resample_poly(wav, rate, SAMPLE_RATE)
    file = io.BytesIO()
    soundfile.write(file, narrow, rate, format=container, subtype=subtype)
    file.seek(0)
    decoded, decoded_rate = soundfile.read(file, dtype="float32")
    decoded = resample_poly(decoded, SAMPLE_RATE, decoded_rate)[: len(wav)]
    return np.pad(decoded, (0, len(wav) - len(decoded)))


def _flac(samples):
    """A 16-bit FLAC file, as bytes; the channel's noise floor is its dither."""
    pcm = np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()
