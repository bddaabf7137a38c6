"""Damaged headers: each file is read, or refused in one line; none hangs or crashes.

The files are read in a process of its own, so that a crash of a C library fails the
test, and with a bound of 1 GiB to what it may take beyond what it has when it begins.
"""

import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from speechbrain_ext.data.sound import media
from speechbrain_ext.data.sound.flac import _checksums
from tests.players import ffmpeg, noise

MUTATIONS = {"wav": 500, "flac": 500, "mp3": 500, "ogg": 500}
MUTATIONS |= {"opus": 200, "aiff": 200, "au": 100, "caf": 100, "w64": 100, "m4a": 200}
OGG_CRC = _checksums(0x04C11DB7, 32)
HEAD = 400  # bytes that are mutated: a header, and the begin of what it describes

CHILD = """
import faulthandler, json, resource, sys
from speechbrain_ext.data.audio import read_header, read_mono
from speechbrain_ext.data.sound import media
from speechbrain_ext.utils.errors import InputError
from tests.data.test_fuzzed_headers import mutations

if media.is_available():
    media._pyav()  # its libraries are no memory that a file takes
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30),) * 2)
kind, path, target = sys.argv[1:]
counts = {"read": 0, "refused": 0, "wrong": []}
for number, content in mutations(kind, path):
    open(target, "wb").write(content)
    faulthandler.dump_traceback_later(10, exit=True)
    print(number, file=sys.stderr)
    try:
        header = read_header(target)
        wav, rate = read_mono(target)
        if (len(wav), rate) != (header.frames, header.sample_rate):
            counts["wrong"].append([number, f"{len(wav)} of {header}"])
        part, _ = read_mono(target, len(wav) // 2, 50)
        counts["read"] += 1
    except InputError as error:
        counts["refused"] += 1
        if "\\n" in str(error) or target not in str(error):
            counts["wrong"].append([number, str(error)])
    except Exception as error:
        counts["wrong"].append([number, repr(error)])
print(json.dumps(counts))
"""


def mutations(kind, path):
    """(number, content) of files with a damaged header, always the same ones."""
    whole = Path(path).read_bytes()
    for number in range(MUTATIONS[kind]):
        generator = random.Random(f"{kind} {number}")
        content = bytearray(whole)
        # bytes of a header more often than what follows
        reach = generator.choice([48, 128, HEAD, len(content)])
        for _ in range(generator.choice([1, 1, 2, 4, 8])):
            place = generator.randrange(min(reach, len(content)))
            change = generator.randrange(5)
            if change == 0:
                content[place] = generator.randrange(256)
            elif change == 1:
                content[place] ^= 1 << generator.randrange(8)
            elif change == 2:
                word = generator.choice([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff"])
                content[place : place + 4] = word
            elif change == 3:
                del content[place : place + generator.randrange(1, 9)]
            else:
                content[place:place] = generator.randbytes(generator.randrange(1, 9))
        if generator.random() < 0.1:
            del content[generator.randrange(1, len(content)) :]
        if kind in ("ogg", "opus") and generator.random() < 0.8:
            sign_pages(content)  # or else nothing but checksums is tested
        yield number, bytes(content)


def sign_pages(content):
    """Correct the checksums of an ogg file's pages, as far as pages follow."""
    place = 0
    while content[place : place + 4] == b"OggS" and place + 27 <= len(content):
        table = content[place + 27 : place + 27 + content[place + 26]]
        size = 27 + len(table) + sum(table)
        content[place + 22 : place + 26] = bytes(4)
        value = 0
        for byte in content[place : place + size]:
            value = (value << 8 & 0xFFFFFFFF) ^ OGG_CRC[value >> 24 ^ byte]
        content[place + 22 : place + 26] = value.to_bytes(4, "little")
        place += size


def made(kind, folder):
    """A short recording of a kind."""
    source = folder / "source.wav"
    soundfile.write(source, noise(0.3), 16000)
    path = folder / f"whole.{kind}"
    if kind == "m4a":
        ffmpeg("-i", source, path)
    else:
        containers = {"opus": ("OGG", "OPUS")}
        container, subtype = containers.get(kind, (kind.upper(), None))
        file = io.BytesIO()
        soundfile.write(file, noise(0.3), 16000, subtype, format=container)
        path.write_bytes(file.getvalue())
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory by /proc")
@pytest.mark.parametrize("kind", MUTATIONS)
def test_damaged_headers(kind, tmp_path):
    if kind == "m4a" and not media.is_available():
        pytest.skip("neither PyAV nor ffmpeg")
    path = made(kind, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, kind, str(path), str(tmp_path / "damaged")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    assert counts["wrong"] == []
    assert counts["read"] + counts["refused"] == MUTATIONS[kind]
    assert counts["read"] > MUTATIONS[kind] // 20
    assert counts["refused"] > 0
