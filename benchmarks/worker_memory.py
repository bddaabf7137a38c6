"""Memory of four loader workers: a manifest of a million rows, and noises decoded.

    python benchmarks/worker_memory.py          # a million rows, minutes, up to 8 GB
    python benchmarks/worker_memory.py --toy    # small, for CI

Manifest: every row is read once by the workers, from an Arrow file, or through
SpeechBrain's ``DynamicItemDataset`` from the same rows in CSV, which keeps a dictionary
per row. Reading one in Python counts a reference to it, which writes into its page: a
forked worker gets a copy of its own. Summed over the main process and its workers, less
what they take with the rows of one speaker: proportional set sizes, and unique ones.

Noises: each worker reads all of them, from the memory that ``noise_cache_mib`` allows;
the peer is a cache of decoded files in each worker.
"""

import json
import multiprocessing
import tempfile
import warnings
from pathlib import Path

import numpy as np
import soundfile
from harness import Row, argument_parser, in_new_process, report
from made_up_manifests import NamesOnly, silent_loader, write_both
from processes import memory_of

ROWS, TOY_ROWS = 1_000_000, 4_000
NOISES, TOY_NOISES = 250, 5  # of 25 s: 0.8 MB each
WORKERS = 4
MEBI = 1 << 20
DATASET = {"peer_name": "SpeechBrain", "source": "DynamicItemDataset.from_csv"}
CACHE = {"peer_name": "a cache in each worker", "source": "a dict of decoded files"}


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--stage", help="for the benchmark itself")
    parser.add_argument("--file", help="for the benchmark itself")
    arguments = parser.parse_args(argv)
    if arguments.stage:
        print(json.dumps(STAGES[arguments.stage](arguments.file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = manifest_rows(Path(folder), TOY_ROWS if arguments.toy else ROWS)
        rows.append(noise_row(Path(folder), TOY_NOISES if arguments.toy else NOISES))
    report(rows, arguments)


# -- the manifest ----------------------------------------------------------------------


def manifest_rows(folder, n_rows):
    """Shared and unique memory of both sides, less that of one speaker's rows."""
    names = NamesOnly(n_rows // 94)  # recordings of a speaker, on average
    speakers = names.speakers()
    counted = write_both(folder / "rows", names, speakers)
    write_both(folder / "none", names, speakers[:1])
    memory = {
        (side, name): in_new_process(__file__, "--stage", side, "--file", folder / name)
        for side in ("ours", "peer")
        for name in ("rows", "none")
    }
    rows = []
    for key, what in (("pss", "all in all"), ("own", "in no other process")):
        ours, theirs = (
            max(memory[side, "rows"][key] - memory[side, "none"][key], 1) / MEBI
            for side in ("ours", "peer")
        )
        name = f"manifest of {counted:,} rows, {WORKERS} workers, {what}"
        rows.append(Row(name, "MiB", ours, theirs, **DATASET))
    return rows


def ours_stage(stem):
    """Every row of an Arrow manifest read once by the workers → their memory."""
    from speechbrain_ext.data.manifest import read_manifest
    from speechbrain_ext.data.sampler import CropBatchSampler

    manifest = read_manifest(f"{stem}.arrow")
    sampler = CropBatchSampler(manifest.labels, 16, (0.001, 0.001))
    loader = silent_loader(manifest, sampler, WORKERS)
    found = memory_after_an_epoch(loader)
    loader.close()
    return found


def peer_stage(stem):
    """Every row of a CSV file read once through SpeechBrain's data set."""
    from speechbrain.dataio.dataset import DynamicItemDataset
    from speechbrain.utils.data_pipeline import provides, takes
    from torch.utils.data import DataLoader

    warnings.filterwarnings("ignore", message=".*worker processes in total")

    @takes("wav", "duration", "spk_id")
    @provides("label")
    def label(wav, duration, spk_id):
        return float(duration) + len(wav) + int(spk_id[2:])

    data = DynamicItemDataset.from_csv(
        f"{stem}.csv", dynamic_items=[label], output_keys=["id", "label"]
    )
    loader = DataLoader(
        *(data, 16), shuffle=True, num_workers=WORKERS, persistent_workers=True
    )
    found = memory_after_an_epoch(loader)
    del loader._iterator
    return found


def memory_after_an_epoch(loader):
    """Summed over this process and its workers, while they live."""
    for _ in loader:
        pass
    return total(["self", *(worker.pid for worker in loader._iterator._workers)])


def total(pids):
    """Sums of ``memory_of`` some processes."""
    found = [memory_of(pid) for pid in pids]
    return {key: sum(memory[key] for memory in found) for key in ("pss", "own")}


# -- the noises ------------------------------------------------------------------------


def noise_row(folder, n_noises):
    """Memory of the workers with all noises, less that with one of them."""
    random, seconds = np.random.default_rng(0), 25
    for number in range(n_noises):
        place = folder / "noises" / ("one" if number == 0 else "more") / f"{number}.wav"
        place.parent.mkdir(parents=True, exist_ok=True)
        wav = 0.1 * random.standard_normal(seconds * 16000)
        soundfile.write(place, wav, 16000)

    def memory(side, name):
        return in_new_process(__file__, "--stage", side, "--file", folder / name)["pss"]

    ours, theirs = (
        memory(side, "noises") - memory(side, "noises/one")
        for side in ("held", "cached")
    )
    size = (n_noises - 1) * seconds * 32000 / MEBI
    name = f"noises of {size:.0f} MiB, decoded, {WORKERS} workers"
    return Row(name, "MiB", max(ours, 1) / MEBI, max(theirs, 1) / MEBI, **CACHE)


def held_stage(folder):
    """Noises in the memory that the processes of a machine share."""
    from speechbrain_ext.data.augment.noises import CachedNoiseFiles

    paths = noises_of(folder)
    sounds = CachedNoiseFiles(paths, [], 4096)
    return memory_in_workers(paths, sounds)


def cached_stage(folder):
    """Noises decoded by each worker when it first needs them."""
    return memory_in_workers(noises_of(folder), Cached())


class Cached:
    """Files as they lie on the disk, each kept once it was decoded."""

    def __init__(self):
        self.files = {}

    def crop(self, path, n, generator):
        if path not in self.files:
            self.files[path] = soundfile.read(path, dtype="int16")[0]
        wav = self.files[path]
        start = int(generator.integers(len(wav) - n))
        return wav[start : start + n] / np.float32(32768)


def noises_of(folder):
    """All below a folder."""
    return sorted(map(str, Path(folder).rglob("*.wav")))


def memory_in_workers(paths, sounds):
    """Forked as a loader's workers are; each reads from every file."""
    context = multiprocessing.get_context("fork")
    read, measured = context.Barrier(WORKERS + 1), context.Barrier(WORKERS + 1)
    workers = [
        context.Process(target=read_all, args=(paths, sounds, rank, read, measured))
        for rank in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    read.wait()
    found = total(["self", *(worker.pid for worker in workers)])
    measured.wait()
    for worker in workers:
        worker.join()
    return found


def read_all(paths, sounds, rank, read, measured):
    """One worker: crops that reach every second of every file."""
    generator = np.random.default_rng(rank)
    for path in paths:
        for _ in range(20):
            sounds.crop(path, 48000, generator)
    read.wait()
    measured.wait()


STAGES = {
    "ours": ours_stage,
    "peer": peer_stage,
    "held": held_stage,
    "cached": cached_stage,
}

if __name__ == "__main__":
    main()
