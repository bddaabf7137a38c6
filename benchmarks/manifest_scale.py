"""Ten million recordings: from their names to the first batch, and the memory for it.

    OMP_NUM_THREADS=2 python benchmarks/manifest_scale.py          # full size, minutes
    OMP_NUM_THREADS=2 python benchmarks/manifest_scale.py --toy    # small, for CI

What is simulated: VoxBlink2's folders and headers. A corpus of 111,284 speakers with
names of the true shape (id000000/6gP-0TdBhZs/00000.wav, 19 videos each, 5 recordings a
video, lengths in steps of 40 ms) answers in their place; VoxCeleb2 is 1,092,009 names
of 5,994 speakers; and a crop is silence, for there are no recordings. What is not: the
parts of the preparation, their join, the marker, the mixing with VoxCeleb2, the file,
the sampler, the data set, the loader and its workers.

Rows against a limit (a node trains with two ranks, each with four workers): time and
memory of preparing and of mixing, each in a fresh process; seconds from the start of an
epoch to its first batch; and what all ten processes of the node take more, by
proportional set size, than they do with a manifest of a thousand rows.

Rows against a peer: memory per million rows after each row was read once by four
workers, SpeechBrain's DynamicItemDataset from the same rows in CSV; and 3 s out of ten
minutes of wav and flac, against reading all and slicing.
"""

import csv
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import soundfile
from harness import (
    Row,
    argument_parser,
    beside_limit,
    compare,
    in_new_process,
    peak_memory,
    report,
)
from processes import start_process

from speechbrain_ext.data.manifest import (
    COLUMNS,
    Manifest,
    read_manifest,
    write_manifest,
)
from speechbrain_ext.data.mixing import mix_manifests
from speechbrain_ext.data.voxblink2 import VoxBlink2Options, prepare_training
from speechbrain_ext.data.voxblink2_corpus import Recordings

# torch and SpeechBrain are imported by the stages that need them: half their time else.
# speakers of VoxBlink2, of VoxCeleb2, recordings of VoxCeleb2
FULL, TOY = (111_284, 5_994, 1_092_009), (400, 20, 2_000)
PEER_ROWS, TOY_PEER_ROWS = 200_000, 4_000
RANKS, WORKERS, BATCHES, TOY_BATCHES = 2, 4, 20, 2
LIMITS = {"s": 30, "MiB": 2048}  # what is allowed: start of an epoch, memory of a node
DATASET = {
    "peer_name": "SpeechBrain",
    "source": "DynamicItemDataset.from_csv",
}
WHOLE = {"peer_name": "soundfile", "source": "reading all, then slicing"}
MEBI = 1 << 20
ALPHABET = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"))


class NamesOnly:
    """VoxBlink2's shape without a disk: what ``Corpus`` would say of it."""

    holders = ()

    def __init__(self, n_speakers):
        self.n_speakers = n_speakers

    def speakers(self):
        return [f"id{number:06d}" for number in range(self.n_speakers)]

    def read(self, speaker, videos=None):
        random = np.random.default_rng(int(speaker[2:]))
        n_videos = int(random.integers(12, 27))
        letters = random.choice(ALPHABET, (n_videos, 11))
        names = [
            f"{''.join(video)}/{crop:05d}"
            for video, n_crops in zip(letters, random.integers(1, 10, n_videos))
            for crop in range(n_crops)
        ]
        frames = 640 * random.integers(50, 375, len(names))
        paths = [f"/data/VoxBlink2/audio/{speaker}/{name}.wav" for name in names]
        return Recordings(names, paths, frames.tolist(), [1] * len(names), [])


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--stage", help="for the benchmark itself")
    parser.add_argument("--file", help="for the benchmark itself")
    arguments = parser.parse_args(argv)
    if arguments.stage:
        STAGES[arguments.stage](arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows, notes = measure(Path(folder), arguments)
    report(rows, arguments, notes)


def measure(folder, arguments):
    """→ rows, and notes on the file and the processes of a node."""
    toy = ["--toy"] * arguments.toy

    def stage(name, file):
        return in_new_process(__file__, "--stage", name, "--file", file, *toy)

    prepared = stage("prepare", folder)
    mixed = stage("mix", folder)
    small = folder / "small.arrow"
    write_manifest(small, voxceleb2(10, 1000))
    node = node_of(folder / "mixed/train.arrow", toy)
    least = node_of(small, toy)
    n_rows, size = mixed["rows"], mixed["bytes"]
    of = f"of {n_rows:,} recordings"
    notes = [f"{of}: file of {size / MEBI:.0f} MiB, {size / n_rows:.0f} bytes each"]
    for process in (*node["processes"], *least["processes"]):
        notes.append("process: " + " ".join(f"{k} {v}" for k, v in process.items()))
    pss = (node["pss"] - least["pss"]) / MEBI
    figures = [
        (f"preparing {prepared['rows']:,} recordings", "MiB", prepared["MiB"]),
        (
            f"the same again, at first {prepared['seconds']:.0f} s",
            "s",
            prepared["again"],
        ),
        (f"mixing {of[3:]}, {mixed['seconds']:.0f} s", "MiB", mixed["MiB"]),
        (f"first batch {of}", "s", node["first"]),
        (f"first batch of the second epoch {of}", "s", node["second"]),
        (f"manifest {of}, {RANKS} ranks × {WORKERS} workers", "MiB", pss),
    ]
    rows = [beside_limit(name, u, [value], LIMITS[u]) for name, u, value in figures]
    rows.append(peer_row(folder, toy, arguments.toy))
    return rows + reading_rows(folder, arguments.toy), notes


def voxceleb2(n_speakers, n_rows):
    """Names of VoxCeleb2's shape."""
    speakers = [f"id{10000 + row % n_speakers:05d}" for row in range(n_rows)]
    ids = [f"{s}/{row // 60:011x}/{row % 60:05d}" for row, s in enumerate(speakers)]
    paths = [f"/data/VoxCeleb2/wav/{name}.wav" for name in ids]
    return Manifest(ids, paths, np.full(n_rows, 7.84), speakers)


# -- stages, each in a fresh process ---------------------------------------------------


def prepare_stage(arguments):
    """Names → train.arrow of VoxBlink2."""
    n_speakers = (TOY if arguments.toy else FULL)[0]
    options = VoxBlink2Options(folders="/data", save_folder=f"{arguments.file}/vb2")

    def run():
        start = time.perf_counter()
        done = prepare_training(options, NamesOnly(n_speakers), num_workers=2)
        return done.counts["train"]["utterances"], time.perf_counter() - start

    (n_rows, seconds), memory = peak_memory(run)
    start = time.perf_counter()
    prepare_training(options)
    again = time.perf_counter() - start
    say(rows=n_rows, seconds=seconds, again=again, MiB=memory / MEBI)


def mix_stage(arguments):
    """VoxCeleb2 and VoxBlink2 → one manifest; VoxCeleb2 as CSV, as it is prepared."""
    folder = Path(arguments.file)
    write_manifest(
        folder / "vox2.csv", voxceleb2(*(TOY if arguments.toy else FULL)[1:])
    )

    def run():
        start = time.perf_counter()
        path = mix_manifests(
            folder / "vox2.csv", folder / "vb2/train.arrow", folder / "mixed"
        )
        return path, time.perf_counter() - start

    (path, seconds), memory = peak_memory(run)
    n_rows, size = len(read_manifest(path)), path.stat().st_size
    say(rows=n_rows, seconds=seconds, MiB=memory / MEBI, bytes=size)


def run_rank(connection, rank, path, n_batches):
    """One rank of a node: reads batches, says who its processes are, and waits."""
    # Imported before the clock starts.
    from speechbrain_ext.data import dataset  # noqa: F401
    from speechbrain_ext.data.sampler import CropBatchSampler

    start = time.perf_counter()
    manifest = read_manifest(path)
    sampler = CropBatchSampler(
        *(manifest.labels, 64, (2.0, 3.0)),
        rank=rank,
        world_size=RANKS,
        n_speeds=3,
        n_perturbed=manifest.n_perturbed,
    )
    loader = silent_loader(manifest, sampler, speeds=(1.0, 0.9, 1.1))
    waited = []
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        batches = iter(loader)
        for number in range(min(n_batches, len(sampler))):
            next(batches)
            if not number:
                waited.append(time.perf_counter() - start)
        del batches
        loader.close()
        start = time.perf_counter()
    sampler.set_epoch(3)
    batches = iter(loader)
    next(batches)
    workers = [worker.pid for worker in loader._iterator._workers]
    connection.send({"first": waited[0], "second": waited[1], "workers": workers})
    connection.recv()
    loader.close()


def ours_stage(arguments):
    """Every row of an Arrow manifest read once by the workers → their memory."""
    from speechbrain_ext.data.sampler import CropBatchSampler

    manifest = read_manifest(f"{arguments.file}.arrow")
    sampler = CropBatchSampler(manifest.labels, 64, (0.001, 0.001))
    loader = silent_loader(manifest, sampler)
    say(pss=memory_after_an_epoch(loader))
    loader.close()


def peer_stage(arguments):
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
        f"{arguments.file}.csv", dynamic_items=[label], output_keys=["id", "label"]
    )
    loader = DataLoader(
        *(data, 64), shuffle=True, num_workers=WORKERS, persistent_workers=True
    )
    say(pss=memory_after_an_epoch(loader))
    del loader._iterator


STAGES = {
    "prepare": prepare_stage,
    "mix": mix_stage,
    "ours": ours_stage,
    "peer": peer_stage,
}


def silent_loader(manifest, sampler, **options):
    """A loader whose crops are silence."""
    from speechbrain_ext.data import dataset

    warnings.filterwarnings("ignore", message=".*worker processes in total")
    dataset.read_crop = silence
    return dataset.make_loader(
        dataset.TrainingSet(manifest, 0, **options), sampler, WORKERS
    )


def silence(path, frames, n, generator):
    """In the place of ``read_crop``: the name is looked up, nothing is opened."""
    assert path.endswith(".wav")
    assert frames > 0
    return np.zeros(n, np.float32)


def say(**values):
    print(json.dumps(values), flush=True)


# -- memory ----------------------------------------------------------------------------


def memory_of(pid):
    """Proportional set size of a process, its anonymous part, and its peak, bytes."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in rollup[1:] + status)
    return {
        name: int(found[key].split()[0]) * 1024
        for name, key in (
            ("pss", "Pss"),
            ("anonymous", "Pss_Anon"),
            ("shared_file", "Pss_File"),
            ("peak_rss", "VmHWM"),
        )
    }


def memory_after_an_epoch(loader):
    """Summed over this process and its workers, while they live."""
    for _ in loader:
        pass
    pids = ["self", *(worker.pid for worker in loader._iterator._workers)]
    return sum(memory_of(pid)["pss"] for pid in pids)


def node_of(path, toy):
    """All ranks at a time → waits for batches, and memory of all processes."""
    batches = TOY_BATCHES if toy else BATCHES
    ranks, connections = zip(
        *(start_process(run_rank, rank, path, batches) for rank in range(RANKS))
    )
    said = [connection.recv() for connection in connections]
    found = []
    for rank, words in zip(ranks, said):
        for kind, pids in (("rank", [rank.pid]), ("worker", words["workers"])):
            found += [(kind, memory_of(pid)) for pid in pids]
    for rank, connection in zip(ranks, connections):
        connection.send("enough")
        rank.join()
    return {
        "first": max(words["first"] for words in said),
        "second": max(words["second"] for words in said),
        "pss": sum(memory["pss"] for _, memory in found),
        "processes": [
            {"kind": kind} | {k: f"{v / MEBI:.0f}M" for k, v in memory.items()}
            for kind, memory in found
        ],
    }


# -- peers -----------------------------------------------------------------------------


def peer_row(folder, toy, is_toy):
    """Memory per million rows, ours and SpeechBrain's; both less that of 64 rows."""
    n_rows = TOY_PEER_ROWS if is_toy else PEER_ROWS
    rows = NamesOnly(n_rows // 80)
    memory = {}
    for name, speakers in (("rows", rows.speakers()), ("none", rows.speakers()[:1])):
        counted = write_both(folder / name, rows, speakers)
        for side in ("ours", "peer"):
            command = ("--stage", side, "--file", folder / name, *toy)
            measured = [
                in_new_process(__file__, *command)["pss"]
                for _ in range(1 if is_toy else 3)
            ]
            memory[side, name] = statistics.median(measured)
        if name == "rows":
            n_rows = counted
    ours, theirs = (
        (memory[side, "rows"] - memory[side, "none"]) / MEBI / n_rows * 1e6
        for side in ("ours", "peer")
    )
    name = f"memory of a million rows, {WORKERS} workers ({n_rows:,} rows measured)"
    return Row(name, "MiB", ours, theirs, **DATASET)


def write_both(stem, corpus, speakers):
    """The same rows as Arrow and as CSV → how many."""
    columns = [], [], [], []
    for speaker in speakers:
        names, paths, frames, *_ = corpus.read(speaker)
        columns[0].extend(f"{speaker}/{name}" for name in names)
        columns[1].extend(paths)
        columns[2].extend(length / 16000 for length in frames)
        columns[3].extend([speaker] * len(names))
    write_manifest(stem.with_suffix(".arrow"), Manifest(*columns))
    ids, paths, seconds, names = columns
    with open(stem.with_suffix(".csv"), "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(zip(ids, seconds, paths, names))
    return len(ids)


def reading_rows(folder, toy):
    """3 s out of ten minutes."""
    from speechbrain_ext.data.waveform import read_crop

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
        rows.append(compare(name, ours, whole, toy=toy, memory=True, **WHOLE))
    return rows


if __name__ == "__main__":
    main()
