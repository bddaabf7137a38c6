"""Fixtures of the tests of ONNX files."""

import pytest


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
