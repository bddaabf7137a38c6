"""Fixtures of the tests of scoring."""

import pytest


@pytest.fixture
def write(tmp_path):
    """Text or bytes, file name → path of a list or map."""

    def _write(content, name="list.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return _write
