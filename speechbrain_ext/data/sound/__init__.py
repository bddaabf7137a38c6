"""Opening any recording: what it is by its first bytes, and who reads it.

    wav, flac, mp3, ogg, aiff, au, caf, …   libsndfile, behind a header that is right
    m4a, mp4, webm, mkv, aac, amr, …        PyAV or ffmpeg

A ``source`` is a path, a member of a shard, or a seekable binary file object, which is
read from its start. Its name says nothing about what it holds: WebM in ``a.wav`` is
WebM.
"""

import contextlib
import io
import os
import stat

import numpy as np
import soundfile

from speechbrain_ext.data.shards.members import TarMember, is_member, open_member
from speechbrain_ext.data.sound import flac, headers, media, mpeg
from speechbrain_ext.data.sound.headers import Doubt, Peek, Pieces
from speechbrain_ext.utils.errors import InputError, naming

READ_AT_ONCE = 1 << 24  # samples of all channels: no header's word is allocated
MP3_MEMORY = 8 * 1152  # samples before, of frames that a frame's bits may lie in
UNKNOWN_FRAMES = 1 << 62  # from here on libsndfile says that a length is not known


def is_path(source):
    """Whether a source is a path, or a member of a shard, and no file object."""
    return isinstance(source, (str, bytes, os.PathLike, TarMember))


def name_of(source):
    """What messages call a source."""
    if is_path(source):
        return os.fsdecode(source) if isinstance(source, bytes) else str(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) and name else "recording in memory"


class Sound:
    """An open recording.

    Attributes
    ----------
    frames, samplerate, channels : int
        ``frames`` samples of each channel.
    doubt : Doubt or None
        Where the header lies.
    """

    def __init__(self, file, ranges=None, doubt=None):
        self._file, self._ranges = file, ranges
        self._others = contextlib.ExitStack()
        self.samplerate, self.channels = file.samplerate, file.channels
        self.frames, self.format, self.doubt = file.frames, file.format, doubt
        if ranges is not None:
            self.frames = sum(last - first for first, last in ranges)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        self._others.close()

    def closes(self, others):
        """Take over an ExitStack, for when this is closed."""
        self._others = others

    def read(self, start, frames):
        """Up to ``frames`` samples from ``start`` on → float32 [T] or [T, C].

        soundfile.SoundFileError where they cannot be decoded.
        """
        if self._ranges is None:
            return self._file.part(start, frames)
        parts, begin = [], 0
        for first, last in self._ranges:
            low = max(start, begin)
            high = min(start + frames, begin + last - first)
            if low < high:
                parts.append(self._file.part(first + low - begin, high - low))
            begin += last - first
        return np.concatenate(parts) if parts else self._file.part(0, 0)


class _Recording(soundfile.SoundFile):
    """A sound file that is read once.

    soundfile seeks three times around each read, to where the file is anyway; of a flac
    file a block is decoded each time, a tenth of the time of a crop of 3 s. It does not
    where a file says that it cannot.
    """

    stays_there = False

    def seekable(self):
        """As soundfile asks before it seeks."""
        return not self.stays_there and super().seekable()

    def part(self, start, frames):
        """Samples from ``start`` on, in blocks where they are many."""
        if start or self.stays_there:
            self.stays_there = False
            before = min(start, MP3_MEMORY) if self.format == "MP3" else 0
            self.seek(start - before)
            self.stays_there = True
            self.read(before, dtype="float32")
        self.stays_there = True
        most = max(1, READ_AT_ONCE // self.channels)
        blocks = []
        while True:
            block = self.read(min(frames, most), dtype="float32", always_2d=False)
            blocks.append(block)
            frames -= len(block)
            if frames <= 0 or len(block) < most:
                break
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


class _Decoded:
    """Samples [T, C] that are decoded already."""

    format = "decoded"

    def __init__(self, wav, samplerate):
        self._wav, self.samplerate = wav, samplerate
        self.frames, self.channels = wav.shape

    def part(self, start, frames):
        """Samples from ``start`` on."""
        part = np.array(self._wav[start : start + frames], np.float32)
        return part[:, 0] if self.channels == 1 else part

    def close(self):
        """The copy goes when nobody refers to it."""


def open_sound(source):
    """Open a recording, and look whether its header tells the truth.

    Arguments
    ---------
    source : str, Path or binary file

    Returns
    -------
    Sound
        To be closed.

    Raises
    ------
    InputError
        Missing, no regular file, no sound, or cut; names the source.
    """
    file = _stream(source)
    with contextlib.ExitStack() as stack:
        if is_path(source):
            stack.callback(file.close)
        with naming(name_of(source)), _as_input_error():
            sound = _examined(source, file)
        sound.closes(stack.pop_all())
        return sound


def open_trusting(source):
    """Open a recording by its header → Sound, or None for one that has to be examined.

    For a part of a recording whose length is known: nothing but the part is read.
    """
    if not is_path(source):
        return None
    try:
        file = _Recording(_opened_by_libsndfile(source))
    except (soundfile.SoundFileError, RuntimeError, OSError):
        return None
    if file.format == "MP3":  # its length is an estimate, and its ends are not cut off
        file.close()
        return None
    if file.format == "FLAC" and not _is_one_flac(source):
        file.close()
        return None
    return Sound(file)


def _is_one_flac(source):
    """Of several that follow one another libsndfile would seek in the wrong one."""
    with _stream(source) as content:
        peek = Peek(content)
        return flac.flac(peek, mpeg.after_tags(peek)) is None


def _stream(source):
    """A source as a binary file; InputError where it is none to be read."""
    if is_path(source) and is_member(source):
        return open_member(source)
    with naming(name_of(source)), _as_input_error():
        if is_path(source):
            return open(_name(source), "rb", buffering=0)
        if not source.seekable():
            raise OSError("it cannot be read from any place, as a file can")
        return source


@contextlib.contextmanager
def _as_input_error():
    try:
        yield
    except (soundfile.SoundFileError, RuntimeError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).split(": ", 1)[-1]
        raise InputError(f"cannot be opened as sound ({reason.strip()})") from error


def _opened_by_libsndfile(source):
    return open_member(source) if is_member(source) else _name(source)


def _name(path):
    """What the system opens; OSError with the reason where it is no file to be read."""
    # a name may be any bytes; libsndfile says "System error" of files that are missing
    # and waits for ever for somebody to write into a pipe
    name = str(path) if os.name == "nt" else os.fsencode(path)
    if not stat.S_ISREG(os.stat(name).st_mode):
        raise OSError("not a regular file")
    if not os.access(name, os.R_OK):
        raise OSError("permission denied")
    return name


# -- by the first bytes ----------------------------------------------------------------

_TAGGED = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"OggS")
_OTHERS = {  # that libsndfile cannot read: first byte, mark, name
    (4, b"ftyp"): "MPEG-4",
    (0, b"\x1aE\xdf\xa3"): "Matroska or WebM",
    (0, b"#!AMR"): "AMR",
    (0, b"0&\xb2u\x8ef\xcf\x11"): "Windows Media",
    (0, b"FLV\x01"): "Flash video",
    (8, b"AVI "): "AVI",
    (0, b"wvpk"): "WavPack",
    (0, b"MAC "): "Monkey's Audio",
    (0, b".RMF"): "RealMedia",
    (0, b"\x0b\x77"): "AC-3",
    (0, b"\x00\x00\x01\xba"): "MPEG",
}


def _other(head):
    """The name of what libsndfile cannot read, or None."""
    for (place, mark), name in _OTHERS.items():
        if head[place : place + len(mark)] == mark:
            return name
    if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xF6 == 0xF0:
        return "AAC"
    return None


def _repair(peek):
    """What has to be mended, by the first bytes; None: nothing, or nobody knows."""
    head = peek(0, 16)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return headers.wav(peek)
    if head == b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00":
        return headers.w64(peek)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return headers.aiff(peek)
    if head[:4] in (b".snd", b"dns."):
        return headers.au(peek)
    if head[:4] == b"caff":
        return headers.caf(peek)
    begin = mpeg.after_tags(peek)
    head = peek(begin, 16)
    if head[:4] == b"fLaC":
        return flac.flac(peek, begin)
    if begin or head[:1] == b"\xff":
        return None if _other(head) else mpeg.mp3(peek, begin)
    return None


def _examined(source, file):
    peek = Peek(file)
    if not peek.size:
        raise OSError("0 bytes")
    begin = mpeg.after_tags(peek)
    if begin and peek(begin, 4) in _TAGGED:  # tags that belong before mp3 alone
        source = file = io.BufferedReader(Pieces(file, [(begin, peek.size - begin)]))
        peek = Peek(file)
    other = _other(peek(mpeg.after_tags(peek), 16))
    if other is not None:
        return _decoded(source, file, other)
    doubt = flac.ogg(peek) if peek(0, 4) == b"OggS" else None
    if doubt is not None and doubt.kind == flac.CHAINED:  # libsndfile reads but one
        return _decoded(source, file, "Ogg", doubt)
    try:
        repair = _repair(peek)
        if isinstance(repair, flac.Joined):
            return _joined(file, repair)
        sound = _native(source, file, repair, doubt)
        if repair is None and sound.format == "MP3":  # which begins within a frame
            with sound:
                sound = _native(source, file, mpeg.mp3(peek, 0))
        return sound
    except (soundfile.SoundFileError, RuntimeError) as error:
        if media.is_available():
            with contextlib.suppress(InputError):
                return _decoded(source, file, "")
        is_wav = peek(8, 4) == b"WAVE"  # what follows its sound may be damaged
        repair = headers.wav(peek, anyhow=True) if is_wav else mpeg.mp3(peek, 0)
        if repair is None:
            raise error
        return _native(source, file, repair)


def _joined(file, joined):
    """All streams of a file, one after the other; they must be of one kind."""
    parts, kinds = [], set()
    for number, piece in enumerate(joined.streams, 1):
        stream = io.BufferedReader(Pieces(file, [piece]))
        with _examined(stream, stream) as sound:
            kinds.add((sound.samplerate, sound.channels))
            try:
                wav = sound.read(0, sound.frames)
            except soundfile.SoundFileError:
                wav = ()
            if len(wav) < sound.frames:
                raise OSError(f"number {number} of {len(joined.streams)} in it is cut")
        parts.append(wav.reshape(len(wav), -1))
    if len(kinds) > 1:
        found = " and ".join(f"{rate} Hz, {n} channel(s)" for rate, n in sorted(kinds))
        raise OSError(f"flac files of {found} follow one another in it, expected one")
    rate, _ = kinds.pop()
    return Sound(_Decoded(np.concatenate(parts), rate), doubt=joined.doubt)


def _decoded(source, file, what, doubt=None):
    """As PyAV or ffmpeg decode it."""
    path = _name(source) if is_path(source) and not is_member(source) else None
    try:
        return Sound(_Decoded(*media.decode(file, path)), doubt=doubt)
    except InputError as error:
        raise InputError(f"cannot be opened as sound ({what}, {error})") from error


def _native(source, file, repair, doubt=None):
    """As libsndfile reads it."""
    if repair is None:
        if is_path(source):
            return _counted(lambda: _Recording(_opened_by_libsndfile(source)), doubt)
        return _counted(lambda: _Recording(_rewound(file)), doubt)
    if repair.ranges is None and repair.options.get("format") == "MP3":
        within = mpeg.mp3(Peek(file), *repair.pieces[0])
        if within is None:
            raise soundfile.SoundFileRuntimeError("no mp3 in it")
        repair = within._replace(doubt=repair.doubt)
    opened = _from_any_place(_Recording(Pieces(file, repair.pieces), **repair.options))
    return Sound(opened, repair.ranges, repair.doubt)


def _from_any_place(file):
    """The same; one that libsndfile reads from its start alone is decoded.

    GSM 6.10 is, of telephones. SoundFileError: another decoder is there, which does it
    once for all parts.
    """
    if file.seekable():
        return file
    with file:
        if media.is_available():
            raise soundfile.SoundFileRuntimeError("it can be read from its start alone")
        wav = file.part(0, file.frames)
        return _Decoded(wav.reshape(len(wav), -1), file.samplerate)


def _rewound(file):
    file.seek(0)
    return file


def _counted(open_, doubt):
    """A Sound whose length is counted where the header does not state it."""
    file = _from_any_place(open_())
    if file.frames < UNKNOWN_FRAMES:
        return Sound(file, doubt=doubt)
    frames = 0
    with file:
        while block := len(file.part(frames, READ_AT_ONCE)):
            frames += block
    text = f"its header does not say how long it is, it has {frames} samples"
    return Sound(open_(), ((0, frames),), Doubt("stream", text))
