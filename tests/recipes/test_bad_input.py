"""Whatever is wrong with what train.py and verify.py are given: exit code 1, one line
that names the culprit, and nothing half-written."""

import os
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from recipe_scripts import RECIPE, SMALL, data_words, run, write_recipe_corpus
from safetensors.torch import load_file, save_file
from tiny_training import start, tiny_config, write_voices

from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.pretrained import save_pretrained

STAGE1 = "hparams/stage1_adapter_mfa.yaml"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A sound corpus, with the model of a stage 2 in ``final``."""
    folder = write_recipe_corpus(tmp_path_factory.mktemp("good"))
    torch.manual_seed(0)
    model = SpeakerEncoder(W2VBertEncoder(tiny_config()), AdapterMFA(16, 2, 8, 16))
    training = {"speakers": [f"id{s:02d}" for s in range(6)], "n_speeds": 3}
    save_pretrained(folder / "final", model, ArcFace(16, 18), training)
    return folder


@pytest.fixture
def corpus(good, tmp_path):
    """A copy to spoil."""
    shutil.copytree(good, tmp_path / "c")
    return tmp_path / "c"


def words_of(corpus, yaml, *more):
    """A complete command line, of which each test spoils something."""
    out = f"--output_folder={corpus}/out"
    if "verify" in yaml:
        data = [word for word in data_words(corpus) if word.startswith("--t")][1:]
        options = ["--num_workers=0", f"--pretrained_folder={corpus}/final"]
        return [yaml, *data, *options, "--noprogressbar", out, *more]
    if "stage1" in yaml:
        source = f"--encoder_source={corpus}/tiny.json"
        return [yaml, *data_words(corpus), *SMALL, source, out, *more]
    small = [word for word in SMALL if "embedding_size" not in word]
    data = data_words(corpus)[: 3 if "stage3" in yaml else None]
    source = f"--pretrained_folder={corpus}/final"
    return [yaml, *data, *small, source, out, *more]


def test_nothing_of_torchvision_stands_on_stderr(tmp_path):
    """Neither before an error nor where the log is made; its other words stay."""
    code = (
        "import logging, sys\n"
        "sys.modules['torchvision'] = None\n"  # as where it is not installed
        "import train\n"
        "train.train_logger(sys.argv[1] + '.log')\n"
        "logging.getLogger('speechbrain.utils.train_logger').warning('another')\n"
        "train.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "no.yaml")],
        cwd=RECIPE,
        capture_output=True,
        text=True,
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert len(lines) == 2, done.stderr
    assert lines[0].endswith("another")
    assert lines[1].startswith(f"error: {tmp_path}/no.yaml")


def check(name, corpus, yaml, expected, *more):
    """Run; the last line on stderr is the one error, and holds ``expected``."""
    code, lines = run(name, words_of(corpus, yaml, *more), corpus / "stderr")
    text = "\n".join(lines)
    assert code == 1, text
    assert lines[-1].startswith("error: "), text
    assert expected.format(c=corpus) in lines[-1]
    assert "Traceback" not in text
    assert sum(line.startswith("error: ") for line in lines) == 1
    out = corpus / "out"
    left = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in left if path.suffix in (".tmp", ".safetensors")]
    assert not (out / "final").exists()
    assert not list(out.glob("save/.partial*"))
    assert not (out / "results.json").exists()


def spoil(path, kind):
    """Put something else in the place of a recording."""
    wav, _ = soundfile.read(path, dtype="float32")
    options = {"data": wav, "samplerate": 16000, "subtype": "FLOAT"}
    if kind == "corrupt":
        path.write_bytes(b"RIFF and then nonsense")
        return
    if kind == "empty":
        path.write_bytes(b"")
        return
    if kind == "cut":  # the header promises more
        soundfile.write(path, wav, 16000)
        path.write_bytes(path.read_bytes()[:4000])
        return
    options |= {
        "silent": {"data": np.zeros_like(wav)},
        "short": {"data": wav[:500]},
        "stereo": {"data": np.stack([wav, wav], 1)},
        "8 kHz": {"samplerate": 8000},
        "NaN": {"data": np.where(np.arange(len(wav)) % 50 == 7, np.nan, wav)},
    }[kind]
    soundfile.write(path, **options)


# ---- train.py ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("corrupt", "id02/s0/00000.wav: cannot be opened as sound"),
        ("empty", "id02/s0/00000.wav: "),
        ("stereo", "id02/s0/00000.wav: 16000 Hz with 2 channel(s), expected 16000 Hz"),
        ("8 kHz", "id02/s0/00000.wav: 8000 Hz"),
    ],
)
def test_a_bad_training_recording_is_found_before_training(corpus, kind, expected):
    spoil(corpus / "voices/wav/id02/s0/00000.wav", kind)
    check("train", corpus, STAGE1, expected)
    assert not (corpus / "out/prepared/train.csv").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_recording_that_is_not_finite_is_found_when_it_is_read(corpus, workers):
    for path in (corpus / "voices/wav").glob("id0*/s0/00000.wav"):
        spoil(path, "NaN")
    check("train", corpus, STAGE1, ".wav: NaN", f"--num_workers={workers}")
    assert list((corpus / "out/save").iterdir()) == []


def test_a_silent_validation_recording_is_named(corpus):
    for path in (corpus / "voices/wav").glob("id0*/s0/00000.wav"):
        spoil(path, "silent")
    check("train", corpus, STAGE1, "/s0/00000.wav: silent, expected speech")


def test_a_recording_cut_after_the_preparation_is_named(corpus):
    code, _ = run("train", words_of(corpus, STAGE1), corpus / "stderr")
    assert code == 0
    shutil.rmtree(corpus / "out/final")
    shutil.rmtree(corpus / "out/save")
    for path in (corpus / "voices/wav").glob("id0*/s?/*.wav"):
        spoil(path, "cut")
    check("train", corpus, STAGE1, ".wav: ")


@pytest.mark.parametrize(
    ("yaml", "more", "expected"),
    [
        (STAGE1, "--train_folders={c}/nowhere", "{c}/nowhere: no such folder"),
        (STAGE1, "--musan_folder={c}/nowhere", "{c}/nowhere: no such folder"),
        (STAGE1, "--rirs_folder={c}/nowhere", "{c}/nowhere: no such folder"),
        (STAGE1, "--trial_lists={c}/no.txt", "{c}/no.txt: no such file"),
        (STAGE1, "--encoder_source={c}/no", "{c}/no: no such folder, and not a hub"),
        (STAGE1, "--encoder_source={c}/trials.txt", "{c}/trials.txt: not a folder"),
        (STAGE1, "--encoder_source={c}/no.json", "{c}/no.json: not a readable"),
        (STAGE1, "--prepare=", "prepare: None, expected"),
        (STAGE1, "--train_data=", "train_data: None, expected"),
        (STAGE1, "--lr_schedule=", "lr_schedule: None, expected"),
        (STAGE1, "--modules={{other: 3}}", "modules: "),
        (STAGE1, "--terms=[hello]", "terms: ['hello'], expected a list of terms"),
        (STAGE1, "--terms=[]", "terms: [], expected"),
        (STAGE1, "--lora={{r: 2, alfa: 4}}", "lora: inject_lora takes no 'alfa'"),
        (STAGE1, "--classifier={{margn: 0.3}}", "ArcFace takes no 'margn'"),
        (STAGE1, "--output_folder={c}/tiny.json", "{c}/tiny.json"),
        (STAGE1, "--output_folder={c}/voices/wav/id00", "{c}/voices/wav/id00"),
        (STAGE1, "--musan={{volume: 3}}", "musan: "),
        (
            STAGE1,
            "--prepare.n_valid_speaker=3",
            "did you mean 'prepare.n_valid_speakers'?",
        ),
        (STAGE1, "--lora={{rank: 3}}", "lora: "),
        (STAGE1, "--lora={{target_modules: [nope]}}", "no layers named ['nope']"),
        (STAGE1, "--augment_chains.echo=1", "--augment_chains.echo: no such key"),
        (STAGE1, "--batch_size=64", "28 utterances per epoch, expected at least 64"),
        (STAGE1, "--batch_size=0", "batch_size: 0, expected"),
        (STAGE1, "--crop_seconds=[2, 1]", "crop_seconds: (2, 1), expected"),
        (STAGE1, "--crop_seconds=[1]", "crop_seconds"),
        (STAGE1, "--speeds=[0.9, 1.0]", "speeds"),
        (STAGE1, "--n_valid_speakers=6", "n_valid_speakers=6"),
        (STAGE1, "--lr=-1", "peak=-1, expected"),
        (STAGE1, "--number_of_epochs=0", "number_of_epochs: 0, expected at least 1"),
        (STAGE1, "--num_workers=-1", "num_workers"),
        (STAGE1, "--valid_batch_seconds=0", "valid_batch_seconds: 0, expected"),
        (STAGE1, "--grad_accumulation_factor=0", "grad_accumulation_factor: 0"),
        (STAGE1, "--lr=1e30", " epoch 1, step "),
        (STAGE1, "--batchsize=3", "--batchsize: no such key in hparams/stage1_adap"),
        ("hparams/stage2_joint.yaml", "--pretrained_folder={c}", "{c}: no hyperp"),
        ("hparams/stage4.yaml", "--seed=1", "hparams/stage4.yaml: no such hyperp"),
    ],
)
def test_wrong_settings_of_training(corpus, yaml, more, expected):
    check("train", corpus, yaml, expected, more.format(c=corpus))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1 id06/s0/00000.wav\n", "trials.txt: line 16: 2 columns, expected 3"),
        ("2 id06/s0/00000.wav id07/s0/00000.wav\n", "trials.txt: line 16: label '2'"),
        (
            "1 id06/s0/00000.wav id99/s0/00000.wav\n",
            "trials.txt: line 16: utterance 'id99/s0/00000' is not in",
        ),
    ],
)
@pytest.mark.parametrize("name", ["train", "verify"])
def test_a_wrong_line_of_a_trial_list(corpus, name, line, expected):
    with open(corpus / "trials.txt", "a") as file:
        file.write(line)
    yaml = STAGE1 if name == "train" else "hparams/verify.yaml"
    check(name, corpus, yaml, expected)


def rename_weight(folder):
    path = folder / "speaker_encoder.safetensors"
    weights = load_file(path)
    weights["head.other"] = weights.pop("head.bottleneck.bias")
    save_file(weights, path)
    return "speaker_encoder.safetensors: weights do not fit: 1 missing"


def reshape_weight(folder):
    path = folder / "speaker_encoder.safetensors"
    weights = load_file(path)
    weights["head.bottleneck.bias"] = torch.zeros(5)
    save_file(weights, path)
    return "head.bottleneck.bias (5,) instead of (16,)"


def truncate_weights(folder):
    path = folder / "speaker_encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "speaker_encoder.safetensors: refused as weights"


def lose_weights(folder):
    (folder / "speaker_encoder.safetensors").unlink()
    return "speaker_encoder.safetensors: no such weights file"


def lose_classifier(folder):
    (folder / "classifier.safetensors").unlink()
    return "classifier.safetensors: no such weights file"


def lose_training(folder):
    (folder / "training.json").unlink()
    return "training.json: "


def other_speakers(folder):
    path = folder / "training.json"
    path.write_text(path.read_text().replace('"id0', '"xx0'))
    return "has no classes for"


MODEL = [rename_weight, reshape_weight, truncate_weights, lose_weights]
CLASSIFIER = [lose_classifier, lose_training, other_speakers]


@pytest.mark.parametrize("damage", MODEL + CLASSIFIER)
def test_a_wrong_pretrained_folder_for_training(corpus, damage):
    expected = damage(corpus / "final")
    check("train", corpus, "hparams/stage3_lmft.yaml", expected)


def test_a_new_speaker_has_no_class_in_stage_3(corpus):
    write_voices(corpus / "voices", n_speakers=1, first=9)
    expected = "first 'id09'"
    words = "--n_valid_speakers=0"
    check("train", corpus, "hparams/stage3_lmft.yaml", expected, words)


# ---- verify.py -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("corrupt", "id07/s0/00002.wav: cannot be opened as sound"),
        ("empty", "id07/s0/00002.wav: "),
        ("stereo", "id07/s0/00002.wav: 16000 Hz with 2 channel(s)"),
        ("8 kHz", "id07/s0/00002.wav: 8000 Hz"),
        ("silent", "id07/s0/00002.wav: silent, expected speech"),
        ("short", "id07/s0/00002.wav: 500 samples, "),
        ("NaN", "id07/s0/00002.wav: NaN"),
    ],
)
def test_a_bad_test_recording(corpus, kind, expected):
    spoil(corpus / "test/wav/id07/s0/00002.wav", kind)
    check("verify", corpus, "hparams/verify.yaml", expected)


@pytest.mark.parametrize("damage", MODEL)
def test_a_wrong_pretrained_folder_for_verification(corpus, damage):
    expected = damage(corpus / "final")
    check("verify", corpus, "hparams/verify.yaml", expected)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("--test_folders={c}/nowhere", "{c}/nowhere: no such folder"),
        ("--trial_lists={c}/no.txt", "{c}/no.txt: No such file"),
        ("--trial_lists=[{c}/trials.txt, {c}/again/trials.txt]", "two of the name"),
        ("--pretrained_folder={c}/voices", "{c}/voices: no hyperparams.yaml"),
        ("--max_seconds=0", "max_seconds: 0"),
        ("--max_batch_seconds=0", "max_batch_seconds: 0, expected"),
        ("--p_target=0.01", "--p_target: no such key in hparams/verify.yaml"),
    ],
)
def test_wrong_settings_of_verification(corpus, more, expected):
    (corpus / "again").mkdir()
    shutil.copy(corpus / "trials.txt", corpus / "again")
    check("verify", corpus, "hparams/verify.yaml", expected, more.format(c=corpus))


def test_a_repeated_trial_is_refused_before_anything_is_embedded(corpus):
    first = (corpus / "trials.txt").read_text().splitlines()[0]
    with open(corpus / "trials.txt", "a") as file:
        file.write(first + "\n")
    check("verify", corpus, "hparams/verify.yaml", "trials.txt: line 16")
    assert not (corpus / "out/embeddings.npz").exists()
    words = words_of(corpus, "hparams/verify.yaml", "--allow_duplicates=True")
    assert run("verify", words, corpus / "stderr")[0] == 0


# ---- the scripts themselves ----------------------------------------------------------


def _run_as_main(name, *words):
    """``python NAME.py`` with all imported: the script itself is run anew."""
    os.chdir(RECIPE)
    sys.argv = [f"{name}.py", *words]
    runpy.run_path(f"{name}.py", run_name="__main__")


@pytest.mark.parametrize("name", ["train", "verify"])
def test_the_script_itself(corpus, name):
    """In a new Python: test_a_real_process_… of train.py, and the next one."""
    yaml = STAGE1 if name == "train" else "hparams/verify.yaml"
    words = words_of(corpus, yaml, "--nothing=1")
    process = start(_run_as_main, name, *words, stderr=corpus / "stderr")
    process.join(100)
    assert process.exitcode == 1
    (line,) = (corpus / "stderr").read_text().splitlines()
    assert line.startswith(f"error: --nothing: no such key in {yaml}")


@pytest.mark.slow
def test_as_a_user_calls_it(corpus):
    words = words_of(corpus, "hparams/verify.yaml", "--nothing=1")
    done = subprocess.run(
        [sys.executable, "verify.py", *words],
        cwd=RECIPE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: --nothing: no such key in hparams/verify.yaml")
    assert "Traceback" not in done.stderr
