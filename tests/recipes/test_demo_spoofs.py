"""The spoofs of the demonstration corpus: layout, no leaks, no trivial cues."""

from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from demo_corpus import content, make_demo_corpus, vocoders
from demo_corpus.spoofs import ATTACKS, CODECS, PROTOCOLS, spoof_files
from tiny_speech import spoken

from speechbrain_ext.data.audio import SAMPLE_RATE, read_audio
from speechbrain_ext.data.corpora.asvspoof import prepare_asvspoof
from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.utils.errors import InputError

SIZE = content.Size(
    n_train_speakers=6,
    n_test_speakers=4,
    sessions=2,
    utterances=2,
    seed=7,
    spoofs=2,
)
COLUMNS = "speaker file sex codec quality seed tag attack key none".split()  # noqa: SIM905
SPEAKERS = {"T": 4, "D": 2, "E": 4}


@pytest.fixture(scope="module")
def made():
    """Every file of ``spoof``: name → bytes, as the corpus makes them."""
    return dict(content.spoof_part(SIZE))


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    for name, data in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "spoof"


@pytest.fixture(scope="module")
def rows(made):
    """Rows of the three protocols, by their columns."""
    return [
        SimpleNamespace(split=split, **dict(zip(COLUMNS, line.split(), strict=True)))
        for split, (_, protocol) in PROTOCOLS.items()
        for line in made[f"spoof/{protocol}"].decode().splitlines()
    ]


def test_rows_and_files_are_those_of_asvspoof5(made, rows):
    recordings = {
        f"spoof/{PROTOCOLS[row.split][0]}/{row.file}.flac": row for row in rows
    }
    protocols = {f"spoof/{protocol}" for _, protocol in PROTOCOLS.values()}
    assert set(made) == set(recordings) | protocols
    assert len(recordings) == len(rows)
    # 4 takes of a speaker, and two spoofs of each; a third of E once more
    plain = Counter((r.split, r.key) for r in rows if r.codec == "-")
    assert plain == {
        (split, key): 4 * count * SPEAKERS[split]
        for split in "TDE"
        for key, count in (("bonafide", 1), ("spoof", 2))
    }
    assert Counter(r.split for r in rows if r.codec != "-") == {"E": 4 * 12 // 3}
    for row in rows:
        assert row.speaker.startswith(f"{row.split}_")
        assert row.sex in "MF"
        bona = row.key == "bonafide"
        assert (row.tag, row.attack == "bonafide") == ("-" if bona else "AC1", bona)
        quality = {"T": "-", "D": "-", "E": "0"}[row.split]
        assert row.codec in CODECS or row.quality == quality


def test_a_coded_recording_names_its_source(rows):
    """Same speaker, same attack, and the source itself is not coded."""
    by_name = {row.file: row for row in rows}
    for row in rows:
        if row.codec == "-":
            assert row.seed == "-"
            continue
        source = by_name[row.seed]
        assert source.codec == "-"
        assert (source.speaker, source.attack) == (row.speaker, row.attack)


def test_splits_share_neither_speaker_nor_method(rows):
    for column in ("speaker", "attack"):
        parts = [
            {getattr(r, column) for r in rows if r.split == split} - {"bonafide"}
            for split in "TDE"
        ]
        assert not (parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2])
    used = {split: {r.attack for r in rows if r.split == split} for split in "TDE"}
    for split, attacks in ATTACKS.items():
        assert used[split] == {"bonafide", *(attack.label for attack in attacks)}
    # Every method spoofs as often as any other of its split, within a recording.
    for split in "TDE":
        times = Counter(
            r.attack
            for r in rows
            if r.split == split and r.key == "spoof" and r.codec == "-"
        ).values()
        assert max(times) - min(times) <= SPEAKERS[split]


def test_the_functions_of_eval_are_in_no_other_split():
    """Which vocoder or conversion, and which synthesiser: told by the code itself."""

    def functions(split):
        return {
            part
            for attack in ATTACKS[split]
            for part in (attack.method, attack.variant)
            if part is not None
        }

    assert not functions("E") & (functions("T") | functions("D"))


def test_preparation_reads_it(folder, tmp_path):
    prepared = prepare_asvspoof(str(folder), str(tmp_path / "prepared"))
    for split, path in (
        ("T", prepared.train),
        ("D", prepared.dev),
        ("E", prepared.eval),
    ):
        manifest = read_manifest(path)
        expected = SPEAKERS[split] * 12 * (4 / 3 if split == "E" else 1)
        assert len(manifest) == expected


def test_the_same_arguments_give_the_same_bytes(made):
    """Whoever else is made beside: here two speakers alone, of a larger corpus."""
    larger = SIZE._replace(n_train_speakers=7)
    jobs = [job for job in content.spoof_plan(larger) if job.split == "E"][:2]
    again = spoof_files(jobs, partial(content.generator_of, larger))
    flacs = {name: data for name, data in again if name.endswith(".flac")}
    assert len(flacs) > 2 * 12
    assert all(made[name] == data for name, data in flacs.items())


def auc(spoofs, bona):
    """How often a spoof's value is the larger one."""
    difference = np.asarray(spoofs)[:, None] - np.asarray(bona)
    return np.mean((difference > 0) + 0.5 * (difference == 0))


def cues(wav):
    frames = np.lib.stride_tricks.sliding_window_view(wav, 512)[::256]
    power = (np.abs(np.fft.rfft(frames * np.hanning(512))) ** 2).sum(0)
    envelope = np.sqrt((frames**2).mean(1))
    loud = np.flatnonzero(envelope > 0.1 * envelope.max())
    return {
        "duration": len(wav),
        "rms": np.sqrt(np.mean(wav**2)),
        "peak": np.abs(wav).max(),
        "mean": abs(wav.mean()),
        "silence before": loud[0],
        "silence behind": len(envelope) - loud[-1],
        "above 7 kHz": power[224:].sum() / power.sum(),
        "floor": np.sort(envelope)[:5].mean(),
    }


def test_no_trivial_cue_tells_a_spoof(folder, rows):
    found = {"bonafide": [], "spoof": []}
    for row in rows:
        wav = read_audio(folder / PROTOCOLS[row.split][0] / f"{row.file}.flac")
        assert np.abs(wav).max() < 0.96
        found[row.key].append(cues(wav))
    areas = {
        cue: auc(*([one[cue] for one in found[key]] for key in ("spoof", "bonafide")))
        for cue in found["spoof"][0]
    }
    assert all(0.35 < area < 0.65 for area in areas.values()), areas


def test_numbers_of_files_say_nothing(rows):
    for split in "TDE":
        numbers = {"bonafide": [], "spoof": []}
        for row in rows:
            if row.split == split:
                numbers[row.key].append(int(row.file[2:]))
        assert 0.35 < auc(numbers["spoof"], numbers["bonafide"]) < 0.65


def test_stft_of_istft_is_the_signal():
    wav = spoken()
    for size, hop in ((512, 128), (768, 192), (1024, 256)):
        again = vocoders.istft(vocoders.stft(wav, size, hop), len(wav), hop)
        np.testing.assert_allclose(again, wav, atol=1e-5)


def test_the_pitch_of_a_pulse_train_is_found():
    for pitch in (80, 123, 210, 310):
        time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
        wav = sum(np.cos(2 * np.pi * pitch * k * time) for k in range(1, 12))
        found = vocoders.track_pitch(wav.astype(np.float32))[20:-20]
        assert np.all(np.abs(found - pitch) < 0.03 * pitch)
    noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
    assert np.mean(vocoders.track_pitch(noise) > 0) < 0.05


def test_linear_prediction_solves_its_equations():
    """Of every frame: R a = r, within a thousandth of the frame's energy."""
    wav = spoken()
    taps = np.fft.irfft(1 / vocoders.prediction_envelope(wav, 18))[:, :19]
    taps = taps[:, 1:] / taps[:, :1]
    lags = np.fft.irfft(np.abs(vocoders.stft(wav, 512, 128)) ** 2)[:, :19]
    matrix = lags[:, np.abs(np.arange(18)[:, None] - np.arange(18))]
    left = (matrix @ taps[..., None])[..., 0] + lags[:, 1:]
    loud = lags[:, 0] > 1e-3 * lags[:, 0].max()
    assert np.all(np.abs(left[loud]) < 1e-3 * lags[loud, :1])


def test_griffin_lim_approaches_the_magnitudes():
    wav = spoken()
    magnitude = np.abs(vocoders.stft(wav, 512, 128))

    def error(iterations):
        rng = np.random.default_rng(0)
        made = vocoders.griffin_lim(magnitude, len(wav), 128, iterations, rng)
        return np.linalg.norm(np.abs(vocoders.stft(made, 512, 128)) - magnitude)

    assert error(16) < 0.5 * error(0)


@pytest.mark.parametrize("convert", ["convert_pitch", "convert_pitch_in_time"])
def test_pitch_conversion_moves_the_pitch(convert):
    wav = spoken()
    made = getattr(vocoders, convert)(wav, 1.2)
    assert len(made) == len(wav)
    before, after = (vocoders.track_pitch(w) for w in (wav, made))
    assert 1.12 < np.median(after[after > 0]) / np.median(before[before > 0]) < 1.28


@pytest.mark.parametrize("attack", [a for s in ATTACKS.values() for a in s])
def test_every_method_keeps_length_and_words(attack):
    """Loudness over time follows that of the take; the samples do not."""
    wav = spoken()
    made = attack.change(wav, np.random.default_rng(0))
    assert made.dtype == np.float32
    assert made.shape == wav.shape

    def loudness(wav):
        return np.sqrt((wav[: len(wav) // 400 * 400].reshape(-1, 400) ** 2).mean(1))

    assert np.corrcoef(loudness(wav), loudness(made))[0, 1] > 0.7
    assert attack.variant or not np.allclose(made, wav, atol=0.01)


def test_training_and_development_need_a_speaker_each(tmp_path):
    with pytest.raises(InputError, match="n_train_speakers: 1, expected at least 2"):
        make_demo_corpus(tmp_path / "corpus", n_train_speakers=1, spoofs=1)
