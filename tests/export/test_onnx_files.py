"""ONNX files on disk: whole or absent, weights beside them where they are large."""

import resource
import shutil

import numpy as np
import onnx_ir
import pytest

from speechbrain_ext.export.onnx import check as onnx_files
from speechbrain_ext.export.onnx.check import graph_alone
from speechbrain_ext.utils.errors import describe_os_error


@pytest.fixture
def small_limit(monkeypatch, onnx_models):
    """Models of more than 10 kB count as large, once there is one to copy."""
    onnx_models("mfa")
    monkeypatch.setattr(onnx_files, "SINGLE_FILE_BYTES", 10_000)


def write(source, output):
    """What the export does with a finished graph."""
    with onnx_files.folder_beside(output) as folder:
        path = onnx_files.save(onnx_ir.load(source), folder / "fp32.onnx")
        onnx_files.put_in_place(path, output)


@pytest.mark.usefixtures("small_limit")
def test_large_models_keep_their_weights_beside_and_may_move(onnx_models, tmp_path):
    _, file, _ = onnx_models("mfa")
    output = tmp_path / "one" / "model.onnx"
    write(file, output)
    (name,) = onnx_files.external_files(output)
    weights = output.with_name(name)
    assert sorted(output.parent.iterdir()) == sorted([weights, output])
    assert output.stat().st_size < file.stat().st_size / 2
    total = output.stat().st_size + weights.stat().st_size
    assert onnx_files.file_bytes(output) == total
    shutil.move(output.parent, tmp_path / "two")
    wav = np.float32(0.1 * np.sin(np.arange(16000)))
    one = graph_alone(tmp_path / "two" / "model.onnx").embed(wav)
    np.testing.assert_array_equal(one, graph_alone(file).embed(wav))


@pytest.mark.usefixtures("small_limit")
def test_a_second_export_takes_the_place_of_the_first(onnx_models, tmp_path):
    _, file, _ = onnx_models("mfa")
    output = tmp_path / "model.onnx"
    write(file, output)
    former = onnx_files.external_files(output)
    write(file, output)
    (name,) = onnx_files.external_files(output)
    assert name not in former
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", name}


def test_small_models_are_one_file(onnx_models, tmp_path):
    _, file, _ = onnx_models("mfa")
    write(file, tmp_path / "model.onnx")
    assert not onnx_files.external_files(tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_what_is_no_model_of_ours_is_replaced_and_touches_nothing(
    onnx_models, tmp_path
):
    _, file, _ = onnx_models("mfa")
    output = tmp_path / "model.onnx"
    output.write_text("something else")
    write(file, output)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert output.stat().st_size > 1000


def test_a_full_disk_leaves_the_old_file_and_names_it(onnx_models, tmp_path):
    _, file, _ = onnx_models("mfa")
    output = tmp_path / "model.onnx"
    output.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write(file, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert describe_os_error(caught.value) == f"{output}: File too large"
    assert output.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
