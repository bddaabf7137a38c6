"""The anti-spoofing recipe: numbers of its YAML files, and its steps, shrunken."""

import functools
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import recipe_scripts
import soundfile
import torch
from asvspoof_corpus import SMALL, SPLITS, data_words, write_asvspoof
from hparams_files import SPOOFING, data_of, optimiser
from recipe_scripts import ANTISPOOFING
from tiny_encoder import waveform_config
from tiny_training import start

from speechbrain_ext.export.folder import export_model
from speechbrain_ext.export.hub import plan_push
from speechbrain_ext.inference import extraction
from speechbrain_ext.inference.detector import SpoofingDetector
from speechbrain_ext.lobes.encoder import count_parameters
from speechbrain_ext.lobes.heads import MHFA, AdapterMFA, Detection
from speechbrain_ext.lobes.wavlm import WavLMEncoder
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.scoring.detection import detection_figures, read_keys, read_scores
from speechbrain_ext.scoring.embeddings import load_embeddings
from speechbrain_ext.training import detection
from speechbrain_ext.training.terms import Budget
from speechbrain_ext.utils.errors import InputError

WAVLM = ("asvspoof5/wavlm_mhfa", "asvspoof5/hybrid_wavlm_mhfa")

# ---- YAML files ----------------------------------------------------------------------


@pytest.mark.parametrize("name", SPOOFING)
def test_what_all_files_share(load, name):
    hparams = load(name)
    assert data_of(hparams)["label"] == "key"
    assert data_of(hparams).get("speeds", [1.0]) == [1.0]
    assert type(hparams["terms"][0]) is detection.Detection
    assert type(hparams["modules"]["speaker_encoder"].head) is Detection
    assert hparams["prepare"].keywords["splits"] == ["train", "dev"]
    assert hparams["validation"].func == detection.DetectionErrors.of


@pytest.mark.parametrize("name", WAVLM)
def test_published_settings(load, name):
    """arXiv 2508.16232, by the configuration of zlin0/wedefense."""
    hparams = load(name)
    data, model = data_of(hparams), hparams["modules"]["speaker_encoder"]
    assert data["crop_seconds"] == [3.0, 3.0]
    assert (data["batch_size"], hparams["global_batch"]) == (16, 32)
    assert data["augmenter"].keywords["chains"] == {"none": 2, "noise": 4, "reverb": 4}
    assert hparams["epoch_counter"].limit == 5
    assert hparams["average_epochs"] == 2
    assert hparams["encoder_lr_scale"] == 0.05
    assert hparams["max_grad_norm"] == 3.0
    assert optimiser(hparams) == (torch.optim.AdamW, 2.5e-4, 1e-4)
    rate = hparams["lr_schedule"]
    assert rate(0) == 0
    assert rate(5) == pytest.approx(2.5e-5)
    assert hparams["terms"][0].given is None
    inner = model.head.head
    assert type(inner) is MHFA
    sizes = {"heads": 32, "compression_size": 128, "embedding_size": 256}
    assert sizes.items() <= inner.arguments.items()
    assert not model.encoder.frozen


def test_the_dense_and_the_pruned_differ_in_the_budget_alone(load):
    dense, hybrid = (load(name) for name in WAVLM)
    assert len(dense["terms"]) == 1
    budget = hybrid["terms"][1]
    assert type(budget) is Budget
    assert budget.gate_lr == budget.multiplier_lr == 0.05
    assert budget.make_budget.keywords["sparsity"] == 0.1
    steps = budget.make_budget.keywords["warmup_steps"]
    assert steps == pytest.approx(5 * 182_357 / 32, rel=1e-3)
    for key in dense.keys() - {"terms"}:
        assert type(dense[key]) is type(hybrid[key]), key


def test_w2v_bert(load):
    hparams = load("asvspoof5/w2v_bert_mfa")
    assert data_of(hparams)["crop_seconds"] == [64_600 / 16_000] * 2
    assert hparams["terms"][0].given == {"spoof": 0.1, "bonafide": 0.9}
    assert type(hparams["modules"]["speaker_encoder"].head.head) is AdapterMFA
    assert hparams["lora"]["r"] == 64


# ---- the whole recipe ----------------------------------------------------------------

TINY = ["--encoder.channels=[16, 16, 16, 16, 24]", "--draws_per_epoch=48"]

run = functools.partial(recipe_scripts.run, seconds=300, recipe=ANTISPOOFING)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_asvspoof(tmp_path_factory.mktemp("asvspoof"))


def training(corpus, out):
    words = [*data_words(corpus), *SMALL, *TINY, "--number_of_epochs=2"]
    return ["hparams/small.yaml", *words, f"--output_folder={out}"]


def evaluation(corpus, out, model):
    return [
        *("hparams/evaluate.yaml", f"--data_folder={corpus}/corpus"),
        *(f"--pretrained_folder={model}", f"--output_folder={out}"),
        *("--device=cpu", "--noprogressbar", "--n_resamples=20", "--num_workers=0"),
    ]


@pytest.fixture(scope="module")
def results(corpus, tmp_path_factory):
    """Of a training of two epochs, and its evaluation."""
    folder = tmp_path_factory.mktemp("results")
    words = training(corpus, folder / "small")
    code, lines = run("train", words, folder / "stderr")
    assert code == 0, lines
    words = evaluation(corpus, folder / "evaluate", folder / "small/final")
    code, lines = run("evaluate", words, folder / "stderr")
    assert code == 0, lines
    return folder


def test_the_best_epoch_is_that_of_the_lowest_cost(results):
    log = (results / "small/train_log.txt").read_text().splitlines()
    costs = [float(line.partition("valid minDCF: ")[2].split(",")[0]) for line in log]
    assert len(costs) == 2
    training = json.loads((results / "small/final/training.json").read_text())
    best = max(n for n, cost in enumerate(costs, 1) if cost == min(costs))
    assert training["epoch"] == best
    assert training["validation_min_dcf"] == pytest.approx(min(costs), rel=0.01)
    prior = load_pretrained(results / "small/final").head.log_prior.exp()
    assert prior.tolist() == pytest.approx([0.5, 0.5])  # drawn in turns


@pytest.mark.parametrize("split", ["dev", "eval"])
def test_official_files_and_figures(results, corpus, split):
    folder = results / "evaluate"
    head = "filename\tcm-score\n"
    assert (folder / f"scores_{split}.tsv").read_text().startswith(head)
    names, scores = read_scores(folder / f"scores_{split}.tsv")
    keys = read_keys(folder / f"keys_{split}.tsv")
    assert names == keys.names
    (protocol,) = (corpus / "corpus").glob(SPLITS[split][2])
    lines = [line.split() for line in protocol.read_text().splitlines()]
    labels = {line[1]: line[8] == "bonafide" for line in lines}
    assert dict(zip(names, keys.is_bonafide.tolist())) == labels
    report = json.loads((folder / "results.json").read_text())
    (listed,) = (of for of in report["lists"] if of["list"] == split)
    assert [row["system"] for row in listed["systems"]] == ["uncalibrated", "llr"]
    figures = detection_figures(scores, keys.is_bonafide)["pooled"]
    for name in ("min_dcf", "actual_dcf", "cllr", "eer_percent"):
        assert listed["systems"][1]["pooled"][name] == pytest.approx(figures[name])
    assert listed["systems"][1]["attacks"].keys() == set(SPLITS[split][4])


def test_the_detector_of_the_export_gives_the_scores(results, corpus, tmp_path):
    facts = export_model(
        *(results / "small/final", tmp_path / "out", results / "evaluate"),
        name="me/detector",
        licence="mit",
    )
    assert facts.scores == ["llr"]
    assert {"calibration.json", "thresholds.json"} <= set(facts.files)
    options = {"device": "cpu", "noprogressbar": True}
    detector = SpoofingDetector.from_hparams(tmp_path / "out", run_opts=options)
    names, scores = read_scores(results / "evaluate/scores_eval.tsv")
    files = [str(corpus / f"corpus/flac_E_eval/{name}.flac") for name in names]
    found = detector.score_files(files).tolist()
    assert found == pytest.approx(scores.tolist(), abs=1e-3)
    curve = detector.thresholds["llr"]
    _, dev = read_scores(results / "evaluate/scores_dev.tsv")
    labels = read_keys(results / "evaluate/keys_dev.tsv").is_bonafide
    point = curve.at_false_accept_rate(0.5)
    assert np.mean(dev[~labels] >= point.threshold) == point.false_accept_rate
    plan = plan_push(tmp_path / "out")
    assert "README.md" in dict(plan.files)
    card = (tmp_path / "out/README.md").read_text()
    assert "anti-spoofing" in card
    assert 'SpoofingDetector.from_hparams("me/detector")' in card
    assert "6 bona fide recordings and 12 spoofs of the development set" in card


def test_export_refuses_what_is_of_a_verifier(results, tmp_path):
    model = results / "small/final"
    with pytest.raises(InputError, match=r"expected --results of evaluate\.py"):
        export_model(model, tmp_path / "out", thresholds_from=["cosine=x.txt"])
    (tmp_path / "results.json").write_text('{"lists": [], "top_n": 300}')
    with pytest.raises(InputError, match=r"results\.json"):
        export_model(model, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_second_evaluation_scores_nothing_twice(results, corpus):
    folder = results / "evaluate"
    before = (folder / "scores_eval.tsv").read_bytes()
    files = [folder / f"logits_{split}.npz" for split in ("dev", "eval")]
    times = [file.stat().st_mtime_ns for file in files]
    words = evaluation(corpus, folder, results / "small/final")
    code, lines = run("evaluate", words, results / "stderr")
    assert code == 0, lines
    assert (folder / "scores_eval.tsv").read_bytes() == before
    assert [file.stat().st_mtime_ns for file in files] == times
    ids, logits = load_embeddings(folder / "logits_eval.npz")
    assert logits.shape == (len(ids), 2)


def ended(function, *words, stderr):
    """Exit code of a process."""
    process = start(function, *words, stderr=stderr)
    process.join(100)
    process.kill()
    return process.exitcode


def test_a_training_that_is_killed_ends_with_the_same_model(results, corpus, tmp_path):
    words = [*training(corpus, tmp_path / "out"), "--ckpt_interval_steps=2"]
    stopped = functools.partial(recipe_scripts.run_until, recipe=ANTISPOOFING)
    arguments = "train", (2, 4), signal.SIGKILL, *words
    code = ended(stopped, *arguments, stderr=tmp_path / "stderr")
    assert code == -signal.SIGKILL
    assert not (tmp_path / "out/final").exists()
    code, lines = run("train", words, tmp_path / "stderr")
    assert code == 0, lines
    for name in ("speaker_encoder.safetensors", "training.json"):
        unbroken = (results / "small/final" / name).read_bytes()
        assert (tmp_path / "out/final" / name).read_bytes() == unbroken
    found, unbroken = (  # but for how long a batch was waited for
        re.sub(r"waiting: \S+", "", (folder / "train_log.txt").read_text())
        for folder in (tmp_path / "out", results / "small")
    )
    assert found == unbroken


def _stopped_at(batch, ending, *words):
    """Evaluate, but a signal comes before that batch of those that are scored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    plain, done = extraction.encode, []

    def encode(*arguments, **options):
        done.append(1)
        if len(done) == batch:
            os.kill(os.getpid(), ending)
        return plain(*arguments, **options)

    extraction.encode = encode
    recipe_scripts.run_script("evaluate", *words, recipe=ANTISPOOFING)


def test_an_evaluation_that_is_stopped_goes_on_with_two_processes(
    results, corpus, tmp_path
):
    words = evaluation(corpus, tmp_path / "out", results / "small/final")
    words.append("--max_batch_seconds=1")
    stderr, out = tmp_path / "stderr", tmp_path / "out"
    assert ended(_stopped_at, 4, signal.SIGINT, *words, stderr=stderr) == 130
    said = stderr.read_text().splitlines()[-1]
    assert said == "error: interrupted by the user"
    assert not (out / "logits_dev.npz").exists()
    code = ended(_stopped_at, 15, signal.SIGKILL, *words, stderr=stderr)
    assert code == -signal.SIGKILL
    done = (out / "logits_dev.npz").stat().st_mtime_ns
    assert not (out / "logits_eval.npz").exists()
    assert not list(out.glob("scores_*"))
    evaluate = functools.partial(recipe_scripts.run_script, recipe=ANTISPOOFING)
    codes, said = recipe_scripts.run_on_two("evaluate", words, tmp_path, evaluate)
    assert codes == [0, 0], said
    assert (out / "logits_dev.npz").stat().st_mtime_ns == done
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in (results / "evaluate").iterdir()}
    for split in ("dev", "eval"):
        file = f"scores_{split}.tsv"
        (names, found), (others, expected) = (
            read_scores(folder / file) for folder in (out, results / "evaluate")
        )
        assert names == others
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-3)


def test_a_recording_that_is_damaged_since_is_one_line(results, corpus, tmp_path):
    """Its header is right, so it is found when it is scored; dev is done by then."""
    shutil.copytree(corpus / "corpus", tmp_path / "corpus")
    bad = tmp_path / "corpus/flac_E_eval/E_0000000003.flac"
    wav = np.full(16000, np.nan, dtype=np.float32)
    soundfile.write(bad, wav, 16000, format="WAV", subtype="FLOAT")
    words = evaluation(corpus, tmp_path / "out", results / "small/final")
    words.append(f"--data_folder={tmp_path}/corpus")
    code, lines = run("evaluate", words, tmp_path / "stderr")
    assert code == 1
    assert lines[-1].startswith(f"error: {bad}: NaN or infinite samples")
    assert (tmp_path / "out/logits_dev.npz").is_file()
    assert not list((tmp_path / "out").glob("scores_*"))


def test_hybrid_pruning_of_the_recipe(corpus, tmp_path):
    """The model is smaller, and still a detector."""
    config = waveform_config("wavlm")
    config.to_json_file(tmp_path / "tiny.json", use_diff=False)
    words = [*data_words(corpus), *SMALL, "--number_of_epochs=2", "--sparsity=0.4"]
    words += [f"--encoder_source={tmp_path}/tiny.json", "--warmup_steps=3"]
    words += ["--mhfa.heads=2", "--compression_size=8", "--embedding_size=8"]
    words += ["--multiple=1"]
    words = [
        "hparams/hybrid_wavlm_mhfa.yaml",
        *words,
        f"--output_folder={tmp_path}/out",
    ]
    code, lines = run("train", words, tmp_path / "stderr")
    assert code == 0, lines
    model = load_pretrained(tmp_path / "out/final")
    training = json.loads((tmp_path / "out/final/training.json").read_text())
    assert training["epoch"] == 2
    assert training["total_parameters"] == sum(p.numel() for p in model.parameters())
    assert (tmp_path / "out/structure.png").is_file()
    assert type(model.head) is Detection
    full = count_parameters(WavLMEncoder(config)).total
    assert count_parameters(model.encoder).total <= 0.62 * full


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["--splits=[train]"], "recordings of neither dev nor eval"),
        (["--data_folder=/nowhere"], "/nowhere"),
        (["--n_resamples=1"], "n_resamples: 1, expected 0 or at least 2"),
        (["--calibrator=/nowhere.json"], "/nowhere.json"),
        (["--pretrained_folder=/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line(results, corpus, tmp_path, words, culprit):
    words = [*evaluation(corpus, tmp_path / "out", results / "small/final"), *words]
    code, lines = run("evaluate", words, tmp_path / "stderr")
    assert code == 1
    assert lines[-1].startswith("error: ")
    assert culprit in lines[-1]
    assert not list((tmp_path / "out").glob("*.npz"))


def test_a_list_of_one_class(corpus, results, tmp_path):
    """Found before anything is scored."""
    for path in (corpus / "corpus").iterdir():
        (tmp_path / path.name).symlink_to(path)
    protocol = tmp_path / SPLITS["eval"][2]
    lines = protocol.read_text().splitlines(keepends=True)
    protocol.unlink()
    protocol.write_text("".join(line for line in lines if " spoof " in line))
    words = evaluation(corpus, tmp_path / "out", results / "small/final")
    words.append(f"--data_folder={tmp_path}")
    code, found = run("evaluate", words, tmp_path / "stderr")
    assert code == 1
    assert "0 bonafide and 12 spoof in eval, expected some of both" in found[-1]
    assert not list((tmp_path / "out").glob("*.npz"))
