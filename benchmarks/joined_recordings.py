"""Crops of short recordings that are joined: read in place, or from joined copies.

    python benchmarks/joined_recordings.py          # 300 rows, 3 s crops of each
    python benchmarks/joined_recordings.py --toy    # small sizes, for CI

Rows are as CN-Celeb's: flac recordings of 1 to 4 s, joined until they last 5 s. Ours is
a manifest row that names its recordings; the peer is soundfile reading the same crop of
one flac file that they were copied into. The copies' size and the time of making them,
which ours spares, are printed beside.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from harness import argument_parser, compare, report

from speechbrain_ext.data.audio import read_audio
from speechbrain_ext.data.concatenated_audio import join_short
from speechbrain_ext.data.manifest import Manifest

SECONDS = 3 * 16000
PEER = {"peer_name": "joined copies", "source": "soundfile.read of one flac file"}


def main(argv=None):
    arguments = argument_parser(__doc__).parse_args(argv)
    n_rows = 20 if arguments.toy else 300
    with tempfile.TemporaryDirectory() as folder:
        rows = make_rows(Path(folder), n_rows)
        start = time.perf_counter()
        copies = [write_copy(Path(folder), row, path) for row, path in enumerate(rows)]
        seconds = time.perf_counter() - start
        frames = [soundfile.info(copy).frames for copy in copies]
        starts = np.random.default_rng(1).integers(0, np.array(frames) - SECONDS)
        for joined, copy, at in zip(rows, copies, starts.tolist(), strict=True):
            assert np.array_equal(read_audio(joined, at, SECONDS), crop(copy, at))
        crops = list(zip(rows, copies, starts.tolist()))
        row = compare(
            f"{n_rows} crops of 3 s",
            lambda: [read_audio(joined, at, SECONDS) for joined, _, at in crops],
            lambda: [crop(copy, at) for _, copy, at in crops],
            toy=arguments.toy,
            **PEER,
        )
        size = sum(Path(copy).stat().st_size for copy in copies) / 2**20
        hours = sum(frames) / 16000 / 3600
        note = f"copies: {size / hours:.0f} MiB and {seconds / hours:.0f} s per hour"
        report([row], arguments, [note])


def make_rows(folder, n_rows):
    """Joined paths of short recordings of noise, at a level of speech."""
    random = np.random.default_rng(0)
    names, seconds = [], []
    for number in range(3 * n_rows):
        length = int(random.integers(16000, 64000))
        wav = 0.05 * random.standard_normal(length)
        names.append(f"id00000/talk-01-{number:05d}")
        path = folder / f"{names[-1]}.flac"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, wav, 16000, subtype="PCM_16")
        seconds.append(length / 16000)
    paths = [str(folder / f"{name}.flac") for name in names]
    manifest = Manifest(names, paths, seconds, ["id00000"] * len(names))
    joined = join_short(manifest, ["s"] * len(names), ["g"] * len(names), 5.0)
    return joined.paths.tolist()[:n_rows]


def write_copy(folder, row, path):
    copy = folder / f"{row}.flac"
    soundfile.write(copy, read_audio(path), 16000, subtype="PCM_16")
    return str(copy)


def crop(path, start):
    return soundfile.read(path, SECONDS, start, dtype="float32")[0]


if __name__ == "__main__":
    main()
