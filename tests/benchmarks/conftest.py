"""The benchmarks are scripts, not a package: their folder is put on the path."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))


@pytest.fixture(scope="session")
def benchmarks_folder():
    """Where the scripts are."""
    return BENCHMARKS
