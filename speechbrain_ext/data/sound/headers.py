"""Headers that lie: what a sound file says of itself against what it holds.

    header  ─┐
             ├─ agree           → the file is read as it is
    content ─┤  differ          → a correct header before the same bytes, and a doubt
             └─ sound is cut    → InputError

Recorders that are killed leave sizes of 0; programs that write into a pipe leave
0xFFFFFFFF or 0x7FFFF000; others count their header twice. Players take the sound that
is there, and so does this module: as many bytes as ffmpeg takes. A wav or aiff file
states its length in two places. Where they agree with each other and the file ends long
before, it has lost its end, and half a recording is not taken for a whole one.

Only a few bytes of a correct file are read. Nothing is allocated by a header's word.
"""

import io
import os
import struct
from bisect import bisect_right
from typing import NamedTuple

from speechbrain_ext.utils.errors import InputError

HEAD = 512  # bytes that hold the header of most files
SLACK = 128  # bytes by which confused writers exceed: a header, counted twice
STREAM = 0x7F000000  # 32 bits from here on stand for a length that is not known
FOLLOWING = 1 << 16  # bytes of chunks that may follow the sound
MOST_CHUNKS = 4096
MOST_CHANNELS = 1024  # of libsndfile
SEARCHED = 1 << 16  # bytes after a chunk of a wrong size

PCM, FLOAT, ALAW, ULAW = 1, 3, 6, 7
MS_ADPCM, IMA_ADPCM, MP3, EXTENSIBLE = 2, 0x11, 0x55, 0xFFFE


class Doubt(NamedTuple):
    """Where header and content differ: the ``kind`` of file and a ``text``, figures."""

    kind: str
    text: str


class Repair(NamedTuple):
    """How a file is read whose header is not to be trusted.

    Attributes
    ----------
    pieces : list
        Bytes, or (offset, size) of the file: together a file without a lie.
    doubt : Doubt or None
        What to warn of.
    ranges : tuple of (int, int) or None
        First and last sample of each part of the decoded sound that is kept; None: all.
    options : dict
        Of soundfile, for samples without a header.
    """

    pieces: list
    doubt: Doubt | None = None
    ranges: tuple | None = None
    options: dict = {}


class Peek:
    """Any few bytes of a seekable binary file; ``size`` is its length."""

    def __init__(self, file):
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self._head = file.read(HEAD)

    def __call__(self, offset, count):
        """Up to ``count`` bytes from ``offset`` on: fewer at the end of the file."""
        if offset + count <= len(self._head):
            return self._head[offset : offset + count]
        self._file.seek(offset)
        return self._file.read(count)

    def number(self, offset, count=4, order="little"):
        """An unsigned number of ``count`` bytes."""
        return int.from_bytes(self(offset, count), order)


class Pieces(io.RawIOBase):
    """Bytes and ranges of another file, one after the other, as a file."""

    def __init__(self, file, pieces):
        self._file, self._pieces = file, pieces
        self._ends, end = [], 0
        for piece in pieces:
            end += len(piece) if isinstance(piece, bytes) else piece[1]
            self._ends.append(end)
        self._size, self._position = end, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self._position

    def seek(self, position, whence=os.SEEK_SET):
        base = {os.SEEK_CUR: self._position, os.SEEK_END: self._size}.get(whence, 0)
        self._position = max(0, base + position)
        return self._position

    def readinto(self, buffer):
        view, done = memoryview(buffer).cast("B"), 0
        while done < len(view) and self._position < self._size:
            number = bisect_right(self._ends, self._position)
            wanted = min(len(view) - done, self._ends[number] - self._position)
            content = self._read(number, wanted)
            if not content:
                break
            view[done : done + len(content)] = content
            done += len(content)
            self._position += len(content)
        return done

    def _read(self, number, count):
        piece = self._pieces[number]
        before = self._ends[number - 1] if number else 0
        inside = self._position - before
        if isinstance(piece, bytes):
            return piece[inside : inside + count]
        self._file.seek(piece[0] + inside)
        return self._file.read(count)


# -- how much sound there is -----------------------------------------------------------


def settle(kind, begin, said, stated, size, frame, unknown=False):
    """How many bytes of sound there are, and the doubt, if any.

    Arguments
    ---------
    kind : str
        Of file, for messages.
    begin, said : int
        Where the sound begins, and its bytes, as the header says.
    stated : int or None
        Bytes of the whole file, as the header says in another place.
    size : int
        Bytes that the file has.
    frame : int
        Bytes of one sample of all channels, or of one block.
    unknown : bool
        ``said`` is no length at all, but "to the end".

    Returns
    -------
    taken : int
    doubt : Doubt or None

    Raises
    ------
    InputError
        The file ends before its sound does.
    """
    there = max(0, size - begin)
    end = begin + said
    agree = stated is not None and -SLACK <= stated - end <= FOLLOWING
    if not unknown and agree and end - size > SLACK:
        raise InputError(f"{size} bytes, its header says {stated}: truncated")
    taken = there if unknown else min(said, there)
    if abs(said - taken) > frame:
        text = f"its header says {said} bytes of sound, it has {taken}"
    elif stated is not None and abs(stated - size) > frame:
        text = f"its header says {stated} bytes in all, it has {size}"
    else:
        return taken, None
    return taken, Doubt(kind, text)


def _chunks(peek, position, order):
    """(name, first byte, size) of the chunks of a RIFF or IFF file, as they say."""
    searched = False
    for _ in range(MOST_CHUNKS):
        if position + 8 > peek.size:
            return
        name, count = peek(position, 4), peek.number(position + 4, 4, order)
        begin = position + 8
        yield name, begin, count
        position = begin + count + count % 2
        if count % 2 and not _is_name(peek(position, 4)):
            position -= _is_name(peek(position - 1, 4))  # the pad byte is missing
        if not _is_name(peek(position, 4)) and not searched:
            searched = True  # a wrong size: the sound may begin where it says not
            for wanted in (b"fmt ", b"data", b"SSND"):
                found = peek(begin, SEARCHED).find(wanted)
                if found >= 0:
                    position = begin + found
                    break
    raise InputError(f"{MOST_CHUNKS} chunks and no sound, expected fewer")


def _is_name(name):
    return len(name) == 4 and all(32 <= letter < 127 for letter in name)


# -- wav and its relatives -------------------------------------------------------------


def wav(peek, anyhow=False):
    """RIFF, RIFX, RF64 and BW64 → Repair; None where the file is as it says.

    ``anyhow``: a Repair of a file that is as it says, too, with nothing in it but its
    sound.
    """
    order = "big" if peek(0, 4) == b"RIFX" else "little"
    stated, long = peek.number(4, 4, order) + 8, None
    fmt = place = None
    for name, begin, count in _chunks(peek, 12, order):
        if name == b"fmt " and fmt is None:
            fmt = peek(begin, min(count, HEAD))
        elif name == b"ds64":
            long = peek.number(begin, 8) + 8, peek.number(begin + 8, 8)
        elif name == b"data" and place is None:
            place = begin, count
        if fmt is not None and place is not None:
            break
    if fmt is None or place is None or len(fmt) < 16:
        return None
    (begin, said), unknown = place, place[1] == 0 or place[1] >= STREAM
    if long and said == 0xFFFFFFFF:
        stated, said = long
        unknown = said == 0 or said >= 1 << 62
    if said == 0 and begin >= peek.size:
        unknown = False  # there is nothing, and it says so
    return _riff(peek, fmt, order, begin, said, stated, unknown, anyhow)


def _riff(peek, fmt, order, begin, said, stated, unknown, anyhow=False):
    mark = ">" if order == "big" else "<"
    tag, channels, rate, _, align, bits = struct.unpack(mark + "HHIIHH", fmt[:16])
    if tag == EXTENSIBLE and len(fmt) >= 26:
        tag = int.from_bytes(fmt[24:26], order)
    if not channels or not rate:
        return None
    plain = tag in (PCM, FLOAT, ALAW, ULAW)
    width = (bits + 7) // 8 if tag in (PCM, FLOAT) else 1
    if plain and (width, align) == (3, 4 * channels):
        plain = False  # 24 bits in the room of 32: libsndfile finds out where they are
    block = width * channels if plain else align
    if not 0 < block < 1 << 16:
        return None
    taken, doubt = settle("wav", begin, said, stated, peek.size, block, unknown)
    rest = peek.size - begin - taken
    if doubt is None and rest > block and rest >= 8:
        names = peek(begin + taken, 5)
        if not _is_name(names[:4]) and not _is_name(names[1:]):
            text = f"its header says {said} bytes of sound, by it {rest} more are none"
            doubt = Doubt("wav", text)
    if tag == MP3:
        return Repair([(begin, taken)], doubt, options={"format": "MP3"})
    right = doubt is None and said == taken and align == block
    samples = _adpcm_samples(tag, channels, block, taken, bits)
    whole = plain or taken % block == 0
    if right and whole and not anyhow:
        return None
    if plain:
        per_second = rate * block % 2**32
        plain_fmt = tag, channels, rate, per_second, block, width * 8
        fmt = struct.pack(mark + "HHIIHH", *plain_fmt)
        taken -= taken % block
    pad = -taken % block  # libsndfile reads whole blocks
    header = _wav_header(order, fmt, taken + pad)
    pieces = [header, (begin, taken), bytes(pad)]
    return Repair(pieces, doubt, None if samples is None else ((0, samples),))


def _wav_header(order, fmt, count):
    """Up to the first sample; the sizes of more than 4 GiB in a chunk of their own."""
    fmt += bytes(len(fmt) % 2)
    fits = count < STREAM
    long = b"" if fits else b"ds64" + struct.pack("<IQQQI", 28, count + 64, count, 0, 0)
    form = (b"RIFX" if order == "big" else b"RIFF") if fits else b"RF64"

    def four(number):
        return (number if fits else 0xFFFFFFFF).to_bytes(4, order)

    inside = b"WAVE" + long + b"fmt " + len(fmt).to_bytes(4, order) + fmt
    return form + four(len(inside) + 8 + count) + inside + b"data" + four(count)


def _adpcm_samples(tag, channels, block, count, bits):
    """Samples that ffmpeg decodes of ADPCM, a last short block too; None of others.

    A block begins with a whole sample (IMA) or two (Microsoft), and a byte holds two.
    """
    if tag == MS_ADPCM:

        def samples(n):
            return max(0, n - 6 * channels) * 2 // channels

    elif tag == IMA_ADPCM and bits == 4:

        def samples(n):
            words = (n - 4 * channels) // (4 * channels)
            return 1 + 8 * words if n >= 4 * channels else 0

    else:
        return None
    return count // block * samples(block) + samples(count % block)


_W64 = {
    b"fmt ": b"fmt \xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a",
    b"data": b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a",
}


def w64(peek):
    """Sony's Wave64 → Repair; None where the file is as it says."""
    stated, position, fmt = peek.number(16, 8), 40, None
    for _ in range(MOST_CHUNKS):
        name, count = peek(position, 16), peek.number(position + 16, 8)
        if name == _W64[b"data"]:
            said = max(0, count - 24)
            unknown = said == 0 or said >= 1 << 62
            if not fmt or len(fmt) < 16:
                return None
            return _riff(peek, fmt, "little", position + 24, said, stated, unknown)
        if name == _W64[b"fmt "]:
            fmt = peek(position + 24, min(max(0, count - 24), HEAD))
        position += max(24, count + -count % 8)
        if position + 24 > peek.size:
            break
    return None


# -- samples without compression in other files ----------------------------------------

_WIDTHS = {1: "PCM_S8", 2: "PCM_16", 3: "PCM_24", 4: "PCM_32"}
_SIZES = {"PCM_U8": 1, "ULAW": 1, "ALAW": 1, "FLOAT": 4, "DOUBLE": 8} | {
    name: width for width, name in _WIDTHS.items()
}


def _raw(peek, kind, subtype, endian, channels, rate, begin, said, stated, unknown):
    """Repair of a file whose samples begin at ``begin``."""
    if not subtype or not 0 < channels <= MOST_CHANNELS or not 0 < rate < 1 << 31:
        return None
    frame = _SIZES[subtype] * channels
    taken, doubt = settle(kind, begin, said, stated, peek.size, frame, unknown)
    if doubt is None and said == taken:
        return None
    options = {"format": "RAW", "subtype": subtype, "endian": endian}
    options |= {"channels": channels, "samplerate": rate}
    return Repair([(begin, taken - taken % frame)], doubt, options=options)


_AIFF = {
    b"fl32": "FLOAT",
    b"FL32": "FLOAT",
    b"fl64": "DOUBLE",
    b"FL64": "DOUBLE",
    b"ulaw": "ULAW",
    b"ULAW": "ULAW",
    b"alaw": "ALAW",
    b"ALAW": "ALAW",
    b"raw ": "PCM_U8",
}


def aiff(peek):
    """AIFF and AIFC → Repair; None where the file is as it says."""
    stated, common = peek.number(4, 4, "big") + 8, None
    for name, begin, count in _chunks(peek, 12, "big"):
        if name == b"COMM":
            common = peek(begin, 22 if peek(8, 4) == b"AIFC" else 18)
        elif name == b"SSND" and common and len(common) >= 18:
            channels, _, bits = struct.unpack(">HIH", common[:8])
            code = common[18:22] or b"NONE"
            subtype = _AIFF.get(code)
            if code in (b"NONE", b"twos", b"sowt"):
                subtype = _WIDTHS.get((bits + 7) // 8)
            endian = "LITTLE" if code == b"sowt" else "BIG"
            offset = 8 + peek.number(begin, 4, "big")
            return _raw(
                *(peek, "aiff", subtype, endian, channels, _extended(common[8:18])),
                *(begin + offset, max(0, count - offset), stated),
                unknown=count <= 8 or count >= STREAM,
            )
    return None


def _extended(ten):
    """A rate in Hz from a float of 80 bits."""
    exponent, mantissa = struct.unpack(">HQ", ten)
    shift = 16383 + 63 - exponent
    return mantissa >> shift if 0 <= shift < 64 else 0


_AU = {1: "ULAW", 2: "PCM_S8", 3: "PCM_16", 4: "PCM_24", 5: "PCM_32"} | {
    6: "FLOAT",
    7: "DOUBLE",
    27: "ALAW",
}


def au(peek):
    """Sun's .au → Repair; None where the file is as it says.

    Its header states the length once. ffmpeg reads to the end, whatever it states.
    """
    order = "big" if peek(0, 4) == b".snd" else "little"
    begin, said, code, rate, channels = (
        peek.number(i, 4, order) for i in range(4, 24, 4)
    )
    if said == 0xFFFFFFFF and begin <= peek.size:
        return None  # the format's own word for "to the end"
    place = (begin, said, None, True)
    return _raw(peek, "au", _AU.get(code), order.upper(), channels, rate, *place)


def caf(peek):
    """Apple's .caf → Repair; None where the file is as it says, or is compressed."""
    position, description = 8, None
    for _ in range(MOST_CHUNKS):
        name, count = peek(position, 4), peek.number(position + 4, 8, "big")
        begin = position + 12
        if name == b"desc":
            description = peek(begin, 32)
        elif name == b"data" and description and len(description) == 32:
            rate, code, flags, _, _, channels, bits = struct.unpack(
                ">d4sIIIII", description
            )
            subtype = {b"ulaw": "ULAW", b"alaw": "ALAW"}.get(code)
            if code == b"lpcm":
                widths = {4: "FLOAT", 8: "DOUBLE"} if flags & 1 else _WIDTHS
                subtype = widths.get((bits + 7) // 8)
            if count == (1 << 64) - 1 or not 0 < rate < 1 << 31:
                return None  # the format's own word for "to the end"
            endian = "LITTLE" if flags & 2 else "BIG"
            return _raw(
                *(peek, "caf", subtype, endian, channels, int(rate)),
                *(begin + 4, max(0, count - 4), None),
                unknown=count <= 4 or count >= 1 << 62,
            )
        position = begin + count
        if position + 12 > peek.size:
            break
    return None
