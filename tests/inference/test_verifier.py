"""SpeakerVerifier: what SpeechBrain's users expect, and scores beyond the cosine."""

import json
import logging

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.inference.speaker import SpeakerRecognition
from tiny_verifier import add_backend, load, make_folder, plain, write_voice

from speechbrain_ext.inference import Comparison, SpeakerVerifier, load_thresholds
from speechbrain_ext.inference.decisions import UNMEASURED_COSINE
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.scoring.backend import TrialSide
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("bare") / "final")


@pytest.fixture(scope="module")
def verifier(folder):
    return load(folder)


@pytest.fixture(scope="module")
def wavs(tmp_path_factory):
    """Three recordings of one voice and one of another."""
    root = tmp_path_factory.mktemp("wavs")
    return [
        write_voice(root / f"{number}.wav", number // 3, 0.6 + 0.3 * number, number)
        for number in range(4)
    ]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """With cohort, calibrator and thresholds → (folder, Backend)."""
    root = tmp_path_factory.mktemp("calibrated")
    return make_folder(root / "final"), add_backend(root / "final", root / "wav")


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


# ---- as SpeechBrain does it ----------------------------------------------------------


def test_it_is_a_speaker_recognition(verifier):
    assert isinstance(verifier, SpeakerRecognition)
    assert not verifier.mods.speaker_encoder.training
    assert not any(p.requires_grad for p in verifier.parameters())
    assert verifier.hparams.sample_rate == 16000
    assert verifier.embedding_size == 8


def test_a_padded_batch_equals_its_single_rows(verifier):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, generator=generator) / 10 for n in (16000, 7001, 12345)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    padded[1, 7001:] = 0.7  # what is in the padding does not matter
    found = verifier.encode_batch(padded, torch.tensor([len(r) / 16000 for r in rows]))
    assert found.shape == (3, 1, 8)
    for row, wav in zip(found, rows):
        assert (row[0] - verifier.encode_batch(wav)[0, 0]).abs().max() < 1e-4
        assert torch.equal(verifier(wav[None]), verifier.encode_batch(wav))


def test_embeddings_are_normalised_where_asked(verifier):
    wavs = torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
    raw, unit = (verifier.encode_batch(wavs, normalize=n) for n in (False, True))
    assert unit.norm(dim=-1) == pytest.approx(np.ones((2, 1)), abs=1e-6)
    torch.testing.assert_close(unit * raw.norm(dim=-1, keepdim=True), raw)
    assert (raw.norm(dim=-1) - 1).abs().min() > 0.01


def test_a_batch_of_pairs(verifier):
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 3, 9000, generator=generator)
    lens = torch.tensor([1.0, 0.8, 0.9])
    score, decision = verifier.verify_batch(a, b, lens, None, threshold=0.1)
    assert score.shape == decision.shape == (3, 1)
    assert decision.dtype == torch.bool
    for row in range(3):
        valid = a[row, : round(float(lens[row]) * 9000)]
        pair = [verifier.encode_batch(x)[0, 0].numpy() for x in (valid, b[row])]
        assert float(score[row]) == pytest.approx(cosine(*pair), abs=1e-4)
    assert torch.equal(decision, score >= 0.1)


def test_files_are_verified_as_by_hand(verifier, folder, wavs):
    model = load_pretrained(folder)
    score, decision = verifier.verify_files(wavs[0], wavs[3], threshold=-0.9)
    assert score.shape == decision.shape == (1,)
    assert score.dtype == torch.float32
    assert decision.dtype == torch.bool
    expected = cosine(plain(model, wavs[0]), plain(model, wavs[3]))
    assert float(score) == pytest.approx(expected, abs=1e-5)
    assert bool(decision) is True
    assert bool(verifier.verify_files(wavs[0], wavs[3], threshold=0.9999)[1]) is False


def test_files_and_loaded_audio_score_alike(verifier, wavs):
    loaded = [verifier.load_audio(path) for path in (wavs[0], wavs[3])]
    by_batch = verifier.verify_batch(*[wav[None] for wav in loaded], threshold=0)[0]
    by_file = verifier.verify_files(wavs[0], wavs[3], threshold=0)[0]
    torch.testing.assert_close(by_batch[0], by_file, atol=1e-5, rtol=0)


def test_a_score_at_the_threshold_is_accepted(verifier, wavs):
    found = verifier.compare(wavs[0], wavs[3], threshold=0)
    assert verifier.compare(wavs[0], wavs[3], threshold=found.cosine).decision
    above = np.nextafter(found.cosine, 2)
    assert not verifier.compare(wavs[0], wavs[3], threshold=above).decision


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (torch.zeros(8000), "row 1: silent, expected speech"),
        (torch.full((8000,), 0.3), "row 1: silent, expected speech"),
        (torch.full((8000,), torch.nan), "row 1: NaN or infinite samples"),
        (
            torch.cat([torch.randn(7999), torch.tensor([torch.inf])]),
            "row 1: NaN or inf",
        ),
    ],
)
def test_a_bad_row_of_a_batch_is_named(verifier, row, expected):
    with pytest.raises(InputError, match=expected):
        verifier.encode_batch(torch.stack([torch.randn(8000), row]))


def test_a_batch_of_another_shape_is_refused(verifier):
    with pytest.raises(InputError, match=r"wavs: shape \(1, 2, 8000\)"):
        verifier.encode_batch(torch.randn(1, 2, 8000))
    with pytest.raises(InputError, match=r"wav_lens: shape \(3,\), expected \[2\]"):
        verifier.encode_batch(torch.randn(2, 8000), torch.ones(3))
    with pytest.raises(InputError, match="a row of 100 samples"):
        verifier.encode_batch(torch.randn(2, 8000), torch.tensor([1.0, 100 / 8000]))


# ---- without measured thresholds -----------------------------------------------------


def test_a_bare_model_warns_once_of_its_threshold(folder, wavs, caplog):
    verifier = load(folder)
    with caplog.at_level(logging.WARNING):
        found = verifier.compare(wavs[0], wavs[1])
        score, decision = verifier.verify_files(wavs[0], wavs[1])
        verifier.verify_batch(torch.randn(1, 8000), torch.randn(1, 8000))
    (record,) = caplog.records
    message = record.getMessage()
    assert f"{folder}: no thresholds.json" in message
    assert "held against 0.5, which nobody measured" in message
    assert "SpeechBrain's 0.25" in message
    assert found.threshold == UNMEASURED_COSINE
    assert found.decision == bool(decision) == (float(score) >= UNMEASURED_COSINE)
    assert found.score == "cosine"
    unknown = found.as_norm, found.llr, found.probability
    assert unknown + (found.false_accept_rate, found.miss_rate) == (None,) * 5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"score": "llr"},
            r"score 'llr' needs calibration\.json in the model's folder",
        ),
        ({"score": "as_norm"}, r"score 'as_norm' needs cohort\.npz .* one of cosine"),
        ({"score": "plda"}, "score 'plda', expected one of cosine, as_norm, llr"),
        ({"false_accept_rate": 0.01}, r"needs it in thresholds\.json, which has none"),
        ({"threshold": 0.1, "false_accept_rate": 0.01}, "expected one of the two"),
        ({"threshold": "high"}, "threshold is 'high', expected a number"),
        ({"threshold": float("nan")}, "threshold is nan, expected a finite"),
    ],
)
def test_what_a_bare_model_cannot_do_is_one_line(verifier, wavs, options, expected):
    for function in (verifier.compare, verifier.verify_files):
        with pytest.raises(InputError, match=expected):
            function(wavs[0], wavs[1], **options)


@pytest.mark.parametrize("prior", [0, 1, -1, "half", True, None])
def test_a_prior_is_a_probability(verifier, wavs, prior):
    with pytest.raises(InputError, match="prior is"):
        verifier.compare(wavs[0], wavs[1], threshold=0, prior=prior)


# ---- with cohort, calibration and thresholds -----------------------------------------


def by_backend(backend, model, enrol, test):
    """{kind: score} from recordings embedded one by one and the back-end itself."""
    sides = []
    for paths in (enrol, test):
        vectors = np.array([plain(model, path) for path in paths])
        seconds = sum(soundfile.info(path).duration for path in paths)
        sides.append(TrialSide(vectors.mean(0, keepdims=True), np.array([seconds])))
    found = backend.scores(*sides, np.array([[0, 0]]))
    return {kind: float(scores[0]) for kind, scores in found.items()}


def test_scores_are_those_of_the_back_end(calibrated, wavs):
    folder, backend = calibrated
    expected = by_backend(backend, load_pretrained(folder), wavs[:1], wavs[3:])
    verifier = load(folder)
    assert verifier.kinds == list(expected) == ["cosine", "as_norm", "llr"]
    found = verifier.compare(wavs[0], wavs[3])
    assert isinstance(found, Comparison)
    for kind, value in expected.items():
        assert getattr(found, kind) == pytest.approx(value, abs=2e-3, rel=1e-3)
    assert found.score == "llr"
    assert (found.enrol_seconds, found.test_seconds) == pytest.approx((0.6, 1.5))


def test_each_score_has_its_own_threshold(calibrated, wavs):
    folder, _ = calibrated
    verifier, measured = load(folder), load_thresholds(folder / "thresholds.json")
    for kind in ("cosine", "as_norm", "llr"):
        found = verifier.compare(wavs[0], wavs[3], score=kind)
        assert found.score == kind
        assert found.threshold == measured[kind].eer_threshold
        assert found.decision == (getattr(found, kind) >= found.threshold)
        rates = measured[kind].rates_at(found.threshold)
        assert (found.false_accept_rate, found.miss_rate) == rates[1:]
        score, decision = verifier.verify_files(wavs[0], wavs[3], score=kind)
        assert float(score) == pytest.approx(getattr(found, kind))
        assert bool(decision) == found.decision
        strict = verifier.compare(wavs[0], wavs[3], kind, false_accept_rate=0.1)
        assert strict.threshold == measured[kind].at_false_accept_rate(0.1).threshold
        assert strict.false_accept_rate <= 0.1


def test_the_cosine_is_what_files_and_batches_are_verified_by(calibrated, wavs, caplog):
    folder, _ = calibrated
    verifier, measured = load(folder), load_thresholds(folder / "thresholds.json")
    with caplog.at_level(logging.WARNING):
        score, _ = verifier.verify_files(wavs[0], wavs[3])
        batch = [verifier.load_audio(path)[None] for path in (wavs[0], wavs[3])]
        by_batch, decision = verifier.verify_batch(*batch)
    assert not caplog.records
    assert float(score) == pytest.approx(float(by_batch), abs=1e-5)
    assert bool(decision) == (float(by_batch) >= measured["cosine"].eer_threshold)


def test_a_probability_follows_from_ratio_and_prior(calibrated, wavs):
    verifier = load(calibrated[0])
    for prior in (0.5, 0.01, 0.9):
        found = verifier.compare(wavs[0], wavs[3], prior=prior)
        odds = np.exp(found.llr) * prior / (1 - prior)
        assert found.probability == pytest.approx(odds / (1 + odds))
        assert found.prior == prior


def test_a_threshold_of_no_particular_score_is_refused(calibrated, wavs):
    verifier = load(calibrated[0])
    with pytest.raises(
        InputError, match=r"of no particular score, expected a score .* cosine, as_norm"
    ):
        verifier.compare(wavs[0], wavs[3], threshold=0.4)
    assert verifier.compare(wavs[0], wavs[3], "cosine", threshold=-1).decision


def test_without_thresholds_a_ratio_is_held_against_the_prior(
    calibrated, wavs, tmp_path
):
    folder = make_folder(tmp_path / "final")
    for name in ("cohort.npz", "calibration.json"):
        (folder / name).write_bytes((calibrated[0] / name).read_bytes())
    verifier = load(folder)
    for prior in (0.5, 0.01):
        found = verifier.compare(wavs[0], wavs[3], prior=prior)
        assert found.score == "llr"
        assert found.threshold == pytest.approx(np.log((1 - prior) / prior))
        assert found.decision == (found.probability >= 0.5)
    with pytest.raises(
        InputError, match=r"no threshold of 'as_norm' in thresholds\.json"
    ):
        verifier.compare(wavs[0], wavs[3], "as_norm")
    assert verifier.compare(wavs[0], wavs[3], "as_norm", threshold=-99).decision


def test_a_cohort_alone_gives_as_norm_by_all_of_a_small_one(calibrated, wavs, tmp_path):
    folder = make_folder(tmp_path / "final")
    content = (calibrated[0] / "cohort.npz").read_bytes()
    (folder / "cohort.npz").write_bytes(content)
    verifier = load(folder)
    assert verifier.kinds == ["cosine", "as_norm"]
    assert verifier.backend.top_n == len(verifier.backend.cohort.speakers) == 8
    assert load(folder, overrides={"as_norm_top_n": 3}).backend.top_n == 3


def test_s_norm_goes_by_the_name_of_as_norm(calibrated, wavs, tmp_path):
    folder = make_folder(tmp_path / "final", inference={"as_norm_top_n": None})
    content = (calibrated[0] / "cohort.npz").read_bytes()
    (folder / "cohort.npz").write_bytes(content)
    whole = load(folder).compare(wavs[0], wavs[3], "as_norm", threshold=0)
    by_top_8 = load(folder, overrides={"as_norm_top_n": 8})
    same = by_top_8.compare(wavs[0], wavs[3], "as_norm", threshold=0)
    assert whole.as_norm == pytest.approx(same.as_norm, rel=1e-3)


@pytest.mark.parametrize("with_durations", [True, False])
def test_a_calibrated_cosine_without_cohort(tmp_path, wavs, with_durations):
    folder = make_folder(tmp_path / "final")
    backend = add_backend(folder, tmp_path / "wav", False, with_durations)
    names = json.loads((folder / "calibration.json").read_text())["names"]
    assert names[0] == "cosine"
    assert ("duration_min" in names) == with_durations
    verifier = load(folder)
    assert verifier.kinds == ["cosine", "llr"]
    enrol, test = (
        TrialSide(plain(load_pretrained(folder), path)[None]) for path in wavs[:2]
    )
    if with_durations:
        enrol, test = (
            side._replace(durations=np.array([soundfile.info(path).duration]))
            for side, path in zip((enrol, test), wavs)
        )
    expected = backend.scores(enrol, test, np.array([[0, 0]]))["llr"][0]
    found = verifier.compare(wavs[0], wavs[1])
    assert found.llr == pytest.approx(expected, abs=2e-3, rel=1e-3)


# ---- enrolment -----------------------------------------------------------------------


def test_several_recordings_are_averaged(calibrated, wavs):
    folder, backend = calibrated
    verifier, model = load(folder), load_pretrained(folder)
    expected = by_backend(backend, model, wavs[:3], wavs[3:])
    found = verifier.compare(wavs[:3], wavs[3])
    for kind, value in expected.items():
        assert getattr(found, kind) == pytest.approx(value, abs=2e-3, rel=1e-3)
    assert found.enrol_seconds == pytest.approx(0.6 + 0.9 + 1.2)
    turned = verifier.compare(wavs[3], wavs[:3])
    assert turned.llr == pytest.approx(found.llr, rel=1e-4)


def test_a_voice_is_enrolled_once_and_compared_often(verifier, wavs):
    voice = verifier.enrol(wavs[:2])
    assert voice.embedding.shape == (8,)
    for test in (wavs[2], wavs[3:]):
        assert verifier.compare(voice, test, threshold=0) == verifier.compare(
            wavs[:2], test, threshold=0
        )
    assert verifier.enrol(voice) is voice


def test_nothing_to_enrol_from_is_one_line(verifier, wavs):
    with pytest.raises(InputError, match="no recordings to enrol from"):
        verifier.compare([], wavs[0], threshold=0)
    with pytest.raises(InputError, match=r"^enrol: 3, expected a path, an array"):
        verifier.compare(3, wavs[0], threshold=0)


def test_names_are_found_in_the_package():
    import speechbrain_ext.inference as package

    assert package.SpeakerVerifier is SpeakerVerifier
    assert "SpeakerVerifier" in dir(package)
    with pytest.raises(AttributeError, match="no attribute 'Verifier'"):
        package.Verifier  # noqa: B018
