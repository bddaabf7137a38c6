"""Checkpoints that are whole or absent, and that hold all that a run depends on.

SpeechBrain's Checkpointer writes into the final folder, meta file first: a run killed
in between leaves a checkpoint that looks complete. Here a checkpoint is written
under another name and renamed at the end. What SpeechBrain leaves out of it, random
number generators, is a recoverable of its own.
"""

import contextlib
import logging
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import torch
import yaml
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    DEFAULT_LOAD_HOOKS,
    METAFNAME,
    PARAMFILE_EXT,
    Checkpoint,
    Checkpointer,
    get_default_hook,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import ddp_barrier, get_rank, if_main_process

from speechbrain_ext.utils.distributed import rank_and_world
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import sync_folder
from speechbrain_ext.utils.weights import load_strictly, read_weights

logger = logging.getLogger(__name__)

PARTIAL = ".partial+"
# SpeechBrain would log the name that the checkpoint has until it is whole.
QUIET = {"verbosity": logging.DEBUG}
# What torch says where the disk is full: while it writes, and when it closes the file.
ZIP_WRITER_FAILED = ("file write failed", "unexpected pos", "iostream error")
# What readers raise for a truncated, empty or foreign file.
DAMAGE = (
    *(OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError),
    *(AttributeError, pickle.UnpicklingError, yaml.YAMLError),
)


class AtomicCheckpointer(Checkpointer):
    """SpeechBrain's Checkpointer whose checkpoints appear by one rename.

    Arguments
    ---------
    checkpoints_dir : str or Path
    recoverables : mapping, optional
        Name → object.
    """

    def __init__(self, checkpoints_dir, recoverables=None, **options):
        super().__init__(checkpoints_dir, recoverables, **options)
        if if_main_process():
            self._drop_partial()
            for folder in self.checkpoints_dir.glob(f"{CKPT_PREFIX}+*"):
                if not self._is_checkpoint_dir(folder):  # killed while deleting it
                    shutil.rmtree(folder, ignore_errors=True)

    def save_checkpoint(self, *args, **kwargs):
        """As SpeechBrain's, but nothing is seen of it before it is whole.

        InputError: a full disk, with the name of the folder; older checkpoints stay.
        """
        try:
            saved = super().save_checkpoint(*args, **{**kwargs, **QUIET})
        except (OSError, RuntimeError) as error:
            if if_main_process():  # which may still write where another failed
                self._drop_partial()
            # torch reports a full disk as a RuntimeError of its zip writer
            if isinstance(error, RuntimeError) and not any(
                text in str(error) for text in ZIP_WRITER_FAILED
            ):
                raise
            reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
            raise InputError(
                f"{self.checkpoints_dir}: checkpoint not written ({reason}); the older "
                "ones are whole: make room and run the same command again"
            ) from error
        ddp_barrier()  # every rank's files are in
        if saved is not None:
            final = saved.path.with_name(saved.path.name[len(PARTIAL) :])
            sync_folder(saved.path)
            os.replace(saved.path, final)
            files = {name: final / path.name for name, path in saved.paramfiles.items()}
            saved = Checkpoint(final, saved.meta, files)
            logger.info("checkpoint %s", final)
        ddp_barrier()
        return saved

    def list_checkpoints(self):
        """As SpeechBrain's.

        Raises
        ------
        InputError
            Naming the meta file of a checkpoint that cannot be read.
        """
        found = []
        for folder in self._list_checkpoint_dirs():
            with _named(folder / METAFNAME):
                found += self._construct_checkpoint_objects([folder])
                found[-1].meta["unixtime"], found[-1].meta["end-of-epoch"]
        return found

    def load_checkpoint(self, checkpoint):
        """As SpeechBrain's.

        Raises
        ------
        InputError
            Naming the file that is missing, damaged, or of another run.
        """
        logger.info("loading checkpoint %s", checkpoint.path)
        for name, thing in self.recoverables.items():
            path = checkpoint.path / f"{name}{PARAMFILE_EXT}"
            if self.optional_recoverables.get(name) and not path.is_file():
                continue
            load = get_default_hook(thing, DEFAULT_LOAD_HOOKS)
            with _named(path):
                load(thing, path, checkpoint.meta["end-of-epoch"])

    def _new_checkpoint_dirpath(self):
        path = super()._new_checkpoint_dirpath()
        return path.with_name(PARTIAL + path.name)

    def _custom_checkpoint_dirpath(self, name):
        path = super()._custom_checkpoint_dirpath(name)
        return path.with_name(PARTIAL + path.name)

    def _drop_partial(self):
        for partial in self.checkpoints_dir.glob(f"{PARTIAL}*"):
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _named(path):
    """Whatever goes wrong in reading ``path`` becomes one line that names it."""
    try:
        yield
    except InputError:
        raise
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{path}: cannot be read as part of a checkpoint of this run ({reason}); "
            "delete its folder to go on from the one before"
        ) from error


@register_checkpoint_hooks
class TrainedState:
    """The part of a module that training changes: trained parameters and buffers.

    A frozen encoder of 2.3 GB need not be in every checkpoint; it is read from where
    it came from.

    Arguments
    ---------
    module : torch.nn.Module
        Before any DistributedDataParallel wrapper.
    """

    def __init__(self, module):
        self.module = module

    def names(self):
        """Names in the state dict of what is saved."""
        frozen = {n for n, p in self.module.named_parameters() if not p.requires_grad}
        return [name for name in self.module.state_dict() if name not in frozen]

    @mark_as_saver
    def save(self, path):
        """Write a torch file of a flat dictionary."""
        state = self.module.state_dict()
        torch.save({name: state[name] for name in self.names()}, path)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Read it back; names that differ are an error."""
        del end_of_epoch
        names = set(self.names())
        frozen = tuple(n for n in self.module.state_dict() if n not in names)
        load_strictly(self.module, read_weights(path), str(path), allow_missing=frozen)


class RandomState:
    """Every rank's random number generators: Python, numpy, torch, its GPU's.

    Arguments
    ---------
    sampler : CropBatchSampler, optional
        Its seed, epoch and step seed the ranks that a checkpoint has nothing of, since
        it was made by fewer. Loaded before this. None: they keep what they have.
    """

    def __init__(self, sampler=None):
        self.sampler = sampler

    @mark_as_saver
    def save(self, path):
        """Write this rank's generators beside those of the others."""
        name, key, *rest = np.random.get_state()
        state = {
            "python": random.getstate(),
            "numpy": [name, key.tolist(), *rest],
            "torch": torch.get_rng_state(),
            # of this rank's GPU alone: the next run may see others
            # and of none where it computes nothing: asking would begin to use it
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        }
        torch.save(state, self._mine(path))

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Read this rank's generators, or seed them where the rank was not there."""
        del end_of_epoch
        self._say_who_is_new(path)
        mine = self._mine(path)
        if get_rank() and not mine.is_file():
            self._seed_anew()
            return
        state = torch.load(mine, weights_only=True)
        random.setstate(state["python"])
        np.random.set_state(tuple(state["numpy"]))
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(state["cuda"])

    def _seed_anew(self):
        if self.sampler is None:
            return
        place = self.sampler.seed, self.sampler.epoch, self.sampler.step_done
        words = np.random.SeedSequence([*place, get_rank()]).generate_state(3)
        random.seed(int(words[0]))
        np.random.seed(words[1])
        torch.manual_seed(int(words[2]))  # of the GPU, too

    def _say_who_is_new(self, path):
        rank, world = rank_and_world()
        new = [r for r in range(world) if not self._of(path, r).is_file()]
        if new and rank == 0:
            logger.info(
                "rank(s) %s: no random state in the checkpoint, seeded from seed, "
                "epoch, step and rank",
                ", ".join(map(str, new)),
            )

    @classmethod
    def _mine(cls, path):
        return cls._of(path, get_rank() or 0)

    @staticmethod
    def _of(path, rank):
        # rank 0 keeps the plain name, by which SpeechBrain finds the file
        path = Path(path)
        return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}.pt")


# On every rank: by default SpeechBrain calls savers on the main process only.
register_checkpoint_hooks(RandomState, save_on_main_only=False)
