"""The template for one's own corpus, run as a user runs it: from a dense or a pruned
model to a folder that verifies; what is wrong with the CSV file is one line."""

import csv
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from random_gates import set_gates
from recipe_scripts import REPOSITORY, run
from tiny_training import tiny_config, write_voices

from speechbrain_ext.__main__ import main
from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.inference import SpeakerVerifier
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.pretrained import load_pretrained, save_pretrained
from speechbrain_ext.pruning import add_gates, prune
from speechbrain_ext.utils.weights import read_weights

TEMPLATE = REPOSITORY / "hparams_templates/own_corpus.yaml"
SMALL = [
    *("--n_valid_speakers=2", "--batch_size=4", "--num_workers=0", "--noprogressbar"),
    *("--crop_seconds=[0.4, 0.6]", "--number_of_epochs=2", "--lr=0.001"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Recordings of 6 speakers in one folder, their CSV, a dense and a pruned model."""
    folder = tmp_path_factory.mktemp("own")
    write_voices(folder / "voices", n_speakers=6, n_utterances=5)
    (folder / "audio").mkdir()
    rows = [("spk_id", "wav", "ID", "duration")]
    for path in sorted((folder / "voices/wav").glob("*/*/*.wav")):
        speaker, name = path.parts[-3], f"{path.parts[-3]}-{path.stem}"
        shutil.move(path, folder / f"audio/{name}.wav")
        rows.append((speaker, f"audio/{name}.wav", f"audio/{name}", ""))
    write_rows(folder, rows)
    torch.manual_seed(0)
    encoder = W2VBertEncoder(tiny_config(hidden=32))
    model = SpeakerEncoder(encoder, AdapterMFA(32, 2, 8, 16)).eval()
    save_pretrained(folder / "dense", model, None, {"speakers": ["x"], "n_speeds": 1})
    add_gates(encoder)
    set_gates(encoder, "hard")
    save_pretrained(folder / "pruned", SpeakerEncoder(prune(encoder), model.head))
    return folder


def write_rows(folder, rows):
    with open(folder / "mine.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


def rows_of(corpus):
    with open(corpus / "mine.csv", newline="") as file:
        return list(csv.reader(file))


def words_of(corpus, out, *more, model="dense"):
    return [
        *(TEMPLATE, f"--manifest={corpus}/mine.csv", *SMALL),
        *(f"--pretrained_folder={corpus}/{model}", f"--output_folder={out}", *more),
    ]


def trained(words, folder):
    """Run the template → its final folder."""
    code, lines = run("train", words, folder / "stderr")
    assert code == 0, lines
    return folder / "out/final"


def test_from_a_csv_file_to_a_folder_that_verifies(corpus, tmp_path):
    final = trained(words_of(corpus, tmp_path / "out"), tmp_path)
    told = json.loads((final / "training.json").read_text())
    train = read_manifest(tmp_path / "out/prepared/train.csv")
    valid = read_manifest(tmp_path / "out/prepared/valid.csv")
    assert told["speakers"] == train.speaker_names.tolist()
    assert len(told["speakers"]) == 4
    assert not {*told["speakers"]} & {*valid.speaker_names.tolist()}
    assert told["validation_eer_percent"] is not None
    assert len(read_weights(final / "classifier.safetensors")["weight"]) == 3 * 4
    log = (tmp_path / "out/log.txt").read_text()
    assert "the classifier begins at the means of 20 recordings" in log
    # every parameter went on from the model that was given
    before = dict(load_pretrained(corpus / "dense").named_parameters())
    after = dict(load_pretrained(final).named_parameters())
    assert before.keys() == after.keys()
    moved = [(before[name] - after[name]).abs().max().item() for name in before]
    assert 0 < max(moved) < 0.02  # ten steps of 0.001


def test_segments_by_rttm_train_as_the_files_that_are_cut_from_them(corpus, tmp_path):
    """All recordings of the corpus one after the other, and the turns in them."""
    turns, wavs, at = [], [], 0
    for _, wav, name, _ in rows_of(corpus)[1:]:
        wavs.append(soundfile.read(corpus / wav, dtype="int16")[0])
        speaker, length = name.split("/")[1][:4], len(wavs[-1])
        turns.append(
            f"SPEAKER all 1 {at / 16000:.6f} {length / 16000:.6f} <NA> <NA> {speaker}"
            " <NA> <NA>\n"
        )
        at += length
    soundfile.write(tmp_path / "all.flac", np.concatenate(wavs), 16000)
    (tmp_path / "mine.rttm").write_text("".join(turns))
    words = words_of(corpus, tmp_path / "out")
    words[1] = f"--manifest={tmp_path}/mine.rttm"
    final = trained([*words, "--number_of_epochs=1"], tmp_path)
    told = json.loads((final / "training.json").read_text())
    assert len(told["speakers"]) == 4
    assert told["validation_eer_percent"] is not None
    train = read_manifest(tmp_path / "out/prepared/train.csv")
    assert len(train) == 20
    assert train.paths[0].startswith(f"{tmp_path}/all.flac:")


@pytest.mark.slow  # three trainings, a verification
def test_a_pruned_model_with_lora_stopped_verified_and_exported(corpus, tmp_path):
    lora = ("--lora={r: 2, alpha: 4}", "--frozen_encoder=True")
    words = words_of(corpus, tmp_path / "out", *lora, model="pruned")
    final = trained(words, tmp_path)
    sizes = [
        sum(p.numel() for p in load_pretrained(folder).encoder.parameters())
        for folder in (corpus / "pruned", final, corpus / "dense")
    ]
    assert sizes[0] == sizes[1] < sizes[2]
    # one epoch, then the other: the means are not taken again
    again = tmp_path / "again"
    again.mkdir()
    words = words_of(corpus, again / "out", *lora, model="pruned")
    trained([*words, "--number_of_epochs=1", "--lr_schedule.decay_epochs=2"], again)
    shutil.rmtree(again / "out/final")
    found = read_weights(trained(words, again) / "classifier.safetensors")["weight"]
    expected = read_weights(final / "classifier.safetensors")["weight"]
    assert torch.equal(found, expected)
    log = (again / "out/log.txt").read_text()
    assert log.count("the classifier begins at the means of") == 1
    # a list that names the files as they lie below the folder
    names = sorted(path.name for path in (corpus / "audio").glob("id0[45]*"))
    lines = [
        f"{int(a[:4] == b[:4])} audio/{a} audio/{b}\n"
        for row, a in enumerate(names)
        for b in names[row + 1 :]
    ]
    (tmp_path / "trials.txt").write_text("".join(lines))
    words = [
        *("hparams/verify.yaml", f"--pretrained_folder={final}", "--num_workers=0"),
        *(f"--test_folders={corpus}", f"--trial_lists={tmp_path}/trials.txt"),
        *(f"--output_folder={tmp_path}/verify", "--noprogressbar", "--n_resamples=0"),
        f"--training_manifest={tmp_path}/out/prepared/train.csv",
        f"--calibration_manifest={tmp_path}/out/prepared/valid.csv",
        *("--calibration.shortest=0.1", "--backend.top_n=3", "--max_utterances=3"),
        "--calibration.l2=0.1",
    ]
    code, said = run("verify", words, tmp_path / "stderr")
    assert code == 0, said
    model = tmp_path / "model"
    main(
        ["export", "--pretrained_folder", str(final), "--output", str(model)]
        + ["--results", str(tmp_path / "verify")]
    )
    verifier = SpeakerVerifier.from_hparams(str(model))
    pair = [corpus / "audio" / name for name in names[:2]]
    score, _ = verifier.verify_files(*pair, speech_detection=False)  # tones
    assert torch.isfinite(torch.as_tensor(score)).all()


def test_a_second_stage_goes_on_with_the_same_speakers(corpus, tmp_path):
    (tmp_path / "one").mkdir()
    trained(words_of(corpus, tmp_path / "one/out"), tmp_path / "one")
    more = ("--new_classifier=False", "--speeds=[1.0]", "--margin=0.5")
    words = words_of(tmp_path, tmp_path / "out", *more, model="one/out/final")
    words[1] = f"--manifest={corpus}/mine.csv"
    trained([*words, "--number_of_epochs=1"], tmp_path)
    assert "begins at the means" not in (tmp_path / "out/log.txt").read_text()


def put(row, column, text):
    return lambda rows: rows[row].__setitem__(column, text)


def keep(rows):
    """A change of the rows that changes nothing."""


@pytest.mark.parametrize(
    ("spoil", "word", "expected"),
    [
        (put(0, 0, "speaker"), "", "line 1: no column 'spk_id' in 'speaker,wav"),
        (put(3, 0, " "), "", "line 4: empty spk_id, expected text"),
        (put(3, 2, "audio/id00-00000"), "", "line 4: ID 'audio/id00-00000' again"),
        (put(3, 1, "no.wav"), "", "/no.wav: no such file (1 bad files, expected"),
        (put(3, 3, "9"), "", "lasts 0.70 s, duration says 9, expected them to"),
        (
            lambda rows: rows.__delitem__(slice(5, None)),
            "",
            "1 of 1 speakers remain to train on ('id00')",
        ),
        (keep, "--batch_size=64", "20 utterances per epoch, expected at least 64"),
        (keep, "--n_valid_speakers=6", "n_valid_speakers=6, expected fewer than the"),
        (keep, "--manifest=nowhere.csv", "nowhere.csv: no such file"),
        (keep, "--pretrained_folder=no", "no: no such folder"),
        (keep, "--new_classifier=False", "training speakers, first 'id0"),
    ],
)
def test_what_is_wrong_is_one_line(corpus, tmp_path, spoil, word, expected):
    rows = rows_of(corpus)
    spoil(rows)
    write_rows(tmp_path, rows)
    words = words_of(corpus, tmp_path / "out", f"--data_folder={corpus}")
    words[1] = f"--manifest={tmp_path}/mine.csv"
    code, lines = run("train", [*words, *filter(None, [word])], tmp_path / "stderr")
    assert code == 1, lines
    assert lines[-1].startswith("error: ")
    assert expected in lines[-1]
    assert sum("error: " in line for line in lines) == 1
    assert not (tmp_path / "out/final").exists()
