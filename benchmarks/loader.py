"""Training batches: this package's loader against SpeechBrain's Augmenter pipeline.

    python benchmarks/loader.py          # 640 recordings of 4 to 20 s, 3 minutes
    python benchmarks/loader.py --toy    # small, for continuous integration

Each utterance of both sides: a random crop of a file, of which only the crop is read;
speed 0.9, 1.0 or 1.1; then noise at 5 to 20 dB or a room response, of its own; 3 s; in
batches of 32; two worker processes. The peer is what SpeechBrain offers for it:
``DynamicItemDataset``, ``SpeedPerturb``, ``Augmenter`` of ``AddNoise`` and
``AddReverb``, ``SaveableDataLoader``. Its Augmenter draws once per batch, so it is
called once per utterance, in the workers as ours is. It reads a noise whole where ours
reads as much as it needs. Rows: wav files, flac files, and flac in shards with noises
and rooms in memory. The recordings, noises (23 s on average, as in MUSAN) and responses
are made up.
"""

import csv
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from harness import argument_parser, compare, report
from scipy.signal import lfilter
from speechbrain.augment.augmenter import Augmenter as PeerAugmenter
from speechbrain.augment.time_domain import AddNoise, AddReverb
from speechbrain.augment.time_domain import SpeedPerturb as PeerSpeed
from speechbrain.dataio.dataio import read_audio
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import provides, takes

from speechbrain_ext.data.augment import Augmenter, Musan, RoomResponses
from speechbrain_ext.data.dataset import TrainingSet, make_loader
from speechbrain_ext.data.manifest import Manifest, write_manifest
from speechbrain_ext.data.sampler import CropBatchSampler
from speechbrain_ext.data.shards.index import from_shards
from speechbrain_ext.data.shards.writer import make_shards

SPEEDS = (1.0, 0.9, 1.1)
RATE, SECONDS, BATCH, WORKERS = 16000, 3, 32, 2
SNR_DB = (5, 20)
PEER = {"peer_name": "SpeechBrain", "source": "Augmenter, DynamicItemDataset"}
MARK = 2.0


def main(argv=None):
    arguments = argument_parser(__doc__).parse_args(argv)
    torch.set_num_threads(arguments.threads)
    n, batch = (16, 8) if arguments.toy else (640, BATCH)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_noises(folder, 8 if arguments.toy else 60)
        manifests = {kind: write_speech(folder / kind, n) for kind in ("wav", "flac")}
        rows = []
        for kind, manifest in manifests.items():
            peer = peer_loader(folder, manifest, batch)
            ours = our_loader(folder, manifest, batch)
            rows.append(compare_loaders(f"{kind} files", ours, peer, n, arguments.toy))
            ours.close()
        make_shards([folder / "flac/train.csv"], folder / "shards", 200)
        sharded = from_shards(manifests["flac"], folder / "shards")
        ours = our_loader(folder, sharded, batch, noise_cache_mib=1024)
        rows.append(compare_loaders("flac in shards", ours, peer, n, arguments.toy))
        ours.close()
        report(rows, arguments)


def compare_loaders(name, ours, peer, n, toy):
    """An epoch of each → Row, named after the utterances per second."""
    for loader in (ours, peer):
        check(loader)
    sides = [lambda loader=loader: sum(1 for _ in loader) for loader in (ours, peer)]
    row = compare(name, *sides, repeats=5, warmup=1, toy=toy, mark=MARK, **PEER)
    rates = f"{n / row.ours:.0f} against {n / row.peer:.0f} utterances/s"
    return replace(row, name=f"{name}: {rates}")


def check(loader):
    """Every utterance has 3 s of its own; both sides make as many batches."""
    wavs = [getattr(batch, "wavs", None) for batch in loader]
    wavs = torch.cat([w if torch.is_tensor(w) else w.data for w in wavs])
    if wavs.shape[1] != SECONDS * RATE or not torch.isfinite(wavs).all():
        raise SystemExit(f"batches of {list(wavs.shape)}, expected {SECONDS} s each")
    if len(wavs.unique(dim=0)) < len(wavs):
        raise SystemExit("two utterances are equal, expected each drawn by itself")


# -- both sides ------------------------------------------------------------------------


def our_loader(folder, manifest, batch, noise_cache_mib=0):
    """As train.py builds it."""
    effects = {
        "noise": Musan(folder / "musan", {"noise": SNR_DB}),
        "reverb": RoomResponses(folder / "rirs"),
    }
    augmenter = Augmenter({"noise": 1, "reverb": 1}, effects, noise_cache_mib)
    dataset = TrainingSet(manifest, 0, augmenter, SPEEDS)
    sampler = CropBatchSampler(
        manifest.labels, batch, (SECONDS, SECONDS), n_speeds=len(SPEEDS)
    )
    return make_loader(dataset, sampler, WORKERS)


def peer_loader(folder, manifest, batch):
    """The same work with SpeechBrain's parts."""
    n = SECONDS * RATE
    speeds = {s: PeerSpeed(RATE, [round(100 * s)]) for s in SPEEDS}
    disturb = PeerAugmenter(
        min_augmentations=1,
        max_augmentations=1,
        shuffle_augmentations=True,
        augmentations=[
            AddNoise(str(folder / "noise.csv"), None, "random", 0, *SNR_DB, True),
            AddReverb(str(folder / "rirs.csv"), "random"),
        ],
    )

    @takes("wav", "duration")
    @provides("wavs")
    def pipeline(wav, duration):
        speed = random.choice(SPEEDS)
        count = int(np.ceil(n * speed))
        start = random.randint(0, round(duration * RATE) - count)
        wav = read_audio({"file": wav, "start": start, "stop": start + count})[None]
        wav = speeds[speed](wav)[:, :n]
        return disturb(wav, torch.ones(1))[0][0]

    columns = (manifest.ids, manifest.paths, manifest.durations)
    items = {
        name: {"wav": path, "duration": duration}
        for name, path, duration in zip(*(column.tolist() for column in columns))
    }
    dataset = DynamicItemDataset(items, [pipeline], ["id", "wavs"])
    return make_dataloader(
        dataset,
        shuffle=True,
        batch_size=batch,
        drop_last=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )


# -- recordings ------------------------------------------------------------------------


def write_speech(folder, n):
    """``n`` recordings of 4 to 20 s of noise with the spectrum of speech → Manifest."""
    generator = np.random.default_rng(0)
    seconds = generator.uniform(4, 20, n)
    names = [f"s{number % 40}/{number}" for number in range(n)]
    paths = [folder / f"{name}.{folder.name}" for name in names]
    frames = [coloured(p, s, generator) for p, s in zip(paths, seconds)]
    durations = np.array(frames) / RATE
    speakers = [name.split("/")[0] for name in names]
    manifest = Manifest(names, list(map(str, paths)), durations, speakers)
    write_manifest(folder / "train.csv", manifest)
    return manifest


def write_noises(folder, n):
    """``n`` noises and responses, and SpeechBrain's lists of them."""
    generator = np.random.default_rng(1)
    noises = [folder / f"musan/noise/{number}.wav" for number in range(n)]
    rooms = [folder / f"rirs/simulated_rirs/{number}.wav" for number in range(n)]
    for path in noises:
        coloured(path, generator.uniform(3, 43), generator)
    for path in rooms:
        coloured(path, 0.5, generator, decay=0.1)
    for name, paths in (("noise", noises), ("rirs", rooms)):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["ID", "duration", "wav", "wav_format", "wav_opts"])
            for path in paths:
                duration = soundfile.info(path).duration
                writer.writerow([path.stem, duration, path, "wav", ""])


def coloured(path, seconds, generator, decay=None):
    """Write low-passed noise, dying away where ``decay`` (s) is given → its frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wav = generator.standard_normal(round(seconds * RATE))
    if decay is None:
        wav = 0.02 * lfilter([1], [1, -0.9], wav)
    else:
        wav = 0.3 * wav * np.exp(-np.arange(len(wav)) / (decay * RATE))
        wav[0] = 1.0
    soundfile.write(path, np.clip(wav, -1, 1), RATE)
    return len(wav)


if __name__ == "__main__":
    main()
