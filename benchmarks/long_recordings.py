"""Three seconds out of ten minutes: only the needed part is read.

    python benchmarks/long_recordings.py          # wav and flac
    python benchmarks/long_recordings.py --toy    # fewer rounds, for CI

The peer is what a crop costs where a recording is read whole and then cut.
"""

import tempfile
from pathlib import Path

import numpy as np
import soundfile
from harness import argument_parser, compare, report

from speechbrain_ext.data.augment.waveform import read_crop

PEER = {"peer_name": "soundfile", "source": "reading all, then slicing"}


def main(argv=None):
    arguments = argument_parser(__doc__).parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        report(reading_rows(Path(folder), arguments.toy), arguments)


def reading_rows(folder, toy):
    """Wav and flac."""
    random = np.random.default_rng(0)
    n_samples, rows = 600 * 16000, []
    sound = (0.1 * random.standard_normal(n_samples)).astype(np.float32)
    for kind in ("wav", "flac"):
        path = str(folder / f"long.{kind}")
        soundfile.write(path, sound, 16000)

        def ours(path=path):
            return read_crop(path, n_samples, 48000, np.random.default_rng(1))

        def whole(path=path):
            start = int(np.random.default_rng(1).integers(n_samples - 48000))
            return soundfile.read(path, dtype="float32")[0][start : start + 48000]

        if len(ours()) != len(whole()):
            raise SystemExit(f"{kind}: lengths differ")
        name = f"3 s out of 600 s of {kind}"
        rows.append(compare(name, ours, whole, toy=toy, memory=True, **PEER))
    return rows


if __name__ == "__main__":
    main()
