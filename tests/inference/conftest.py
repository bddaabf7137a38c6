"""Fixtures of several tests of inference."""

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
    """name → (model, ONNX file, report); each exported when first asked for."""
    from tiny_onnx import export

    made = {}

    def get(name):
        if name not in made:
            made[name] = export(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get
