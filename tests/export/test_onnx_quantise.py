"""8-bit weights: smaller, near the exact model, refused where they are not."""

import numpy as np
import onnx
import onnx_ir
import pytest

from speechbrain_ext.export.onnx import check as onnx_files
from speechbrain_ext.export.onnx.check import (
    BATCH,
    compare_embeddings,
    graph_alone,
    recordings,
    speech_like,
)
from speechbrain_ext.export.onnx.quantise import quantise
from speechbrain_ext.inference.onnx_runner import cosine
from speechbrain_ext.utils.errors import InputError


@pytest.fixture(scope="module")
def small(onnx_models, tmp_path_factory):
    """The 8-bit file of the pruned model, and its figures."""
    _, file, _ = onnx_models("pruned")
    copy = tmp_path_factory.mktemp("int8") / "model.onnx"
    copy.write_bytes(file.read_bytes())
    return file, *quantise(copy)


def test_all_linear_maps_have_8_bit_weights_and_nothing_else(small):
    file, path, _ = small
    exact, rounded = onnx.load(file), onnx.load(path)
    kinds = {t.data_type for t in rounded.graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    learned = [
        t
        for t in rounded.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT
        and len(t.dims) == 2
        and not t.name.startswith("features/")
    ]
    assert not learned
    spectrum = {t.name: list(t.dims) for t in rounded.graph.initializer}
    assert [400, 514] in spectrum.values()
    said = {p.key: p.value for p in rounded.metadata_props}
    assert said == {p.key: p.value for p in exact.metadata_props} | {"weights": "int8"}


def test_embeddings_stay_near_and_the_figures_say_how_near(small):
    file, path, figures = small
    exact, rounded = graph_alone(file), graph_alone(path)
    wavs = recordings(exact)
    # a batch shares the scale of its values: the same batches, the same figures
    one, other = exact.embed(wavs, BATCH), rounded.embed(wavs, BATCH)
    assert figures["worst_cosine"] == pytest.approx(cosine(one, other).min(), abs=1e-4)
    assert 0.99 < figures["worst_cosine"] < 1 - 1e-7  # rounded, but little
    assert figures["mean_cosine"] >= figures["worst_cosine"]
    assert figures["worst_score_change"] < 0.1
    assert figures["compared_on"] == f"{len(wavs)} made-up recordings"
    assert figures["int8_bytes"] == path.stat().st_size
    assert figures["int8_seconds"] > 0


def test_a_cosine_that_is_too_low_is_refused(onnx_models, tmp_path):
    _, file, _ = onnx_models("pruned")
    copy = tmp_path / "model.onnx"
    copy.write_bytes(file.read_bytes())
    wavs = [speech_like(16000, 16000, seed=3)]
    with pytest.raises(
        InputError, match=r"int8: .* cosine of 0\.99.*expected 1 .*1 given recordings"
    ):
        quantise(copy, wavs, min_cosine=1.0)


@pytest.mark.parametrize("limit", ["between", "below"])
def test_a_large_model_in_8_bits_has_files_of_its_own(
    onnx_models, tmp_path, monkeypatch, limit
):
    """Weights beside the exact model; beside the 8-bit one only where those are large.

    Two models in one folder, one of them exported twice: each keeps its own weights.
    """
    _, file, _ = onnx_models("pruned")
    model = onnx_ir.load(file)
    weights = sum(w.const_value.nbytes for w in model.graph.initializers.values())
    limits = {"between": weights - 1, "below": 10_000}
    monkeypatch.setattr(onnx_files, "SINGLE_FILE_BYTES", limits[limit])
    outputs = [tmp_path / name for name in ("a.onnx", "b.onnx", "a.onnx")]
    for output in outputs:
        with onnx_files.folder_beside(output) as folder:
            path = onnx_files.save(onnx_ir.load(file), folder / "fp32.onnx")
            assert onnx_files.external_files(path)
            onnx_files.put_in_place(quantise(path)[0], output)
    beside = [onnx_files.external_files(output) for output in outputs[:2]]
    assert [len(names) for names in beside] == [limit == "below"] * 2
    expected = {"a.onnx", "b.onnx"}.union(*beside)
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert len(expected) == (4 if limit == "below" else 2)
    wav = speech_like(16000, 16000, seed=3)
    exact = graph_alone(file).embed(wav)
    for output in outputs:
        assert cosine(graph_alone(output).embed(wav), exact) > 0.99


class Fixed:
    """An encoder that has its embeddings ready."""

    def __init__(self, rows):
        self.rows = np.array(rows, float)

    def embed(self, wavs, batch_size):
        return self.rows


def test_the_comparison_by_hand():
    exact = Fixed([[1, 0], [0, 1], [1, 0]])
    rounded = Fixed([[2, 0], [0, 3], [1, 1]])
    figures = compare_embeddings(exact, rounded, [0, 0, 0])
    assert figures["worst_cosine"] == pytest.approx(0.5**0.5)
    assert figures["mean_cosine"] == pytest.approx((2 + 0.5**0.5) / 3)
    # pairs (1, 2): 0 → 0; (1, 3): 1 → 0.71; (2, 3): 0 → 0.71
    assert figures["worst_score_change"] == pytest.approx(0.5**0.5)
