"""Fixtures that every test may use."""

import fcntl
import gc
import logging
import os
import re
import shutil
import sys
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import soundfile

# On any machine the tests compute on the CPU; read before torch looks for a GPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

LOGGERS = ("root", "speechbrain", "speechbrain_ext")

# With NO_SKIPS set, as .ci/run sets it, a skipped test is a failed one: ffmpeg or a
# browser that went missing must not pass for green. These two a machine may lack.
MAY_BE_SKIPPED = re.compile(r"\bGPU\b|shared is absent")


def pytest_collection_finish():
    """All is imported: a million objects that no garbage collection need go through.

    A third of the time of tiny trainings, which make many short-lived objects. There is
    one server of processes for all, which imports what ``tiny_training`` says: begun by
    a benchmark's test it would import less, and each later process for itself, for
    four seconds.
    """
    gc.collect()
    gc.freeze()
    if "tiny_training" in sys.modules:
        forkserver.ensure_running()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.getenv("NO_SKIPS"):
        reason = str(call.excinfo.value)
        if not MAY_BE_SKIPPED.search(reason):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: NO_SKIPS is set, and skipped: {reason}"
    return report


@pytest.fixture(scope="session")
def levels_at_first():
    """Level of every logger before any test."""
    return {name: logging.getLogger(name).level for name in LOGGERS}


@pytest.fixture(autouse=True)
def logging_as_at_first(levels_at_first):
    """A command that an earlier test ran in this process has set logging up."""
    for name, level in levels_at_first.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="session")
def shared():
    """The folder of real speech and golden figures beside the checkout, or skip."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


@pytest.fixture(scope="session")
def tone_corpus(tmp_path_factory):
    """A folder wav/SPEAKER/SESSION/NNNNN.wav: 4 speakers × 3 tones in faint noise.

    Each speaker has a frequency of their own, 300 + 100·s Hz; the utterances last
    1.0, 2.25 and 3.5 s. Shared by all tests: only to be read.
    """
    generator = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("tones") / "wav"
    for speaker in range(4):
        session = folder / f"id{10001 + speaker}" / "session"
        session.mkdir(parents=True)
        for number, seconds in enumerate((1.0, 2.25, 3.5), start=1):
            time = np.arange(round(seconds * 16000)) / 16000
            wav = 0.1 * np.sin(2 * np.pi * (300 + 100 * speaker) * time)
            wav += 0.001 * generator.standard_normal(len(wav))
            soundfile.write(session / f"{number:05d}.wav", wav, 16000)
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """torch computes in one thread: as loader workers do, and fast for tiny models."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Made-up voices, noises and rooms for ``tiny_training``: only to be read."""
    from tiny_training import write_corpus

    return write_corpus(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with everything; only to be read."""
    from tiny_verifier import add_backend, make_folder

    root = tmp_path_factory.mktemp("whole")
    folder = make_folder(root / "final")
    add_backend(folder, root / "wav")
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(whole, tmp_path / "final")


@pytest.fixture
def names(tmp_path):
    """Tensors of a small Adapter-MFA by their published names."""
    from released_checkpoints import published_names, random_model, write_config

    return published_names(random_model(write_config(tmp_path)))


@pytest.fixture(scope="session")
def onnx_models(tmp_path_factory):
    """name → (model, ONNX file, report); each exported when first asked for.

    An export takes 15 s: the processes of pytest-xdist share one, read only.
    """
    from tiny_onnx import export, load, report_of

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all processes
    made = {}

    def get(name):
        if name not in made:
            place = folder / f"onnx-{name}"
            with open(folder / f"{place.name}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # given back when it is closed
                if not report_of(place).exists():
                    shutil.rmtree(place, ignore_errors=True)  # half an export
                    export(name, place)
            made[name] = load(place)
        return made[name]

    return get
