"""One optimiser step of a recipe's YAML file on a GPU that is not there.

    cd recipes/VoxCeleb/SpeakerRec
    python ../../../benchmarks/fake_step.py hparams/stage2_joint.yaml --batch_size=32

Options are those of train.py, whose function ``train`` runs as it is, with the file's
own model, terms, optimiser and Brain, at full size: only the recordings are left out,
and the step's numbers (:mod:`fake_gpu`). What a former stage or a teacher would be is
made from its own file with random weights. Prints peak memory, waits of the host,
kernel launches and FLOPs.
"""

import contextlib
import functools
import importlib.util
import json
import logging
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
from fake_gpu import FakeGPU
from speechbrain.dataio.dataloader import LoopedLoader
from torch.overrides import _get_current_function_mode_stack
from transformers import Wav2Vec2BertConfig, WavLMConfig

from speechbrain_ext import pretrained
from speechbrain_ext.data.dataset import Batch
from speechbrain_ext.data.manifest import Manifest, write_manifest
from speechbrain_ext.data.prepare.pipeline import Prepared
from speechbrain_ext.lobes import encoder
from speechbrain_ext.training import detection, terms
from speechbrain_ext.utils.config import load_run, read_tree
from speechbrain_ext.utils.errors import InputError, command_line
from speechbrain_ext.utils.files import write_json

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
VOXCELEB = RECIPES / "VoxCeleb/SpeakerRec/hparams"
ENCODERS = VOXCELEB / "encoders"
# hub id → configuration of its model, which has no weights
SOURCES = {
    "facebook/w2v-bert-2.0": Wav2Vec2BertConfig,
    "microsoft/wavlm-base": WavLMConfig,
    "microsoft/wavlm-base-plus": ENCODERS / "wavlm_base_plus.json",
    "microsoft/wavlm-large": ENCODERS / "wavlm_large.json",
    "microsoft/unispeech-sat-large": ENCODERS / "unispeech_sat_large.json",
    "facebook/hubert-large-ll60k": ENCODERS / "hubert_large.json",
    "facebook/wav2vec2-large-xlsr-53": ENCODERS / "wav2vec2_xlsr53.json",
    "nvidia/stt_en_conformer_ctc_large": ENCODERS / "nemo_conformer_large.json",
    "openai/whisper-large-v2": ENCODERS / "whisper_large_v2.json",
}
DEPTHS = "num_hidden_layers", "n_layers", "encoder_layers"  # keys of configurations
PRUNED = 0.2  # of every group of units, where a file starts from a pruned model
# key that names a folder → file that makes such a model, by the name of the file
DENSE = "stage1_adapter_mfa"
FORMER = {
    "stage2_ecapa": "table1/stage1_wavlm_ecapa",
    "stage3_ecapa": "table1/stage1_wavlm_ecapa",
    "stage2_mhfa": "table1/stage1_wavlm_mhfa",
    "stage3_mhfa": "table1/stage1_wavlm_mhfa",
    "stage2_lap": "table1/stage1_wavlm_lap",
    "stage3_lap": "table1/stage1_wavlm_lap",
    "stage2_whisper_pmfa": "table1/stage1_whisper_pmfa",
    "hybrid_wavlm_mhfa": "table1/stage1_wavlm_mhfa",
    "large_margin": "fbank/resnet",
}
OTHER_ENCODER = {"hybrid_wavlm_mhfa": "microsoft/wavlm-base-plus"}
FROM_PRUNED = {
    ("stage1_pruned", "pretrained_folder"),
    ("prune2_distill", "student_folder"),
}
# speakers to train on, less 40 that validate: VoxCeleb2 (and VoxBlink2), CN-Celeb
SPEAKERS = {"CNCeleb": (2753, None), "": (5954, None), "voxblink2": (117_237, 5954)}


class Stop(Exception):
    """All steps are done."""


@dataclass
class Step:
    """What one optimiser step of one process takes.

    Bytes: ``peak`` of live tensors, of these ``weights``, ``gradients`` and
    ``optimiser`` state. ``flops`` of products; ``moved`` bytes that other kernels read
    and write; ``kernels`` launched; ``syncs``, line of code → how often the host waits.
    """

    batch_size: int
    accumulation: int
    checkpointing: bool
    peak: int
    peaks: dict
    weights: int
    trained: int
    gradients: int
    optimiser: int
    flops: float
    moved: float
    kernels: int
    syncs: dict
    seconds: float

    @property
    def n_syncs(self):
        """Waits of the host."""
        return sum(self.syncs.values())


def fake_step(path, *words, layers=None):
    """One step of a YAML file, not a run's first: the optimiser has its state.

    Arguments
    ---------
    path : str or Path
        Of a file for train.py.
    *words : str
        Of its command line.
    layers : int, optional
        Of encoders from the hub, in place of all.

    Returns
    -------
    Step

    Raises
    ------
    RuntimeError
        An operation on tensors of two devices.
    InputError
        As train.py.
    """
    start = time.perf_counter()
    path = Path(path).resolve()
    with tempfile.TemporaryDirectory() as folder, FakeGPU() as gpu, without_files():
        run = Run(gpu, path, Path(folder), layers)
        with contextlib.suppress(Stop):
            run.train(words)
        found = run.result(time.perf_counter() - start)
    return found


def recipe_depth(path):
    """How many folders a YAML file lies below the recipe that has train.py."""
    for depth, folder in enumerate(path.parents):
        if (folder / "train.py").exists():
            return depth
    raise InputError(f"{path}: no train.py above it, expected a file of a recipe")


class Run:
    """A run of train.py that ends after two steps, or as many as ``steps`` asks for.

    ``gpu`` has ``building()`` and ``phase``, see :class:`fake_gpu.FakeGPU`; ``steps``
    is a function of this run, a batch's waveforms and the batches of a step, which
    yields once for each batch.
    """

    def __init__(self, gpu, path, folder, layers=None, device="cuda", steps=None):
        self.gpu, self.path, self.folder, self.layers = gpu, path, folder, layers
        self.device, self.steps = device, steps or one_step
        script = path.parents[recipe_depth(path)] / "train.py"
        spec = importlib.util.spec_from_file_location("recipe_train", script)
        self.script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.script)

    def train(self, words):
        """Run it."""
        with self.gpu.building():
            given = [*self.fillers(self.path), *words]
            _, run_opts, _, hparams = load_run(
                [str(self.path), *given], self.script.train
            )
            data = hparams["train_data"]
            make = functools.partial(
                self.data, data.func, {**data.keywords, "augmenter": None}
            )
            hparams |= {
                "output_folder": str(self.folder),
                "prepare": self.prepare,
                "train_data": make,
                "validation": lambda prepared, seconds: None,
            }
            kind = watched(self.script.SpeakerBrain, self)
            with mock.patch.object(self.script, "SpeakerBrain", kind):
                self.script.train(run_opts, self.path.stem, **hparams)

    # -- what a file asks for ----------------------------------------------------------

    def fillers(self, path, former=None):
        """Words for all placeholders and for every model of the hub."""
        words = [
            f"--output_folder={self.folder}/{path.stem}",
            *(f"--device={self.device}", "--noprogressbar"),
        ]
        for key, value, is_placeholder in leaves(read_tree(path)):
            name = key.rsplit(".", 1)[-1]
            if is_placeholder:
                is_model = name in ("pretrained_folder", "student_folder")
                if is_model or name in ("teacher_folder", "teacher"):
                    value = self.model_folder(path, name)
                words.append(f"--{key}={value}")
            elif value in SOURCES:
                words.append(f"--{key}={self.source(former or value)}")
        return words

    def source(self, name):
        """Configuration file of a model of the hub, perhaps of fewer layers."""
        found = SOURCES[name]
        if isinstance(found, Path):
            values = json.loads(found.read_text())
        else:
            values = found().to_dict()
        if self.layers is not None:
            values |= {key: self.layers for key in DEPTHS if key in values}
        file = self.folder / f"{name.replace('/', '_')}.json"
        write_json(file, values)
        return file

    def model_folder(self, path, key):
        """A folder as a former stage leaves it, of random weights."""
        name = path.stem
        former = VOXCELEB / f"{FORMER.get(name, DENSE)}.yaml"
        words = self.fillers(former, OTHER_ENCODER.get(name))
        _, _, _, hparams = load_run([str(former), *words], self.script.train)
        model = hparams["modules"]["speaker_encoder"]
        if (name, key) in FROM_PRUNED:
            groups = model.encoder.prunable_groups()
            widths = {g.name: max(1, round(PRUNED * g.units)) for g in groups}
            model.encoder = model.encoder.resized(widths)
        folder = self.folder / f"{name}.{key}"
        folder.mkdir()
        pretrained.write_model(folder, model, {}, {})
        return folder

    def prepare(self):
        """A manifest of as many speakers as the corpora have."""
        speakers, perturbed = SPEAKERS[""]
        for name, numbers in SPEAKERS.items():
            if name and name in str(self.path):
                speakers, perturbed = numbers
        names = [f"s{number:06d}" for number in range(speakers)]
        keys = [("bonafide", "spoof")[number % 2] for number in range(speakers)]
        file = self.folder / "train.arrow"
        columns = names, names, [4.0] * speakers, names
        write_manifest(file, Manifest(*columns, perturbed, {"key": keys}))
        return Prepared(file, None, None, None, {}, False)

    def data(self, kind, keywords, path, seed):
        """TrainingData whose batches hold nothing."""
        run = self

        class Data(kind):
            def loader(self, num_workers=0, pin_memory=False):
                return _Batches(run)

        self.training_data = Data(path, seed=seed, **keywords)
        return self.training_data

    # -- what was found ----------------------------------------------------------------

    def result(self, seconds):
        """→ Step."""
        gpu, brain = self.gpu, self.brain
        parameters = list(brain.modules.parameters())
        state = brain.optimizer.state.values()
        trained = [p for p in parameters if p.requires_grad]
        kept = [t for s in state for t in s.values() if torch.is_tensor(t)]
        return Step(
            batch_size=self.batch_size,
            accumulation=brain.grad_accumulation_factor,
            checkpointing=brain.embedder().encoder.gradient_checkpointing,
            peak=max(gpu.peaks.values()),
            peaks=dict(gpu.peaks),
            weights=sum(p.nbytes for p in parameters),
            trained=sum(p.numel() for p in trained),
            gradients=sum(p.nbytes for p in trained),
            optimiser=sum(tensor.nbytes for tensor in kept),
            flops=sum(gpu.flops.values()),
            moved=sum(gpu.moved.values()),
            kernels=sum(gpu.kernels.values()),
            syncs=dict(gpu.syncs),
            seconds=round(seconds, 2),
        )


class _Batches(LoopedLoader):
    """What a run trains on: noise, in the longest of its crops."""

    def __init__(self, run):
        self.run = run

    def __iter__(self):
        run = self.run
        data, factor = run.training_data, run.brain.grad_accumulation_factor
        samples = round(data.crop_seconds[1] * 16000)
        batch = run.batch_size = data.sampler.batch_size
        wavs, labels = 0.1 * torch.randn(batch, samples), torch.zeros(batch).long()
        for _ in run.steps(run, wavs, factor):
            yield Batch(wavs, labels, [""] * batch)
        raise Stop

    def close(self):
        """As a loader of this package."""


def one_step(run, wavs, factor):
    """Count the second of two steps: the first makes what is made once."""
    yield from range(factor)
    run.gpu.reset()
    yield from range(factor)


def watched(kind, run):
    """A Brain that says in which part of a step it is."""
    gpu = run.gpu

    class Watched(kind):
        def __init__(self, **options):
            gpu.is_building = False
            run.brain = self
            super().__init__(**options)

        def fit_batch(self, batch):
            gpu.phase = "forward"
            return super().fit_batch(batch)

        def compute_objectives(self, *arguments):
            found = super().compute_objectives(*arguments)
            gpu.phase = "backward"
            return found

        def clip_gradients(self):
            gpu.phase = "optimiser"
            return super().clip_gradients()

        def optimizers_step(self):
            gpu.phase = "optimiser"
            super().optimizers_step()

    return Watched


@contextlib.contextmanager
def without_files():
    """Folders of models have no weights, and former stages no classifier."""
    save, load = "save_weights", "load_model_weights"
    with (
        mock.patch.object(pretrained, save),
        mock.patch.object(pretrained, load, lambda model, folder: model.eval()),
        mock.patch.object(terms, "load_classifier"),
        mock.patch.object(detection.Detection, "check_resumed"),  # reads a number
        mock.patch.object(encoder, "checkpoint", checkpoint),
    ):
        forget_constants()
        yield
    forget_constants()


def checkpoint(function, *args, **kwargs):
    """torch's, which would compute again without autocast."""
    modes = _get_current_function_mode_stack()

    def again(*args):
        with contextlib.ExitStack() as stack:
            if not _get_current_function_mode_stack():
                for mode in modes:
                    stack.enter_context(mode)
            return function(*args)

    return torch.utils.checkpoint.checkpoint(again, *args, **kwargs)


def forget_constants():
    """Windows and filters that are kept by device: those on this GPU are no others'."""
    for name, module in list(sys.modules.items()):
        if name.startswith("speechbrain_ext."):
            for kept in vars(module).values():
                if hasattr(kept, "cache_clear"):
                    kept.cache_clear()


def leaves(tree, prefix=""):
    """(dotted key, value, is a placeholder) of everything in a YAML file."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if hasattr(value, "items"):
            yield from leaves(value, f"{name}.")
        else:
            tag = getattr(getattr(value, "tag", None), "value", None)
            yield (
                name,
                value if isinstance(value, str) else "none",
                tag == "!PLACEHOLDER",
            )


@command_line
def main(argv=None):
    """Print what a step takes."""
    words = sys.argv[1:] if argv is None else argv
    logging.disable()
    step = fake_step(*words)
    print(json.dumps(asdict(step), indent=1))


if __name__ == "__main__":
    main()
