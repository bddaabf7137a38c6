"""Fixtures of several tests of inference."""

import fcntl
import os
import shutil

import pytest


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
