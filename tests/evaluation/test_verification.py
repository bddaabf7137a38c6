"""Both sides of the trials: recordings, averaged models, concatenated models."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from tiny_extraction import make_model
from tiny_speech import RATE, spoken
from tiny_training import write_voices

from speechbrain_ext.data.manifest import Manifest
from speechbrain_ext.evaluation.backend_plan import BackendPlan, Calibration
from speechbrain_ext.evaluation.verification import (
    Protocol,
    check_sizes,
    embedded,
    enrolled,
    listed_trials,
)
from speechbrain_ext.inference.extraction import embed_to_file
from speechbrain_ext.inference.speech import SpeechConfig
from speechbrain_ext.scoring.backend import Backend, TrialSide, fit_calibrator
from speechbrain_ext.scoring.embeddings import (
    load_embeddings,
    load_speech_seconds,
    save_embeddings,
    write_arrays,
)
from speechbrain_ext.scoring.enrolment import read_enrol_map
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Three recordings each of two speakers."""
    folder = tmp_path_factory.mktemp("voices")
    write_voices(folder, n_speakers=2, n_utterances=3)
    ids = [f"id{s:02d}/s{take % 2}/{take:05d}" for s in (1, 0) for take in range(3)]
    paths = [f"{folder}/wav/{name}.wav" for name in ids]
    return Manifest(ids, paths, [0.7] * 6, [name[:4] for name in ids])


def embed(manifest, path):
    return embed_to_file(make_model(), manifest, path, progress=False)


def test_recordings_are_embedded_into_a_file(manifest, tmp_path):
    test = embedded(manifest, embed, tmp_path / "e.npz")
    found = load_embeddings(tmp_path / "e.npz")
    assert test.ids.tolist() == found.ids.tolist() == manifest.ids.tolist()
    assert np.array_equal(test.side.vectors, found.vectors)
    assert np.array_equal(test.side.durations, manifest.durations)
    assert test.side.own is None
    assert test.speakers == {name: name[:4] for name in manifest.ids.tolist()}
    assert test.source == f"{tmp_path}/e.npz"


def test_embeddings_that_are_given_are_taken(manifest, tmp_path):
    """In the manifest's order, though the file has more in another one."""
    vectors = embed(manifest, tmp_path / "e.npz")
    given = load_embeddings(tmp_path / "e.npz")
    order = np.array([4, 1, 0, 5, 2, 3])
    shuffled = given._replace(ids=given.ids[order], vectors=given.vectors[order])
    fewer = manifest.select(np.array([5, 1, 2]))

    def never(manifest, path):
        raise AssertionError(path)

    test = embedded(fewer, never, "given.npz", shuffled)
    assert test.ids.tolist() == fewer.ids.tolist()
    assert np.array_equal(test.side.vectors, vectors[[5, 1, 2]])
    assert test.source == "given.npz"
    short = given._replace(ids=given.ids[:4], vectors=given.vectors[:4])
    message = (
        r"given.npz: no embedding of 'id00/s1/00001', expected those of all 6 .*2 a"
    )
    with pytest.raises(InputError, match=message):
        embedded(manifest, never, "given.npz", short)


@pytest.fixture
def models(tmp_path):
    path = tmp_path / "map"
    path.write_text(
        "a id00/s0/00000.wav id00/s1/00001.wav\n"
        "b id01/s0/00002.wav\n"
        "c id01/s0/00000.wav id00/s0/00002.wav\n"
    )
    return read_enrol_map(path)


def test_models_by_averaging(manifest, models, tmp_path):
    test = embedded(manifest, embed, tmp_path / "e.npz")
    sides = Protocol("x", {"average": models}, concatenated=True)
    found = enrolled(sides, test, manifest, None, tmp_path)["average"]
    vector = dict(zip(test.ids.tolist(), test.side.vectors, strict=True))
    names = models.utterances.values()
    expected = [np.mean([vector[n] for n in group], axis=0) for group in names]
    assert found.ids.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(found.side.vectors, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.side.durations, [1.4, 0.7, 1.4])
    assert found.speakers == {"a": "id00", "b": "id01"}


def test_models_by_concatenating(manifest, models, tmp_path):
    test = embedded(manifest, embed, tmp_path / "e.npz")
    both = Protocol("x", {"concatenate": models, "average": models}, concatenated=True)
    assert both.joins
    sides = enrolled(both, test, manifest, embed, tmp_path)
    found, average = sides.values()
    assert found.ids.tolist() == ["a", "b", "c"]
    path = dict(zip(manifest.ids.tolist(), manifest.paths.tolist(), strict=True))
    (tmp_path / "plain").mkdir()
    joined = []
    for model, names in models.utterances.items():
        wavs = [soundfile.read(path[name])[0] for name in names]
        joined.append(str(tmp_path / f"plain/{model}.wav"))
        soundfile.write(joined[-1], np.concatenate(wavs), 16000)
    plain = Manifest(["a", "b", "c"], joined, [1.4, 0.7, 1.4], ["x"] * 3)
    expected = embed(plain, tmp_path / "plain/e.npz")
    assert np.array_equal(found.side.vectors, expected)
    np.testing.assert_allclose(found.side.durations, [1.4, 0.7, 1.4])
    assert found.speakers["a"] == "id00"
    assert found.source == f"{tmp_path}/enrolment_embeddings.npz"
    assert load_embeddings(found.source).ids.tolist() == ["a", "b", "c"]
    # the other protocol gives other models, but for one of a single recording
    same = np.isclose(found.side.vectors, average.side.vectors, rtol=1e-3).all(axis=1)
    assert same.tolist() == [False, True, False]


def test_protocols_of_trial_lists(models):
    protocol = listed_trials("x.txt", str(models.path), ["average", "concatenate"])
    assert list(protocol.enrolments) == ["average", "concatenate"]
    assert protocol.files == {"enrol_map": str(models.path)}
    assert protocol.joins
    assert not listed_trials("x.txt", str(models.path)).joins
    # lists of recordings enrol nobody
    plain = listed_trials("x.txt", enrolment="concatenate")
    assert plain.enrolments == {None: None}
    assert not plain.joins
    assert enrolled(plain, "test", None, None, None) == {None: "test"}


@pytest.mark.parametrize(
    "enrolment",
    [[], "", None, "averag", ["average", "average"], ["average", 3], [["average"]], 3],
)
def test_other_protocols_are_refused(enrolment):
    message = r"enrolment: .*, expected some of average, concatenate, each once"
    with pytest.raises(InputError, match=message):
        listed_trials("x.txt", enrolment=enrolment)


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """A voice with 0, 1, 2 s of silence behind: (manifest, its seconds alone)."""
    folder, wav = tmp_path_factory.mktemp("padded"), spoken()
    paths = [folder / f"{seconds}.wav" for seconds in range(3)]
    for seconds, path in enumerate(paths):
        soundfile.write(path, np.r_[wav, np.zeros(seconds * RATE)], RATE)
    alone = len(wav) / RATE
    durations = alone + np.arange(3)
    return Manifest(["a", "b", "c"], list(map(str, paths)), durations, ["s"] * 3), alone


@pytest.fixture(scope="module")
def speech_of_padded(padded, tmp_path_factory):
    """The file of embeddings that speech detection left."""
    path = tmp_path_factory.mktemp("speech") / "e.npz"
    options = {"speech": SpeechConfig(), "progress": False}
    for _ in range(2):  # the second finds it finished
        embed_to_file(make_model(), padded[0], path, **options)
    return path


def test_seconds_of_speech_are_the_durations(padded, speech_of_padded):
    manifest, alone = padded
    given = load_embeddings(speech_of_padded)
    test = embedded(manifest, None, speech_of_padded, given)
    assert np.abs(test.side.durations - alone).max() < 0.5  # a margin behind it
    fewer = embedded(manifest.select([2, 0]), None, speech_of_padded, given)
    assert fewer.side.durations.tolist() == test.side.durations[[2, 0]].tolist()


def test_seconds_of_speech_outlive_an_interruption(padded, speech_of_padded, tmp_path):
    def stopping(after):
        model, calls = make_model(), []

        def stop(*inputs):
            calls.append(1)
            if len(calls) > after:
                raise InputError("stopped")

        model.register_forward_pre_hook(stop)
        return model

    options = {"speech": SpeechConfig(), "progress": False, "max_batch_seconds": 1.0}
    path = tmp_path / "e.npz"
    with pytest.raises(InputError, match="stopped"):
        embed_to_file(stopping(2), padded[0], path, **options)
    embed_to_file(stopping(1), padded[0], path, **options)
    expected = load_speech_seconds(speech_of_padded)
    np.testing.assert_allclose(load_speech_seconds(path), expected, atol=0.04)


def test_the_calibration_has_seconds_of_speech(padded, speech_of_padded, tmp_path):
    """Not those of the files, which the calibrator would learn instead."""
    rng = np.random.default_rng(0)
    ids = [f"{n:02d}" for n in range(24)]
    manifest = Manifest(
        ids, ids, np.full(24, 60.0), [n[:1] + str(int(n) % 4) for n in ids]
    )
    seconds = rng.uniform(2, 20, 24)
    vectors = rng.standard_normal((24, 8)).astype(np.float32)

    def make(manifest, path):
        write_arrays(path, ids=np.array(ids), vectors=vectors, seconds=seconds)
        return vectors

    settings = Calibration(l2=1.0, n_trials=40)
    trials = settings.draw(replace(manifest, durations=seconds))
    backend = BackendPlan(Backend(), None, manifest, trials, settings)
    found = backend.build_backend(make, tmp_path).calibrator
    side = TrialSide(vectors, seconds)
    options = Backend(), side, manifest.speakers, trials, "cllr", 1.0
    expected = fit_calibrator(*options).calibrator
    assert vars(found).keys() == vars(expected).keys()
    found.save(tmp_path / "found.json")
    expected.save(tmp_path / "expected.json")
    as_text = [(tmp_path / f"{n}.json").read_text() for n in ("found", "expected")]
    assert as_text[0] == as_text[1]


@pytest.mark.parametrize("detects", [True, False])
def test_embeddings_of_another_kind_are_refused(detects, speech_of_padded, tmp_path):
    """Speech alone on one side of the back-end, whole recordings on the other."""
    path = speech_of_padded
    given = load_embeddings(path)
    if detects:
        path = tmp_path / "whole.npz"
        save_embeddings(path, *given)
    size = given.vectors.shape[1]
    embed = SimpleNamespace(size=size, folder="model", detects=detects)
    message = f"expected embeddings made with speech_detection={detects}"
    with pytest.raises(InputError, match=message):
        check_sizes(BackendPlan(Backend()), embed, given, path)
    embed.detects = not detects
    check_sizes(BackendPlan(Backend()), embed, given, path)


def test_damaged_seconds_are_one_line(tmp_path):
    path = tmp_path / "e.safetensors"
    ids, vectors = np.array(["a", "b"]), np.ones((2, 4), np.float32)
    write_arrays(path, ids=ids, vectors=vectors)
    assert load_speech_seconds(path) is None
    for seconds in ([1.0], [1.0, np.nan], [1.0, 0.0], [1, 2]):
        write_arrays(path, ids=ids, vectors=vectors, seconds=np.array(seconds))
        with pytest.raises(InputError, match="expected 2 positive numbers"):
            load_speech_seconds(path)
