"""A tiny trained model and what verify.py leaves of it, without training or sound."""

import zlib
from pathlib import Path

import numpy as np
import torch
from tiny_encoder import tiny_config

from speechbrain_ext.data.manifest import Manifest, write_manifest
from speechbrain_ext.evaluation.backend_plan import Calibration, plan_backend
from speechbrain_ext.evaluation.score_lists import read_lists, recordings_of, score_list
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.scoring.backend import Backend
from speechbrain_ext.scoring.report import evaluate, write_report
from speechbrain_ext.utils.files import sha256

SIZE, EACH = 8, 5
TRAINED, HELD_OUT, TESTED = range(8), range(10, 18), range(20, 26)
CALIBRATION = Calibration(l2=0.1, n_trials=300, boundary=3.0, shortest=1.0, seed=0)


def names_of(speakers):
    """[10, 11] → ["id10", "id11"]."""
    return [f"id{number:02d}" for number in speakers]


def write_final(folder, seed=0, layers=1, training=None):
    """``folder/stage9/final`` with a classifier of the training speakers."""
    torch.manual_seed(seed)
    config = tiny_config(
        hidden_size=16,
        output_hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
    )
    encoder = W2VBertEncoder(config)
    model = SpeakerEncoder(encoder, AdapterMFA(16, 1 + layers, SIZE, SIZE)).eval()
    default = {
        "speakers": names_of(TRAINED),
        "n_speeds": 1,
        "epoch": 7,
        "validation_eer_percent": 2.345,
        "trained_parameters": 12,
        "total_parameters": 12,
    }
    classifier = ArcFace(SIZE, len(TRAINED))
    save_pretrained(
        Path(folder) / "stage9" / "final", model, classifier, training or default
    )
    return Path(folder) / "stage9" / "final"


def recordings(folder, name, speakers):
    """NAME.csv of ``EACH`` recordings of each speaker; the sound files are empty."""
    owners = [who for who in names_of(speakers) for _ in range(EACH)]
    ids = [f"{who}/s/{row % EACH}" for row, who in enumerate(owners)]
    (folder / "wav").mkdir(exist_ok=True)
    paths = [folder / "wav" / f"{i.replace('/', '-')}.wav" for i in ids]
    for path in paths:
        path.touch()
    seconds = np.random.default_rng(0).uniform(1, 5, len(ids))
    manifest = Manifest(ids, list(map(str, paths)), seconds, owners)
    write_manifest(folder / f"{name}.csv", manifest)
    return manifest


def vectors_of(manifest):
    """Made-up embeddings [N, SIZE], alike within a speaker."""
    rows = []
    for name, speaker in zip(manifest.ids.tolist(), manifest.speakers.tolist()):
        parts = [
            np.random.default_rng(zlib.crc32(text.encode())).standard_normal(SIZE)
            for text in (speaker, name)
        ]
        rows.append(parts[0] + 0.7 * parts[1])
    return np.array(rows, dtype=np.float32)


def write_results(
    folder,
    final=None,
    calibrate=HELD_OUT,
    cohort=TRAINED,
    top_n=4,
    n_resamples=0,
    tested=TESTED,
):
    """What verify.py writes into its output folder, pictures left out → the folder.

    ``calibrate``: speakers to calibrate on; None: no calibration. ``cohort``: theirs;
    None: none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    test = recordings(folder, "test", tested)
    lines = [
        f"{int(a[:4] == b[:4])} {a} {b}\n"
        for row, a in enumerate(test.ids.tolist())
        for b in test.ids.tolist()[row + 1 :]
    ]
    (folder / "vox1_x.txt").write_text("".join(lines))
    manifests = {}
    for name, speakers in (("train", cohort), ("valid", calibrate)):
        if speakers is not None:
            recordings(folder, name, speakers)
            key = {"train": "training", "valid": "calibration"}[name]
            manifests[f"{key}_manifest"] = str(folder / f"{name}.csv")
    plan = plan_backend(
        **manifests,
        backend=Backend(top_n=top_n),
        calibration=None if calibrate is None else CALIBRATION,
    )
    backend = plan.build_backend(lambda manifest, path: vectors_of(manifest), folder)
    side = recordings_of(test, vectors_of(test), "embeddings.npz")
    results = []
    for name, trials in read_lists(folder / "vox1_x.txt").items():
        systems = score_list(name, trials, backend, side, side, folder)
        speakers = np.unique([n[:4] for n in trials.names], return_inverse=True)[1]
        results.append(evaluate(trials, systems, speakers, n_resamples))
    about = {**manifests, **backend.describe()}
    if final is not None:
        about["pretrained_folder"] = str(final)
        about["weights_sha256"] = sha256(final / "speaker_encoder.safetensors")
    write_report(folder, results, about)
    return folder
