"""How long a flac or an ogg stream is, from its frames rather than its header.

A flac header states how many samples there are, or 0 where a program wrote it into a
pipe. Each frame says where it stands, with a checksum, so that the last one tells the
truth: few bytes of the end of the file are read. Of files that were joined with cat
libsndfile reads the first, players all: where the last frame does not fit the header,
or frames do not follow each other, the file is searched for more of them.

An ogg stream ends on a page that says so. Where it is missing, or where another stream
follows (internet radio, recordings that were joined with cat), libsndfile's length is
not what ffmpeg decodes.
"""

from typing import NamedTuple

from speechbrain_ext.data.sound.headers import Doubt, Repair

TAIL = 1 << 16  # bytes; the longest frame in use has fewer
LONGEST_TAIL = 1 << 20
CHAINED = "chained ogg"
# What a stream begins with: its mark, and the header of 34 bytes that must follow.
BEGINS = b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22"
SEARCHED = 1 << 20  # bytes at once
FEW_BLOCKS = 8


def _checksums(polynomial, bits):
    top, mask = 1 << (bits - 1), (1 << bits) - 1
    table = []
    for value in range(256):
        value <<= bits - 8
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value & top else 0)) & mask
        table.append(value)
    return table


_CRC8, _CRC16 = _checksums(0x07, 8), _checksums(0x8005, 16)


def _crc8(content):
    value = 0
    for byte in content:
        value = _CRC8[value ^ byte]
    return value


def _crc16(content):
    value = 0
    for byte in content:
        value = (value << 8 & 0xFFFF) ^ _CRC16[value >> 8 ^ byte]
    return value


class Joined(NamedTuple):
    """Several streams, one after the other: (offset, size) of each, what to warn of."""

    streams: list
    doubt: Doubt


def flac(peek, start):
    """Repair of a flac stream that begins at ``start``; None where it is as it says.

    Joined where another one follows.

    Where the last frame is not whole nothing is repaired: libsndfile says of such a
    file that it ends early, or counts what there is where no length is stated.
    """
    info = peek(start + 8, 34)
    if len(info) < 34:
        return None
    total = int.from_bytes(info[13:18], "big") & 0xFFFFFFFFF
    fixed = int.from_bytes(info[:2], "big")
    longest = int.from_bytes(info[7:10], "big")
    count = min(max(2 * longest, 4096) if longest else TAIL, LONGEST_TAIL)
    begin = max(start + 42, peek.size - count)
    tail = peek(begin, peek.size - begin)
    fits = total and any(stop == total for _, stop in _frames(tail, fixed))
    if fits and _in_step(peek, start, total, fixed, count):
        return None
    if len(streams := _streams(peek, start)) > 1:
        text = f"{len(streams)} flac files follow one another in it"
        return Joined(streams, Doubt("joined flac", text))
    if fits:
        return None
    end = len(tail)
    if tail[-128:-125] == b"TAG":
        end -= 128
    whole = (
        stop
        for place, stop in _frames(tail[:end], fixed)
        if _crc16(tail[place : end - 2]) == int.from_bytes(tail[end - 2 : end], "big")
    )
    stop = next(whole, None)
    if stop is None or stop >= 1 << 36 or _first_sample(peek, start, fixed) != 0:
        return None
    text = f"its header says {total} samples, it has {stop}"
    right = info[:13] + (
        int.from_bytes(info[13:18], "big") >> 36 << 36 | stop
    ).to_bytes(5, "big")
    head = peek(start, 8) + right + info[18:]
    pieces = [head, (start + 42, begin + end - start - 42)]
    return Repair(pieces, Doubt("flac", text))


def _in_step(peek, start, total, fixed, count):
    """Whether the sound goes on through a file, rather than beginning again.

    Of two or three equal streams the last frame fits the header of the first.
    """
    if total < FEW_BLOCKS * fixed:
        return False  # nobody knows, and a search costs no more
    before = 0
    for tenths in (4, 6, 8):
        place = start + tenths * (peek.size - start) // 10
        stops = [stop for _, stop in _frames(peek(place, count), fixed)]
        if not stops or stops[-1] < before:  # the last one found stands first
            return False
        before = stops[-1]
    return True


def _streams(peek, start):
    """(offset, size) of each stream from ``start`` on; the whole file is read."""
    begins, overlap = [start], len(BEGINS[0]) - 1
    for offset in range(start + 4, peek.size, SEARCHED):
        block = peek(offset, min(SEARCHED + overlap, peek.size - offset))
        place = -1
        while (place := block.find(b"fLaC", place + 1)) >= 0:
            here = offset + place
            fixed = peek.number(here + 8, 2, "big")
            is_stream = block[place : place + 8] in BEGINS
            if is_stream and _first_sample(peek, here, fixed) == 0:
                begins.append(here)
    ends = [*begins[1:], peek.size]
    return [(begin, end - begin) for begin, end in zip(begins, ends)]


def _frames(content, fixed):
    """(place, sample after it) of what look like headers of frames, last one first."""
    place = len(content)
    while (place := content.rfind(b"\xff", 0, place)) >= 0:
        if content[place + 1 : place + 2] in (b"\xf8", b"\xf9"):
            span = _span(content[place : place + 16], fixed)
            if span:
                yield place, span[1]


def _span(header, fixed):
    """First sample of a frame and the one after it; None where it is no frame."""
    if len(header) < 6 or header[3] & 1 or header[2] & 0xF == 0xF:
        return None
    size, rate = header[2] >> 4, header[2] & 0xF
    ones = 0
    while ones < 8 and header[4] & 0x80 >> ones:
        ones += 1
    if ones in (1, 8) or not size:
        return None
    number, place = header[4] & (0x7F >> ones), 5
    for byte in header[5 : 4 + max(1, ones)]:
        if byte & 0xC0 != 0x80:
            return None
        number, place = number << 6 | byte & 0x3F, place + 1
    extra = {6: 1, 7: 2}.get(size, 0)
    if size == 1:
        block = 192
    elif size < 6:
        block = 576 << (size - 2)
    elif extra:
        block = int.from_bytes(header[place : place + extra], "big") + 1
    else:
        block = 256 << (size - 8)
    place += extra + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if place >= len(header) or _crc8(header[:place]) != header[place]:
        return None
    first = number if header[1] & 1 else number * fixed
    return first, first + block


def _first_sample(peek, start, fixed):
    """Where the first frame says that it stands; None where there is no frame."""
    position = start + 4
    for _ in range(1024):
        kind, count = peek.number(position, 1), peek.number(position + 1, 3, "big")
        position += 4 + count
        if kind & 0x80:
            span = _span(peek(position, 16), fixed)
            return span[0] if span else None
    return None


def ogg(peek):
    """Why libsndfile's length of an ogg file is not to be trusted → Doubt, or None."""
    position, serials, ended, inside = 0, [], False, False
    while position + 27 <= peek.size:
        page = peek(position, 27 + 255)
        if page[:4] != b"OggS" or len(page) < 27:
            return Doubt("ogg", f"no page begins at byte {position}")
        if page[5] & 2:
            serials.append(page[14:18])
            if inside:
                return Doubt(CHAINED, "streams follow one another in it")
        else:
            inside = True
        ended = bool(page[5] & 4)
        table = page[27 : 27 + page[26]]
        position += 27 + len(table) + sum(table)
    if position != peek.size:
        return Doubt("ogg", f"{peek.size} bytes, its last page would end at {position}")
    if len(serials) > 1:
        return Doubt(CHAINED, f"{len(serials)} streams are side by side in it")
    return None if ended else Doubt("ogg", "its last page is missing")
