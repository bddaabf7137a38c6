"""Identification: brute force over all voices, closed forms, thresholds, ties."""

import logging
import math

import numpy as np
import pytest
from tiny_verifier import load, make_folder, make_whole, write_voice

from speechbrain_ext.inference import Voices
from speechbrain_ext.inference.decisions import Decider
from speechbrain_ext.inference.thresholds import Thresholds
from speechbrain_ext.inference.verifier import SpeakerModel
from speechbrain_ext.inference.voices.identification import (
    DEFAULT_RATE,
    identification_report,
    identify_each,
    operating_point,
    posteriors,
)
from speechbrain_ext.utils.errors import InputError, NoSpeechError

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("cosine", "as_norm", "llr")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Cosine alone."""
    return load(make_folder(tmp_path_factory.mktemp("bare") / "final"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """With cohort, calibrator and thresholds."""
    return load(make_whole(tmp_path_factory.mktemp("calibrated")))


@pytest.fixture(scope="module")
def wavs(tmp_path_factory):
    """Two takes each of six voices: [6][2]."""
    root = tmp_path_factory.mktemp("wavs")
    return [
        [
            write_voice(root / f"{n}_{take}.wav", 20 + n, 0.7 + 0.1 * n, 9 * n + take)
            for take in range(2)
        ]
        for n in range(6)
    ]


def enrolled(verifier, wavs):
    voices = Voices(verifier)
    for number, (first, _) in enumerate(wavs):
        voices.add(f"voice {number}", first)
    return voices


def measured(n_nontarget, n_target=50):
    """Non-targets at 1 … n, targets above and among them."""
    scores = [*range(1, n_nontarget + 1), *np.linspace(1, 2 * n_nontarget, n_target)]
    labels = [0] * n_nontarget + [1] * n_target
    return Thresholds.from_scores(np.array(scores, float), labels)


# -- scores ----------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["bare", "whole"])
def test_it_is_compare_with_every_voice(which, wavs, request):
    verifier = request.getfixturevalue(which)
    voices = enrolled(verifier, wavs)
    test = wavs[2][1]
    found = verifier.identify(test, voices, threshold=-100.0, score="cosine", top=9)
    assert len(found.candidates) == found.n_voices == 6
    cosines = [candidate.cosine for candidate in found.candidates]
    assert cosines == sorted(cosines, reverse=True)
    for candidate in found.candidates:
        expected = verifier.compare(
            voices[candidate.voice], test, score="cosine", threshold=-100.0
        )
        for kind in KINDS:
            seen, wanted = getattr(candidate, kind), getattr(expected, kind)
            assert (seen is None) == (wanted is None)
            assert seen is None or seen == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert found.voice == found.candidates[0].voice
    assert found.seconds == expected.test_seconds


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_that_is_asked_for_ranks_and_decides(whole, wavs, kind):
    voices = enrolled(whole, wavs)
    every = whole.identify(wavs[0][1], voices, kind, threshold=-1e9, top=6)
    scores = [getattr(candidate, kind) for candidate in every.candidates]
    assert every.score == kind
    assert scores == sorted(scores, reverse=True)
    best = every.candidates[0]
    at = whole.identify(wavs[0][1], voices, kind, threshold=scores[0], top=2)
    assert (at.voice, at.candidates) == (best.voice, every.candidates[:2])
    above = math.nextafter(scores[0], math.inf)
    unknown = whole.identify(wavs[0][1], voices, kind, threshold=above)
    assert unknown.voice is None
    assert unknown.candidates[0] == best


def test_five_thousand_voices_by_hand(bare):
    """One product; the cosines are those of numpy."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((5000, bare.embedding_size)).astype(np.float32)
    voices = Voices(bare)
    for number, vector in enumerate(vectors):
        voices.add_embeddings(str(number), vector[None], [2.0])
    for row in (0, 1234, 4999):
        test = vectors[row] + 0.1 * random.standard_normal(vectors.shape[1])
        speaker = SpeakerModel(test.astype(np.float32), 3.0)
        found = bare.identify(speaker, voices, threshold=0.5, top=5000)
        units = vectors.astype(float)
        units /= np.linalg.norm(units, axis=1, keepdims=True)
        cosines = units @ (test / np.linalg.norm(test))
        assert found.voice == str(row)
        assert found.n_voices == 5000
        by_name = {c.voice: c.cosine for c in found.candidates}
        for other in random.integers(0, 5000, 50):
            assert by_name[str(other)] == pytest.approx(cosines[other], abs=1e-6)


def test_the_voices_are_prepared_once_until_they_change(whole, wavs):
    voices = enrolled(whole, wavs)
    first = voices.prepared(whole.backend, True)
    assert voices.prepared(whole.backend, True) is first
    voices.remove("voice 5")
    assert len(voices.prepared(whole.backend, True).units) == 5
    found = whole.identify(wavs[0][1], voices, "cosine", threshold=-1.0, top=9)
    assert len(found.candidates) == 5


def test_equal_voices_are_a_tie_that_is_told(bare, wavs, caplog):
    voices = Voices(bare)
    for name in ("first", "other", "second"):
        voices.add(name, wavs[1 if name == "other" else 0][0])
    with caplog.at_level(logging.WARNING, "speechbrain_ext"):
        found = bare.identify(wavs[0][0], voices, threshold=0.9999)
    assert found.voice == "first"
    assert [c.voice for c in found.candidates[:2]] == ["first", "second"]
    assert found.candidates[0].cosine == found.candidates[1].cosine
    assert "'first' and 'second' have the same score" in caplog.text


def test_recordings_of_one_speaker_are_averaged(bare, wavs):
    voices = enrolled(bare, wavs)
    found = bare.identify(wavs[3], voices, threshold=-1.0, top=6)
    expected = bare.compare(voices["voice 3"], wavs[3], threshold=-1.0)
    seen = {c.voice: c.cosine for c in found.candidates}["voice 3"]
    assert seen == pytest.approx(expected.cosine, abs=1e-6)
    assert found.seconds == expected.test_seconds


# -- probabilities ---------------------------------------------------------------------


def test_probabilities_by_hand():
    found = posteriors([math.log(4), math.log(2)], 0.5)
    # 1/4 · 4, 1/4 · 2, 1/2: of 2
    np.testing.assert_allclose(found, [0.5, 0.25, 0.25])
    np.testing.assert_allclose(posteriors([0.0] * 4, 0.2), [0.05] * 4 + [0.8])
    np.testing.assert_allclose(posteriors([1e4, -1e4], 0.5), [1, 0, 0])
    np.testing.assert_allclose(posteriors([-1e4], 0.5), [0, 1])


def test_one_voice_has_the_probability_of_a_comparison(whole, wavs):
    voices = Voices(whole)
    voices.add("A", wavs[0][0])
    for prior in (0.5, 0.1):
        found = whole.identify(wavs[0][1], voices, prior=prior)
        expected = whole.compare(voices["A"], wavs[0][1], prior=prior)
        best = found.candidates[0]
        assert best.probability == pytest.approx(expected.probability, rel=1e-3)
        assert found.unknown_probability == pytest.approx(1 - best.probability)


def test_probabilities_sum_to_one(whole, wavs):
    found = whole.identify(wavs[0][1], enrolled(whole, wavs), top=6)
    total = sum(candidate.probability for candidate in found.candidates)
    assert total + found.unknown_probability == pytest.approx(1)


# -- thresholds ------------------------------------------------------------------------


def test_a_rate_is_one_of_all_voices_together():
    curve = measured(10_000)
    decider = Decider(["cosine"], {"cosine": curve}, "x")
    point = operating_point(decider, "cosine", 20, None, 0.1, 0.5)
    alone = curve.at_false_accept_rate(0.1 / 20)
    assert point.threshold == alone.threshold
    assert point.false_accept_rate == pytest.approx(20 * alone.false_accept_rate)
    assert 0 < point.false_accept_rate <= 0.1 * (1 + 1e-9)
    assert point.miss_rate == alone.miss_rate
    one = operating_point(decider, "cosine", 1, None, 0.1, 0.5)
    assert one == curve.at_false_accept_rate(0.1)


def test_as_many_unknown_speakers_as_promised_are_let_in():
    """Independent voices: the share of unknown speakers taken for any of 20."""
    random = np.random.default_rng(0)
    scores = random.standard_normal(200_000)
    curve = Thresholds.from_scores(
        np.append(scores, [5, 6]), np.append(np.zeros(200_000, int), [1, 1])
    )
    decider = Decider(["cosine"], {"cosine": curve}, "x")
    point = operating_point(decider, "cosine", 20, None, 0.1, 0.5)
    best = random.standard_normal((50_000, 20)).max(axis=1)
    share = np.mean(best >= point.threshold)
    # 1 - (1 - 0.005)^20 = 0.0954; 50,000 draws give ± 0.004 at three deviations
    assert share == pytest.approx(1 - (1 - 0.1 / 20) ** 20, abs=0.008)
    assert share <= 0.1 + 0.008


def test_a_rate_that_so_few_trials_do_not_tell_is_refused(caplog):
    decider = Decider(["cosine"], {"cosine": measured(1000)}, "x")
    with pytest.raises(
        InputError, match=r"0\.01 false accepts among 50 voices: .* 1000"
    ):
        operating_point(decider, "cosine", 50, None, 0.01, 0.5)
    for rate in (0, 1, 7, "x", math.nan):
        with pytest.raises(InputError, match="false_accept_rate"):
            operating_point(decider, "cosine", 50, None, rate, 0.5)
    with caplog.at_level(logging.WARNING, "speechbrain_ext"):
        operating_point(decider, "cosine", 2, None, 0.01, 0.5)
    assert "5 false accepts are expected" in caplog.text


def test_without_a_rate_it_is_a_hundredth_or_the_strictest(caplog):
    curve = measured(10_000)
    decider = Decider(["cosine"], {"cosine": curve}, "x")
    point = operating_point(decider, "cosine", 2, None, None, 0.5)
    expected = curve.at_false_accept_rate(DEFAULT_RATE / 2)
    assert point.threshold == expected.threshold
    with caplog.at_level(logging.WARNING, "speechbrain_ext"):
        point = operating_point(decider, "cosine", 1000, None, None, 0.5)
    assert point.threshold == curve.at_false_accept_rate(1e-4).threshold
    assert point.false_accept_rate == pytest.approx(1000 * 1e-4)
    assert (
        "10000 non-target trials of the model's thresholds are too few" in caplog.text
    )


def test_likelihood_ratios_fall_back_on_bayes():
    """Thirty trials tell too little: Bayes' threshold is above the highest of them."""
    random = np.random.default_rng(0)
    scores = np.append(random.uniform(-3, 1, 30), [2.0, 9.0])
    curve = Thresholds.from_scores(scores, [0] * 30 + [1, 1])
    decider = Decider(["cosine", "llr"], {"llr": curve}, "x")
    point = operating_point(decider, "llr", 10, None, None, 0.5)
    assert point.threshold == pytest.approx(math.log(0.95 / 0.05))
    assert (point.false_accept_rate, point.miss_rate) == (0.0, 0.5)
    wanted = operating_point(decider, "llr", 2, None, 0.2, 0.5)  # nobody's choice but
    assert wanted.threshold == curve.at_false_accept_rate(0.1).threshold


def test_thresholds_that_nobody_measured():
    llr = Decider(["cosine", "llr"], {}, "x")
    point = operating_point(llr, "llr", 10, None, None, 0.5)
    assert point.threshold == pytest.approx(math.log(0.95 / 0.05))
    assert point.false_accept_rate is None
    given = operating_point(llr, "llr", 10, 1.5, None, 0.5)
    assert given == (1.5, None, None)
    with pytest.raises(InputError, match="needs it in"):
        operating_point(llr, "llr", 10, None, 0.1, 0.5)
    decider = Decider(["cosine"], {"cosine": measured(100)}, "x")
    given = operating_point(decider, "cosine", 10, 91.0, None, 0.5)
    assert given.false_accept_rate == pytest.approx(1.0)  # ten in a hundred, ten times
    assert operating_point(decider, "cosine", 2, 91.0, None, 0.5)[1] == pytest.approx(
        0.2
    )


# -- what it says ----------------------------------------------------------------------


def test_bad_questions(bare, wavs, tmp_path):
    voices = enrolled(bare, wavs[:2])
    for words, message in (
        ({"voices": Voices(bare)}, "no voice is enrolled"),
        ({"voices": 7}, "voices int, expected Voices or a file"),
        ({"voices": str(tmp_path / "gone")}, "gone: No such file"),
        ({"top": 0}, "top is 0"),
        ({"prior": 1.0}, "prior is 1.0"),
        ({"score": "llr"}, "score 'llr' needs"),
        ({"recordings": str(tmp_path / "gone.wav")}, "gone.wav"),
    ):
        options = {"recordings": wavs[0][1], "voices": voices, **words}
        with pytest.raises(InputError, match=message):
            bare.identify(**options)


def test_a_recording_without_speech_is_nobodys(bare, wavs):
    """A tone is no speech, however like an enrolled tone it is."""
    voices, (tone, _) = enrolled(bare, wavs[:2]), wavs[0]
    options = {"threshold": -1.0, "speech_detection": True}
    report = identification_report(bare, [tone], voices, **options)
    assert report["voice"] is report["score"] is report["unknown_probability"] is None
    assert report["candidates"] == []
    assert report["test"] == {"files": [tone], "seconds": 0.0}
    assert "no speech found: nobody's voice" in report["warnings"][0]
    (each,) = identify_each(bare, [tone], voices, **options)["results"]
    assert each["voice"] is None
    assert "no speech found" in each["error"]
    with pytest.raises(NoSpeechError, match=r"A: .*no speech"):
        voices.add("A", tone, speech_detection=True)
    assert len(voices) == 2


def test_every_file_by_itself(whole, wavs, tmp_path):
    voices = enrolled(whole, wavs)
    files = [wavs[1][1], str(tmp_path / "gone.wav"), wavs[4][1]]
    found = identify_each(whole, files, voices, top=2)["results"]
    assert [report["test"]["files"] for report in found] == [[f] for f in files]
    assert (found[1]["voice"], "cannot be opened" in found[1]["error"]) == (None, True)
    for row in (0, 2):
        alone = identification_report(whole, [files[row]], voices, top=2)
        assert found[row]["voice"] == alone["voice"]
        assert found[row]["score"] == pytest.approx(alone["score"], rel=1e-3, abs=1e-4)
        assert len(found[row]["candidates"]) == 2
    with pytest.raises(InputError, match=r"gone.wav: .*no recording could be read"):
        identify_each(whole, files[1:2], voices)
