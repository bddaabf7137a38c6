"""How long an mp3 file is: its frames are counted.

    [ID3v2] [Info frame] frame frame … frame [APE tag] [ID3v1]

An mp3 file states its length in an Info (or Xing, or VBRI) frame, or nowhere. Without
one libsndfile takes all frames to be as long as the first one and reads no further, a
quarter of the speech of a file of varying bit rate. So libsndfile gets the frames alone
behind an Info frame that is right.

What ffmpeg leaves out is left out here, sample by sample:

* the Info frame itself, where it states frames or bytes;
* where LAME, Lavf or Lavc wrote it, the encoder's delay and the decoder's 529 samples
  at the start, and the padding less 529 samples before the end that it states. If it
  states too few frames, this is inside of the recording, as between two files that were
  joined with cat; if too many, nothing is left out.

A last frame that is cut counts: ffmpeg decodes what there is.
"""

import struct

from speechbrain_ext.data.sound.headers import SLACK, Doubt, Repair
from speechbrain_ext.utils.errors import InputError

BLOCK = 1 << 20
SEARCHED = 1 << 16  # bytes before the first frame
DECODER_DELAY = 529
CONSECUTIVE = 3  # frames that make an mp3 file of what may be anything

_KBITS = {
    (3, 3): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (3, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 3): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_KBITS[2, 1] = _KBITS[2, 2]
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def _frame_bytes(second, third):
    """Bytes of a frame by the second and third byte of its header; 0 of none."""
    version, layer = second >> 3 & 3, second >> 1 & 3
    index, rate = third >> 4, third >> 2 & 3
    if second < 0xE0 or version == 1 or not layer or rate == 3 or index in (0, 15):
        return 0
    bits = _KBITS[3 if version == 3 else 2, layer][index - 1] * 1000
    rate, padding = _RATES[version][rate], third >> 1 & 1
    if layer == 3:
        return (12 * bits // rate + padding) * 4
    return (72 if layer == 1 and version != 3 else 144) * bits // rate + padding


_BYTES = [_frame_bytes(number >> 8, number & 255) for number in range(1 << 16)]


def after_tags(peek, position=0):
    """The first byte behind ID3v2 tags."""
    while peek(position, 3) == b"ID3":
        head = peek(position, 10)
        if len(head) < 10 or max(head[6:]) > 127:
            break
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        position += 10 + size + (10 if head[5] & 0x10 else 0)
    return position


def _before_tags(peek, end):
    """The byte behind the sound: ID3v1 and APE tags follow it."""
    if end >= 128 and peek(end - 128, 3) == b"TAG":
        end -= 128
    if end >= 32 and peek(end - 32, 8) == b"APETAGEX":
        size = peek.number(end - 20, 4) + (32 if peek.number(end - 9, 1) & 0x80 else 0)
        end -= size if 32 <= size <= end else 0
    return end


def find_frames(peek, begin, end):
    """The first byte of the first of some consecutive frames; None without any."""
    content = peek(begin, min(SEARCHED + 8192, end - begin))
    place = -1
    while (place := content.find(b"\xff", place + 1, SEARCHED)) >= 0:
        if _follow(content, place, begin + len(content) >= end):
            return begin + place
    return None


def _follow(content, place, is_all):
    """Whether frames of one kind follow one another from here on."""
    kind = None
    for number in range(CONSECUTIVE):
        head = content[place : place + 4]
        if len(head) < 4:
            return is_all and number > 0
        size = _BYTES[head[1] << 8 | head[2]] if head[0] == 0xFF else 0
        if not size or kind not in (None, (head[1] & 0xFE, head[2] & 0x0C)):
            return False
        kind = head[1] & 0xFE, head[2] & 0x0C
        place += size
    return True


class _Scan:
    """The frames between two bytes of the kind of ``head``: how many, and where."""

    def __init__(self, peek, head, begin, end):
        self.count, self.ranges, self.missing = 0, [], 0
        self._kind = head[1] & 0xFE, head[2] & 0x0C
        position = begin
        while position is not None and position < end:
            start = position
            position = self._run(peek, position, end)
            if position > start:
                self.ranges.append((start, min(position, end) - start))
            self.missing = max(0, position - end)
            position = self._next(peek, position, end)

    def _run(self, peek, position, end):
        """Count frames from here on → the byte behind the last one."""
        version, rate = self._kind
        sizes, count = _BYTES, 0
        while position + 4 <= end:
            block = peek(position, min(BLOCK, end - position))
            place, last = 0, len(block) - 4
            while place <= last:
                second, third = block[place + 1], block[place + 2]
                if block[place] != 0xFF or second & 0xFE != version:
                    break
                size = sizes[second << 8 | third]
                if not size or third & 0x0C != rate:
                    break
                place += size
                count += 1
            position += place
            if place <= last:
                break
        self.count += count
        return position

    def _next(self, peek, position, end):
        """Where frames of the same kind go on behind something else; None: nowhere.

        The first of them is passed over, as ffmpeg does: of an mp3 file that follows it
        is the Info frame, and else the bits of a frame may lie in one that is lost.
        """
        while position + 4 < end:
            position = after_tags(peek, position)
            content = peek(position, min(BLOCK, end - position))
            is_all, place = position + len(content) >= end, -1
            while (place := content.find(b"\xff", place + 1)) >= 0:
                head = content[place : place + 3]
                if len(head) < 3:
                    break
                same = (head[1] & 0xFE, head[2] & 0x0C) == self._kind
                if same and _follow(content, place, is_all):
                    return position + place + _BYTES[head[1] << 8 | head[2]]
            if is_all:
                return None
            position += len(content) - 8192
        return None


class _Info:
    """What an Info, Xing or VBRI frame states."""

    def __init__(self, frame):
        self.frames = self.bytes = self.delay = self.padding = 0
        frame = frame.ljust(256, b"\0")  # one that is cut
        mpeg1, mono = frame[1] >> 3 & 3 == 3, frame[3] >> 6 == 3
        place = 4 + ((17 if mono else 32) if mpeg1 else (9 if mono else 17))

        def number(at, count=4):
            return int.from_bytes(frame[at : at + count], "big")

        self.is_there = frame[place : place + 4] in (b"Info", b"Xing")
        if self.is_there:
            flags, at = number(place + 4), place + 8
            if flags & 1:
                self.frames, at = number(at), at + 4
            if flags & 2:
                self.bytes, at = number(at), at + 4
            at += (100 if flags & 4 else 0) + (4 if flags & 8 else 0)
            if frame[at : at + 4] in (b"LAME", b"Lavf", b"Lavc"):
                self.has_delay = True
                pair = number(at + 21, 3)
                self.delay, self.padding = pair >> 12, pair & 0xFFF
            else:
                self.has_delay = False
        elif frame[36:40] == b"VBRI":
            self.is_there, self.has_delay = True, False
            self.bytes, self.frames = number(46), number(50)
        self.is_there &= bool(self.frames or self.bytes)


def mp3(peek, begin, count=None):
    """Repair of the MPEG audio from a byte on, to the end; None where there is none.

    InputError where an Info frame states frames and bytes, and both are not there.
    """
    end = _before_tags(peek, peek.size) if count is None else begin + count
    first = find_frames(peek, begin, end)
    if first is None:
        return None
    head = peek(first, 4)
    size = _BYTES[head[1] << 8 | head[2]]
    info = _Info(peek(first, size))
    scan = _Scan(peek, head, first + size if info.is_there else first, end)
    samples = _samples_per_frame(head[1])
    if not scan.count:
        return None
    doubt = _doubt(info, scan, first, end, samples)
    if info.bytes and peek.size - first > info.bytes + (info.bytes >> 4):
        info.frames = 0  # more follows than it speaks of: ffmpeg believes it no longer
    total, skipped = scan.count * samples, 0
    kept = [(0, total)]
    if info.is_there and info.has_delay:
        skipped = info.delay + DECODER_DELAY
        stop = info.frames * samples
        cut = stop - info.padding + DECODER_DELAY
        if info.frames and cut < stop:
            kept = [(0, cut), (stop, total)]
        kept = [(max(a, skipped), min(b, total)) for a, b in kept]
        kept = [(a - skipped, b - skipped) for a, b in kept if a < b]
    pieces = [*scan.ranges, bytes(scan.missing)]
    if head[1] >> 1 & 3 == 1:  # layer III: others have no Info frames
        pieces.insert(
            0, _front(head, scan.count, samples, info.delay if skipped else None)
        )
    return Repair(pieces, doubt, tuple(kept))


def _doubt(info, scan, first, end, samples):
    if not info.is_there:
        return None  # nothing is stated that could be wrong
    there, frames = end - first, scan.count
    if info.frames > frames + 1 and info.bytes > there + SLACK:
        raise InputError(
            f"{there} bytes of mp3, its header says {info.bytes}: truncated"
        )
    if not info.frames or abs(info.frames - frames) <= 1:
        return None
    said = info.frames * samples
    text = f"its header says {said} samples, it has {frames * samples}"
    return Doubt("mp3", text)


def _samples_per_frame(second):
    layer = second >> 1 & 3
    if layer == 3:
        return 384
    return 576 if layer == 1 and second >> 3 & 3 != 3 else 1152


def _front(head, frames, samples, delay):
    """An Info frame for ``frames`` of the kind of ``head``, and a silent one if needed.

    With the decoder's own delay as padding nothing is left out at the end. At the start
    libsndfile always leaves out this delay: of silence, where there is no other.
    """
    silent = delay is None
    if silent:
        frames, delay = frames + 1, samples - DECODER_DELAY
    third = next(  # a bit rate that makes room for all of it
        index << 4 | head[2] & 0x0C
        for index in range(1, 15)
        if _BYTES[(head[1] | 1) << 8 | index << 4 | head[2] & 0x0C] >= 192
    )
    size = _BYTES[(head[1] | 1) << 8 | third]
    mpeg1, mono = head[1] >> 3 & 3 == 3, head[3] >> 6 == 3
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    begin = bytes((0xFF, head[1] | 1, third, head[3]))
    frame = begin + bytes(side) + b"Info" + struct.pack(">II", 1, frames)
    frame += b"LAME3.100" + bytes(12)
    frame += (delay << 12 | DECODER_DELAY).to_bytes(3, "big") + bytes(12)
    return frame.ljust(size, b"\0") + (begin.ljust(size, b"\0") if silent else b"")
