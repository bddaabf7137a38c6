"""What the demonstration corpus holds: each file's name and bytes, in a fixed order.

Every speaker and every noise has a random generator of its own, named after it: the
test speakers and the noises stay the same when training speakers are added.
"""

import io
import string
import zlib
from functools import partial
from typing import NamedTuple

import numpy as np
import soundfile

from demo_corpus import noises, rooms
from demo_corpus.espeak import Synthesiser
from demo_corpus.spoofs import PROTOCOLS, plan, spoof_files
from demo_corpus.text import Reader
from demo_corpus.trials import make_trials
from demo_corpus.voices import (
    LONGEST,
    SHORTEST,
    make_channel,
    make_speakers,
    record,
    speak,
    vary,
)
from speechbrain_ext.data.audio import SAMPLE_RATE

TRIALS = 1000
BABBLERS = 8
NOISE_FILES, MUSIC_FILES = 12, 4
NOISE_SECONDS, MUSIC_SECONDS, BABBLE_SECONDS = 6, 12, 10
ROOM_FILES = 8
# Real RIRS_NOISES: small rooms of 1-10 m, medium ones of 10-30 m; these are at the
# lower end, where a reverberation time of 0.2-0.8 s is plausible.
ROOM_SIZES = {
    "smallroom": ((3.0, 3.0, 2.3), (6.0, 5.0, 3.0), (0.2, 0.5)),
    "mediumroom": ((10.0, 10.0, 2.8), (14.0, 12.0, 4.5), (0.4, 0.8)),
}
SESSION_LETTERS = string.ascii_letters + string.digits + "-_"

README = """\
Synthetic speech in the layout of VoxCeleb, MUSAN, RIRS_NOISES and ASVspoof 5
=============================================================================

The voices are those of espeak-ng, a formant synthesiser; noises, music and room
responses are computed. No recording of anybody or anything is in here.

It serves to try every step of a recipe, from preparation to scoring, in minutes.
It does not serve to measure accuracy: these speakers are far fewer and far simpler
than people, and error rates on veri_test.txt say nothing about human speech.

In spoof/, "bonafide" is what espeak-ng says, and "spoof" the same speech through a
vocoder or a conversion, or another synthesiser's voice.

demo.json holds the arguments that made this folder, and the voice of each speaker.
espeak-ng is GPL-3, which covers that program and not what it says.
"""


class Size(NamedTuple):
    """The arguments of ``make_demo_corpus``, which decide every byte."""

    n_train_speakers: int
    n_test_speakers: int
    sessions: int
    utterances: int
    seed: int
    spoofs: int = 2

    @property
    def files(self):
        """How many files :func:`files` gives."""
        speakers = self.n_train_speakers + self.n_test_speakers
        fixed = NOISE_FILES + MUSIC_FILES + BABBLERS + 2 * ROOM_FILES + len(REAL_ROOMS)
        lists = 3 + 1 + 1  # rir_list, veri_test.txt, README.txt
        spoofed = 0
        if self.spoofs:
            spoofed = sum(len(job.numbers) for job in spoof_plan(self))
            lists += len(PROTOCOLS)
        return speakers * self.sessions * self.utterances + fixed + spoofed + lists


REAL_ROOMS = tuple(
    f"{room}room1_{distance}_angla"
    for room in ("small", "medium", "large")
    for distance in ("near", "far")
)


def cast(size):
    """Who speaks: name → Speaker, in the order test, training, babble.

    Test speakers come first, so that they have variants of their own.
    """
    names = [f"id{10001 + n}" for n in range(size.n_test_speakers)]
    names += [f"id{20001 + n}" for n in range(size.n_train_speakers)]
    names += [f"speech-librivox-{n:04d}" for n in range(BABBLERS)]
    return dict(zip(names, make_speakers(len(names), generator_of(size, "speakers"))))


def spoof_plan(size):
    """What every speaker records for the detection of spoofs: list of Job."""
    takes = size.sessions * size.utterances
    return plan(cast(size), takes, size.spoofs, partial(generator_of, size))


def files(size):
    """Make every file of the corpus but ``demo.json``.

    Arguments
    ---------
    size : Size
        The arguments.

    Yields
    ------
    (str, bytes)
        Path in the corpus and content.
    """
    yield "README.txt", README.encode()
    everyone = cast(size)
    heard = {}
    for name, speaker in everyone.items():
        if name.startswith("id"):
            yield from _speaker_files(size, name, speaker, heard)
        else:
            yield f"musan/speech/librivox/{name}.wav", _babble(size, name, speaker)
    lines = make_trials(heard, TRIALS, generator_of(size, "trials"))
    text = "".join(f"{label} {enrol} {test}\n" for label, enrol, test in lines)
    yield "voxceleb1/veri_test.txt", text.encode()
    yield from _musan_files(size)
    yield from _simulated_rooms(size)
    yield from _real_rooms(size)
    if size.spoofs:
        yield from spoof_part(size)


def spoof_part(size):
    """The files of ``spoof``, as :func:`files` yields them."""
    yield from spoof_files(spoof_plan(size), partial(generator_of, size))


def _speaker_files(size, name, speaker, heard):
    """All sessions of one speaker; test speakers are noted in ``heard``."""
    rng = generator_of(size, name)
    test = name.startswith("id1")
    root = "voxceleb1/wav" if test else "voxceleb2/dev/wav"
    reader = Reader(rng)
    sessions = []
    with Synthesiser(seed=int(rng.integers(2**31))) as synthesiser:
        for _ in range(size.sessions):
            session = "".join(rng.choice(list(SESSION_LETTERS), 11))
            channel = make_channel(rng)
            voice = vary(speaker.voice, rng, pitch=4, rate=0.06)
            sessions.append([])
            for number in range(1, size.utterances + 1):
                path = f"{name}/{session}/{number:05d}.wav"
                mood = vary(voice, rng, pitch=2, rate=0.03)
                # The channel adds up to 0.3 s of silence.
                least = rng.uniform(SHORTEST, 2 * SHORTEST)
                take = speak(synthesiser, reader, mood, least, LONGEST - 0.3)
                yield f"{root}/{path}", _wav(record(take, channel, rng))
                sessions[-1].append(path)
    if test:
        heard[name] = (speaker.sex, sessions)


def _babble(size, name, speaker):
    rng = generator_of(size, name)
    with Synthesiser(seed=int(rng.integers(2**31))) as synthesiser:
        take = speak(
            synthesiser, Reader(rng), speaker.voice, BABBLE_SECONDS, 2 * BABBLE_SECONDS
        )
    return _wav(record(take, make_channel(rng)._replace(snr=40), rng))


def _musan_files(size):
    for number in range(NOISE_FILES):
        path = f"noise/free-sound/noise-free-sound-{number:04d}"
        make = noises.NOISES[number % len(noises.NOISES)]
        yield _sound(size, path, make, NOISE_SECONDS)
    for number in range(MUSIC_FILES):
        path = f"music/fma/music-fma-{number:04d}"
        yield _sound(size, path, noises.music, MUSIC_SECONDS)


def _sound(size, path, make, seconds):
    wav = make(seconds * SAMPLE_RATE, generator_of(size, path))
    return f"musan/{path}.wav", _wav(noises.level(wav))


def _simulated_rooms(size):
    for kind, (smallest, largest, (shortest, longest)) in ROOM_SIZES.items():
        folder = f"RIRS_NOISES/simulated_rirs/{kind}"
        rng = generator_of(size, kind)
        box = rng.uniform(smallest, largest)  # Room001: one room, several places
        rt60 = rng.uniform(shortest, longest, ROOM_FILES)
        lines = []
        for number in range(1, ROOM_FILES + 1):
            microphone = rng.uniform(0.3 * box, 0.7 * box)
            direction = rng.standard_normal(3)
            direction *= rng.uniform(0.5, 1.0) / np.linalg.norm(direction)
            source = np.clip(microphone + direction, 0.3, box - 0.3)
            response = rooms.box_response(box, source, microphone, rt60[number - 1])
            path = f"{folder}/Room001/Room001-{number:05d}.wav"
            yield path, _wav(response)
            room = f"{kind.removesuffix('room')}-Room001"
            lines.append(f"--rir-id {room}-{number:05d} --room-id {room} {path}\n")
        yield f"{folder}/rir_list", "".join(lines).encode()


def _real_rooms(size):
    folder = "RIRS_NOISES/real_rirs_isotropic_noises"
    reverberation = {"small": 0.3, "medium": 0.5, "large": 0.7}
    lines = []
    for name in REAL_ROOMS:
        rng = generator_of(size, name)
        room, distance, _ = name.split("_")
        response = rooms.noise_response(
            rt60=reverberation[room.removesuffix("room1")] * rng.uniform(0.9, 1.1),
            delay=rng.uniform(0.002, 0.012),
            direct=4.0 if distance == "near" else 1.5,
            rng=rng,
        )
        identity = f"RVB2014_type1_rir_{name}"
        path = f"{folder}/{identity}.wav"
        yield path, _wav(response)
        lines.append(f"--rir-id {identity} --room-id RVB2014_{room.upper()} {path}\n")
    yield f"{folder}/rir_list", "".join(lines).encode()


def generator_of(size, name):
    """The random generator of one speaker, one noise, one list."""
    return np.random.default_rng([size.seed, zlib.crc32(name.encode())])


def _wav(samples):
    """A 16-bit PCM wav file, as bytes, of float samples in ±1."""
    pcm = np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, pcm, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()
