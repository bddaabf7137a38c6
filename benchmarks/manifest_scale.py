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
proportional set size, than they do with a manifest of a thousand rows. What
SpeechBrain's data set takes: ``worker_memory.py``.
"""

import json
import tempfile
import time
from pathlib import Path

from harness import argument_parser, beside_limit, in_new_process, peak_memory, report
from made_up_manifests import NamesOnly, silent_loader, voxceleb2
from processes import memory_of, start_process

from speechbrain_ext.data.arrow_manifest import mix_manifests
from speechbrain_ext.data.corpora import voxblink2
from speechbrain_ext.data.manifest import read_manifest, write_manifest

# torch and SpeechBrain are imported by the stages that need them: half their time else.
# speakers of VoxBlink2, of VoxCeleb2, recordings of VoxCeleb2
FULL, TOY = (111_284, 5_994, 1_092_009), (400, 20, 2_000)
RANKS, WORKERS, BATCHES, TOY_BATCHES = 2, 4, 20, 2
LIMITS = {"s": 30, "MiB": 2048}  # what is allowed: start of an epoch, memory of a node
MEBI = 1 << 20


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
    pss = max(1.0, (node["pss"] - least["pss"]) / MEBI)  # less than 1 MiB is noise
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
    return rows, notes


# -- stages, each in a fresh process ---------------------------------------------------


def prepare_stage(arguments):
    """Names → train.arrow of VoxBlink2."""
    n_speakers = (TOY if arguments.toy else FULL)[0]
    voxblink2.Corpus = lambda folders: NamesOnly(n_speakers)
    folders = {"folders": "/data", "save_folder": f"{arguments.file}/vb2"}

    def run():
        start = time.perf_counter()
        done = voxblink2.prepare_voxblink2(**folders, num_workers=2)
        return done.counts["train"]["utterances"], time.perf_counter() - start

    (n_rows, seconds), memory = peak_memory(run)
    start = time.perf_counter()
    voxblink2.prepare_voxblink2(**folders)
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
    loader = silent_loader(manifest, sampler, WORKERS, speeds=(1.0, 0.9, 1.1))
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


STAGES = {"prepare": prepare_stage, "mix": mix_stage}


def say(**values):
    print(json.dumps(values), flush=True)


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


if __name__ == "__main__":
    main()
