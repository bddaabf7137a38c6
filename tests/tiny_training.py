"""Training runs of a second: a tiny encoder on made-up voices, in any process.

``tiny_run`` builds what train.py builds, small; ``in_processes`` runs a function in
processes of its own, as torchrun would, without the seconds that importing takes.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import socket
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile
import torch
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.train_logger import FileTrainLogger
from transformers import Wav2Vec2BertConfig

from speechbrain_ext.adaptation import inject_lora
from speechbrain_ext.data.augment import Augmenter, Musan, RoomResponses
from speechbrain_ext.data.manifest import Manifest, write_manifest
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.schedules import Constant, LinearRamp, WarmupStepDecay
from speechbrain_ext.scoring.trials import Trials
from speechbrain_ext.training.brain import SpeakerBrain
from speechbrain_ext.training.checkpoints import AtomicCheckpointer
from speechbrain_ext.training.data import TrainingData
from speechbrain_ext.training.resumable import unwrap
from speechbrain_ext.training.terms import Classification
from speechbrain_ext.training.validation import EERTrials
from speechbrain_ext.utils.errors import command_line

SPEEDS = (1.0, 0.9, 1.1)


def tiny_config(dropout=0.1, hidden=16, layers=1):
    """The configuration of an encoder of a few thousand parameters."""
    names = ("hidden", "attention", "activation", "feat_proj", "conformer_conv")
    return Wav2Vec2BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        conv_depthwise_kernel_size=5,
        **{f"{name}_dropout": dropout for name in names},
    )


def voice(number, seconds, generator, rate=16000):
    """A tone of 200 + 90 · number Hz with overtones, in noise: [T]."""
    time = np.arange(round(seconds * rate)) / rate
    pitch = 200 + 90 * number
    wav = sum(np.sin(2 * np.pi * k * pitch * time) / k for k in (1, 2, 3))
    return 0.1 * wav + 0.02 * generator.standard_normal(len(time))


def write_voices(folder, n_speakers=6, n_utterances=7, seconds=0.7, first=0):
    """folder/wav/idNN/session/NNNNN.wav in VoxCeleb's shape."""
    generator = np.random.default_rng(first)
    for number in range(first, first + n_speakers):
        for take in range(n_utterances):
            path = Path(folder) / f"wav/id{number:02d}/s{take % 2}/{take:05d}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, voice(number, seconds, generator), 16000)


def write_musan(folder):
    """One file each of noise, music and speech."""
    generator = np.random.default_rng(1)
    for name in ("noise", "music", "speech"):
        path = Path(folder) / name / "part" / f"{name}.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, 0.1 * generator.standard_normal(16000), 16000)


def write_rirs(folder):
    """Two exponentially decaying responses."""
    generator = np.random.default_rng(2)
    place = Path(folder) / "simulated_rirs/smallroom"
    place.mkdir(parents=True)
    decay = np.exp(-np.arange(800) / 100)
    for name in ("a", "b"):
        soundfile.write(
            place / f"{name}.wav", decay * generator.standard_normal(800), 16000
        )


def write_corpus(folder):
    """voices, musan and rirs below one folder, which is returned."""
    folder = Path(folder)
    write_voices(folder / "voices")
    write_musan(folder / "musan")
    write_rirs(folder / "rirs")
    return folder


def manifest_of(folder, speakers, n_utterances=7):
    """Manifest of some of the voices, without reading them."""
    rows = [
        (f"id{s:02d}/s{take % 2}/{take:05d}", f"id{s:02d}")
        for s in speakers
        for take in range(n_utterances)
    ]
    ids, names = zip(*rows)
    paths = [str(Path(folder) / f"voices/wav/{name}.wav") for name in ids]
    return Manifest(ids, paths, [0.7] * len(ids), names)


def all_pairs(manifest):
    """Every pair of recordings as a trial, to validate on."""
    enrol, test = np.triu_indices(len(manifest), 1)
    same = manifest.labels[enrol] == manifest.labels[test]
    trials = Trials(
        Path("pairs"),
        manifest.ids,
        enrol.astype(np.int32),
        test.astype(np.int32),
        same.astype(np.int8),
    )
    return EERTrials(manifest, trials, 3.0)


def tiny_run(
    corpus,
    folder,
    *,
    brain=SpeakerBrain,
    factor=1,
    batch_size=4,
    epochs=2,
    workers=0,
    dropout=0.1,
    lora=False,
    random_data=True,
    validate=True,
    steps_between_checkpoints=0,
    head=None,
    seed=7,
    **hparams,
):
    """A Brain and its loader, from the corpus of :func:`write_corpus`.

    28 recordings of 4 speakers train, 14 of 2 others validate. ``random_data`` False:
    one crop length, one speed, no augmentation.
    """
    rank = int(os.environ.get("RANK", 0))
    torch.manual_seed(seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = W2VBertEncoder(tiny_config(dropout), frozen=lora)
    head = head or AdapterMFA(16, encoder.n_states, 8, 16)
    effects = {
        "noise": partial(Musan, corpus / "musan"),
        "reverb": partial(RoomResponses, corpus / "rirs"),
    }
    chains = {"none": 1, "noise": 1, "reverb": 1}
    random = {
        "crop_seconds": (0.4, 0.6),
        "speeds": SPEEDS,
        "augmenter": partial(Augmenter, chains, effects=effects),
    }
    manifest = folder / f"train{rank}.csv"
    write_manifest(manifest, manifest_of(corpus, range(4)))
    data = TrainingData(
        manifest,
        seed,
        batch_size=batch_size,
        valid_batch_seconds=3.0,
        **(random if random_data else {"crop_seconds": (0.5, 0.5)}),
    )
    model = SpeakerEncoder(encoder, head)
    margins = hparams.pop("margin_schedule", LinearRamp(0.0, 0.2, 0.0, 2.0))
    term = Classification(ArcFace, margins)
    term.setup(model, data)
    if lora:
        inject_lora(encoder, r=2, alpha=4, dropout=dropout)
    hparams.setdefault("lr_schedule", WarmupStepDecay(0.01, 1.0, 1.0, 0.5))
    torch.manual_seed(seed + rank)
    made = tiny_brain(
        corpus,
        folder,
        model,
        data,
        [term],
        brain=brain,
        epochs=epochs,
        factor=factor,
        validate=validate,
        steps_between_checkpoints=steps_between_checkpoints,
        **hparams,
    )
    return made, data.loader(workers)


def tiny_brain(
    corpus,
    folder,
    model,
    data,
    terms,
    *,
    brain,
    epochs,
    factor,
    validate,
    steps_between_checkpoints,
    opt_class=torch.optim.AdamW,
    step_log=None,
    **hparams,
):
    """A Brain on the CPU with its checkpoints in ``folder``."""
    values = {
        "epoch_counter": EpochCounter(epochs),
        "train_logger": FileTrainLogger(folder / "train_log.txt"),
        "max_grad_norm": 1.0,
        "grad_accumulation_factor": factor,
        "ckpt_interval_steps": steps_between_checkpoints,
        "noprogressbar": True,
        **hparams,
    }
    return brain(
        modules={"speaker_encoder": model},
        terms=terms,
        step_log=step_log,
        validation=all_pairs(manifest_of(corpus, (4, 5))) if validate else None,
        sampler=data.sampler,
        opt_class=opt_class,
        hparams=values,
        run_opts={"device": "cpu", "distributed_backend": "gloo"},
        checkpointer=AtomicCheckpointer(folder / "save"),
    )


class StoppedBrain(SpeakerBrain):
    """Gets SIGTERM in the middle of (epoch, step), or in an epoch's validation.

    Or in the step number ``stop_after`` of those that it takes, wherever that is.
    """

    stop_at = stop_after = stopped_at = None
    taken = 0

    def compute_objectives(self, *args):
        self.taken += 1
        if self.at(self.step) or self.taken == self.stop_after:
            self.stopped_at = (self.hparams.epoch_counter.current, self.step)
            os.kill(os.getpid(), signal.SIGTERM)
        return super().compute_objectives(*args)

    def validate(self, *args, **kwargs):
        if self.at("validation"):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().validate(*args, **kwargs)

    def at(self, place):
        return self.stop_at == (self.hparams.epoch_counter.current, place)


def constant_rate(value):
    """Schedules for :func:`tiny_run`."""
    return {"lr_schedule": Constant(value), "margin_schedule": Constant(0.1)}


def train(brain, loader):
    """Train to the end; → all that training changes, by name."""
    brain.fit(brain.hparams.epoch_counter, loader)
    return state_of(brain)


def train_in_pieces(run, stop_after):
    """Runs that each stop in that step of those they take, until one reaches the end.

    ``run(brain=…)`` makes a Brain and its loader → (final state, places of the stops).
    """
    places = []
    while True:
        brain, loader = run(brain=StoppedBrain)
        brain.stop_after = stop_after
        with contextlib.suppress(SystemExit):
            return train(brain, loader), places
        assert brain.stopped_at not in places  # each run goes on
        places.append(brain.stopped_at)


def state_of(brain):
    """Weights, optimiser state and random state, by name: clones."""
    state = {
        f"{name}.{key}": value.clone()
        for name, module in brain.modules.items()
        for key, value in unwrap(module).state_dict().items()
    }
    for number, values in brain.optimizer.state_dict()["state"].items():
        state |= {f"opt.{number}.{k}": torch.as_tensor(v) for k, v in values.items()}
    return {**state, "random": torch.get_rng_state()}


def assert_same(found, expected):
    """Bitwise equality of two states."""
    assert found.keys() == expected.keys()
    different = [k for k in expected if not torch.equal(found[k], expected[k])]
    assert different == []


# ---- processes -----------------------------------------------------------------------

_CONTEXT = multiprocessing.get_context("forkserver")
_PACKAGE = ("training.brain", "training.terms", "training.data", "utils.config")
_PACKAGE += ("data.corpora.voxceleb", "data.corpora.cnceleb", "data.corpora.voxblink2")
_PACKAGE += ("data.corpora.csv_file", "evaluation.verification", "export.folder")
_PACKAGE += ("evaluation.backend_plan", "scoring.report")
_CONTEXT.set_forkserver_preload(
    [
        *("pytest", "matplotlib.figure", "matplotlib.backends.backend_agg"),
        *(f"speechbrain_ext.{name}" for name in _PACKAGE),
    ]
)


def start(function, *arguments, stderr=None, **environment):
    """Start ``function(*arguments)`` in a process: ``.pid``, ``.join()``, …

    ``stderr`` is a file to which its standard error goes.
    """
    process = _CONTEXT.Process(
        target=_child, args=(function, arguments, stderr, environment)
    )
    process.start()
    return process


def on_a_full_disk(limit, stderr, function, *arguments, seconds=60):
    """Run a command while no file can have more than ``limit`` bytes → its error."""
    process = start(_limited, limit, function, arguments, stderr=stderr)
    process.join(seconds)
    assert process.exitcode == 1
    (line,) = stderr.read_text().splitlines()
    assert line.startswith("error: ")
    return line


@command_line
def _limited(limit, function, arguments):
    import resource  # not on Windows

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    function(*arguments)


def in_processes(function, world_size, *arguments, seconds=120):
    """``function(*arguments)`` on every rank of a gloo group → exit codes by rank."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    ranks = [
        start(
            _with_group,
            function,
            arguments,
            RANK=rank,
            LOCAL_RANK=rank,
            WORLD_SIZE=world_size,
            MASTER_ADDR="localhost",
            MASTER_PORT=port,
        )
        for rank in range(world_size)
    ]
    for process in ranks:
        process.join(seconds)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    return codes


def _child(function, arguments, stderr, environment):
    gc.freeze()  # what the server of forks has imported is no garbage
    os.environ.update({name: str(value) for name, value in environment.items()})
    if stderr is not None:
        descriptor = os.open(stderr, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    function(*arguments)


def _with_group(function, arguments):
    torch.distributed.init_process_group("gloo")
    function(*arguments)
    if torch.distributed.is_initialized():  # where the function has not left it
        torch.distributed.destroy_process_group()


def saved(path):
    """What a child left with ``torch.save``."""
    return SimpleNamespace(**torch.load(path, weights_only=False))
