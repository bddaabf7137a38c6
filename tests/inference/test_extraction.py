"""Embeddings of many recordings: each once, in order, as if alone."""

import numpy as np
import pytest
import torch
from tiny_extraction import (
    SECONDS,
    make_model,
    one_by_one,
    some_recordings,
    write_recordings,
)
from tiny_training import in_processes, saved, voice

from speechbrain_ext.features.w2v_bert import MIN_SAMPLES
from speechbrain_ext.inference.extraction import extract_embeddings
from speechbrain_ext.lobes.heads import AdapterMFA, WeightedSumECAPA
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("batch_seconds", "num_workers"), [(0.1, 0), (3.0, 2), (100.0, 0), (2.0, 1)]
)
@pytest.mark.parametrize(
    ("head", "options"),
    [
        (AdapterMFA, {"adapter_size": 8}),
        (WeightedSumECAPA, {"channels": [16, 16, 16, 16, 48]}),
    ],
)
def test_batches_give_what_single_recordings_give(
    tmp_path, head, options, batch_seconds, num_workers
):
    model, manifest = make_model(head, **options), some_recordings(tmp_path)
    found = extract_embeddings(
        *(model, manifest, "cpu", batch_seconds),
        num_workers=num_workers,
        progress=False,
    )
    expected = one_by_one(model, manifest)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_each_recording_is_embedded_once(tmp_path):
    model, manifest = make_model(), some_recordings(tmp_path)
    seen = []
    model.register_forward_hook(lambda m, i, o: seen.append(len(o)))
    extract_embeddings(model, manifest, max_batch_seconds=3.0, progress=False)
    assert sum(seen) == len(SECONDS)
    assert len(seen) < len(SECONDS)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_comes_back_also_after_an_error(tmp_path, training):
    model, manifest = make_model().train(training), some_recordings(tmp_path)
    extract_embeddings(model, manifest, progress=False)
    assert model.training is training
    (tmp_path / "r0.wav").write_bytes(b"")
    with pytest.raises(InputError):
        extract_embeddings(model, manifest, progress=False)
    assert model.training is training


def test_random_numbers_and_gradients_are_left_alone(tmp_path):
    model, manifest = make_model().train(), some_recordings(tmp_path)
    before = torch.get_rng_state()
    found = extract_embeddings(model, manifest, progress=False)
    again = extract_embeddings(model, manifest, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(found, again)
    assert all(p.grad is None for p in model.parameters())


def test_long_recordings_are_cut_to_their_middle(tmp_path):
    model, manifest = make_model(), some_recordings(tmp_path)
    found = extract_embeddings(model, manifest, max_seconds=0.8, progress=False)
    expected = one_by_one(model, manifest, cut=12800)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


# ---- bad recordings ------------------------------------------------------------------


def spoilt(wav, kind):
    if kind == "silent":
        return np.zeros_like(wav)
    if kind == "constant":
        return np.full_like(wav, 0.25)
    if kind == "short":
        return wav[: MIN_SAMPLES - 1]
    return np.where(np.arange(len(wav)) == 700, np.nan, wav)


@pytest.mark.parametrize(
    ("kind", "num_workers", "expected"),
    [
        ("silent", 0, r"bad\.wav: silent"),
        ("constant", 2, r"bad\.wav: silent"),
        ("short", 0, rf"bad\.wav: {MIN_SAMPLES - 1} samples, .* at least 0\.035 s"),
        ("nan", 0, r"bad\.wav: NaN"),
        ("nan", 2, r"bad\.wav: NaN"),
    ],
)
def test_a_bad_recording_among_good_ones_is_named(
    tmp_path, kind, expected, num_workers
):
    generator = np.random.default_rng(0)
    wavs = {f"r{i}": voice(i, s, generator) for i, s in enumerate(SECONDS)}
    wavs["bad"] = spoilt(voice(3, 0.5, generator), kind)
    manifest = write_recordings(tmp_path, wavs)
    model = make_model()
    with pytest.raises(InputError, match=expected) as caught:
        extract_embeddings(
            *(model, manifest, "cpu", 4.0), num_workers=num_workers, progress=False
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "no recordings to embed"),
        ([0], {"num_workers": -1}, "num_workers: -1, expected 0 or more"),
        ([0], {"max_seconds": 0}, "max_seconds: 0, expected a positive number"),
        ([0], {"max_seconds": "1"}, "max_seconds: 1, expected a positive number"),
        ([0], {"max_batch_seconds": 0}, "batches of 0 s"),
    ],
)
def test_nothing_to_embed_and_settings_out_of_range(tmp_path, rows, options, message):
    manifest = some_recordings(tmp_path).select(rows)
    with pytest.raises(InputError, match=message):
        extract_embeddings(make_model(), manifest, progress=False, **options)


def test_the_shortest_allowed_recording_has_an_embedding(tmp_path):
    wav = voice(1, 1.0, np.random.default_rng(0))[:MIN_SAMPLES]
    manifest = write_recordings(tmp_path, {"short": wav})
    assert np.isfinite(extract_embeddings(make_model(), manifest, progress=False)).all()


def test_an_embedding_that_is_not_finite_names_its_recording(tmp_path):
    model, manifest = make_model(), some_recordings(tmp_path)
    with torch.no_grad():
        model.head.bottleneck.bias[3] = torch.inf
    with pytest.raises(InputError, match=r"r\d\.wav: its embedding is not finite"):
        extract_embeddings(model, manifest, progress=False)


# ---- several processes ---------------------------------------------------------------


def _extract(folder, target):
    rank = torch.distributed.get_rank()
    model, manifest = make_model(), some_recordings(folder / f"{rank}")
    seen = []
    model.register_forward_hook(lambda m, i, o: seen.append(len(o)))
    results = []
    for recordings, batch_seconds in ((manifest, 1.0), (manifest.select([3]), 9.0)):
        results.append(
            extract_embeddings(
                *(model, recordings, "cpu", batch_seconds), progress=False
            )
        )
    torch.save({"seen": seen, "results": results}, f"{target}{rank}")


def test_ranks_share_the_work_and_all_get_all(tmp_path):
    for rank in range(2):
        (tmp_path / f"{rank}").mkdir()
    assert in_processes(_extract, 2, tmp_path, tmp_path / "out") == [0, 0]
    ranks = [saved(f"{tmp_path / 'out'}{rank}") for rank in range(2)]
    assert sum(sum(rank.seen) for rank in ranks) == len(SECONDS) + 1
    assert all(len(rank.seen) >= 3 for rank in ranks)
    for number in range(2):
        np.testing.assert_array_equal(
            ranks[0].results[number], ranks[1].results[number]
        )
    manifest = some_recordings(tmp_path)
    expected = one_by_one(make_model(), manifest)
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(ranks[0].results[0], expected, atol=tolerance)
    np.testing.assert_allclose(ranks[0].results[1], expected[[3]], atol=tolerance)
