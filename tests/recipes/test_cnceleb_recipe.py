"""The CN-Celeb recipe: its YAML files, and all of its steps, shrunken."""

import functools
import json
import re

import pytest
import recipe_scripts
import torch
from cnceleb_corpus import JOIN_SECONDS, RECIPE, write_cnceleb, write_lines
from recipe_scripts import SMALL
from tiny_training import tiny_config, write_musan, write_rirs

from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.losses import ArcFace
from speechbrain_ext.pretrained import load_pretrained, save_pretrained
from speechbrain_ext.scoring.embeddings import load_embeddings
from speechbrain_ext.scoring.score_files import read_score_table
from speechbrain_ext.utils.config import load_run
from speechbrain_ext.utils.run_options import RUN_OPTIONS

TRAINING = ("stage1_adapter_mfa", "stage1_lora_adapter_mfa", "stage2_joint")
EVERY = (*TRAINING, "verify")
PROTOCOLS = ("average", "concatenate")


def lines_of(folder, name):
    return (folder / "hparams" / f"{name}.yaml").read_text().splitlines()


def body(folder, name):
    lines = lines_of(folder, name)
    return lines[lines.index("# ---- run") :]


def header(name):
    lines = lines_of(RECIPE, name)
    return "\n".join(lines[: lines.index("# ---- run")])


# ---- YAML files ----------------------------------------------------------------------


def test_no_file_is_forgotten_here():
    assert {path.stem for path in (RECIPE / "hparams").glob("*.yaml")} == set(EVERY)


def without_corpus(lines):
    """Without where the corpus is and how it is prepared."""
    kept, inside = [], False
    keys = ("cnceleb", "prepare", "trial", "enrol")
    for line in lines:
        inside = line.startswith(keys) or (inside and line.startswith("    "))
        if not inside:
            kept.append(line)
    return kept


@pytest.mark.parametrize("name", EVERY)
def test_all_but_the_corpus_is_as_for_voxceleb(name):
    """Whose numbers are tested against the published ones."""
    ours, theirs = (body(f, name) for f in (RECIPE, recipe_scripts.RECIPE))
    assert without_corpus(ours) == without_corpus(theirs)
    assert len(without_corpus(ours)) > 20


@pytest.mark.parametrize("name", EVERY)
def test_the_header_says_purpose_needs_command_and_one_override(name):
    text = header(name)
    script = "verify" if name == "verify" else "train"
    assert all(line.startswith("#") or not line for line in text.splitlines())
    assert "CN-Celeb" in text.splitlines()[0]
    assert "\n# Needs: " in text
    assert "\n# One override: --" in text
    assert re.search(rf"\n#   .*{script}\.py hparams/{name}\.yaml ", text)
    own = {w.split(":")[0].strip() for w in body(RECIPE, name)}
    words = set(re.findall(r"--(\w+)=", text)) - {"nproc_per_node"}
    assert words <= own | RUN_OPTIONS
    filled = re.findall(r"(\w+): !PLACEHOLDER", "\n".join(body(RECIPE, name)))
    assert set(filled) <= words, "the command leaves a placeholder unfilled"


@pytest.mark.parametrize("name", EVERY)
def test_it_loads(name, tmp_path, monkeypatch):
    monkeypatch.chdir(RECIPE)
    tiny_config().to_json_file(tmp_path / "tiny.json", use_diff=False)
    torch.manual_seed(0)
    model = SpeakerEncoder(W2VBertEncoder(tiny_config()), AdapterMFA(16, 2, 8, 256))
    save_pretrained(tmp_path / "final", model, ArcFace(256, 3), {})
    words = [f"--cnceleb1_folder={tmp_path}", f"--output_folder={tmp_path}/out"]
    if name != "verify":
        words += [f"--{key}_folder={tmp_path}" for key in ("cnceleb2", "musan", "rirs")]
    if name == "stage2_joint":
        words.append(f"--pretrained_folder={tmp_path}/final")
    elif name != "verify":
        words.append(f"--encoder_source={tmp_path}/tiny.json")
    function = "verify" if name == "verify" else "train"
    function = getattr(recipe_scripts.script(function), function)
    hparams = load_run([f"hparams/{name}.yaml", *words], function)[3]
    prepare = hparams["prepare"].keywords
    if name == "verify":
        assert prepare["enrolment"] == list(PROTOCOLS)
        assert hparams["trials"].keywords["enrolment"] == list(PROTOCOLS)
        return
    assert prepare["join_seconds"] == 5.0
    assert prepare["cnceleb2_folder"] == str(tmp_path)
    assert hparams["train_data"].keywords["speeds"] == [1.0, 0.9, 1.1]
    expected = 64 if "lora" in name else None
    assert (hparams.get("lora") or {}).get("r") == expected


# ---- the whole recipe ----------------------------------------------------------------

run = functools.partial(recipe_scripts.run, seconds=300, recipe=RECIPE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_cnceleb(folder)
    write_musan(folder / "musan")
    write_rirs(folder / "rirs")
    tiny_config().to_json_file(folder / "tiny.json", use_diff=False)
    return folder


def data_words(corpus):
    return [
        f"--cnceleb1_folder={corpus}/CN-Celeb_flac",
        f"--cnceleb2_folder={corpus}/CN-Celeb2_flac",
        *(f"--musan_folder={corpus}/musan", f"--rirs_folder={corpus}/rirs"),
        f"--join_seconds={JOIN_SECONDS}",
    ]


def stage1_words(corpus, out, name="stage1_lora_adapter_mfa"):
    return [
        *(f"hparams/{name}.yaml", *data_words(corpus), *SMALL),
        *(f"--encoder_source={corpus}/tiny.json", f"--output_folder={out}"),
        *(["--lora.r=2"] if "lora" in name else []),
    ]


def verify_words(corpus, out, *more):
    return [
        *("hparams/verify.yaml", data_words(corpus)[0], f"--output_folder={out}"),
        *("--num_workers=0", "--noprogressbar", "--n_resamples=20", *more),
    ]


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """Both stages, as LoRA Adapter-MFA."""
    folder = tmp_path_factory.mktemp("trained")
    small = [word for word in SMALL if "embedding_size" not in word]
    stages = [
        stage1_words(corpus, folder / "1"),
        [
            *("hparams/stage2_joint.yaml", *data_words(corpus), *small),
            *(f"--pretrained_folder={folder}/1/final", f"--output_folder={folder}/2"),
        ],
    ]
    for words in stages:
        code, lines = run("train", words, folder / "stderr")
        assert code == 0, lines
    return folder


@pytest.mark.slow
def test_both_stages_train_on_joined_recordings(trained):
    wavs = torch.randn(2, 8000)
    outputs = [load_pretrained(trained / f"{n}/final")(wavs) for n in (1, 2)]
    assert not torch.equal(*outputs)
    manifests = [(trained / f"{n}/prepared/train.csv").read_bytes() for n in (1, 2)]
    assert manifests[0] == manifests[1]
    train = read_manifest(trained / "2/prepared/train.csv")
    training = json.loads((trained / "2/final/training.json").read_text())
    assert training["speakers"] == train.speaker_names.tolist()
    assert training["n_speeds"] == 3
    assert any("+" in name for name in train.ids.tolist())
    log = (trained / "1/log.txt").read_text()
    assert "train, live_broadcast: 4 speakers, 4 utterances" in log
    assert (trained / "1/train.py").read_bytes() == (RECIPE / "train.py").read_bytes()


@pytest.mark.slow
def test_verification_with_every_step(corpus, trained, tmp_path):
    prepared = trained / "2/prepared"
    words = verify_words(
        *(corpus, tmp_path / "v", f"--pretrained_folder={trained}/2/final"),
        f"--training_manifest={prepared}/train.csv",
        f"--calibration_manifest={prepared}/valid.csv",
        *("--backend.top_n=2", "--calibration.shortest=0.1", "--calibration.l2=0.1"),
        "--calibration.n_trials=60",
    )
    code, lines = run("verify", words, tmp_path / "stderr")
    assert code == 0, lines
    results = json.loads((tmp_path / "v/results.json").read_text())["lists"]
    assert [result["enrolment"] for result in results] == list(PROTOCOLS)
    page = (tmp_path / "v/results.md").read_text()
    for result in results:
        systems = [row["system"] for row in result["systems"]]
        assert systems == ["cosine", "as_norm", "llr"]
        assert "intervals_95" in result["systems"][0]
        assert (result["trials"], result["targets"]) == (36, 9)
        table = result["genres"]
        # enroll.map tells the genre of enroll.lst's files, too
        assert table["enrol"] == ["interview", "all"]
        assert table["test"] == ["interview", "singing", "all"]
        assert table["targets"] == [[6, 3, 9]] * 2
        assert not table["enough"][0][0]
        name = result["enrolment"]
        assert f"by genre of trials.lst (36, enrolment: {name}), AS-norm + QMF:" in page
        assert f"| trials.lst (36, enrolment: {name}) | cosine | no | no | " in page
        assert (tmp_path / f"v/genres_trials_{name}.png").is_file()
    vectors = dict(zip(*load_embeddings(tmp_path / "v/embeddings.npz"), strict=True))
    check_enrolment(tmp_path / "v", vectors)


def check_enrolment(out, vectors):
    """Averaging takes enroll.map's recordings, concatenating enroll.lst's file."""
    for protocol in PROTOCOLS:
        trials, scores = read_score_table(out / f"scores_trials_{protocol}_cosine.npz")
        model, test = (trials.names[c[0]] for c in (trials.enrol, trials.test))
        speaker = model.removesuffix("-enroll")
        names = [f"enroll/{model}"]
        if protocol == "average":
            names = [f"{speaker}/interview-01-{n:03d}" for n in (1, 2)]
        one = sum(vectors[name].astype(float) for name in names)
        two = vectors[test].astype(float)
        expected = one @ two / (one @ one * (two @ two)) ** 0.5
        assert scores[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_given_embeddings_need_no_model_for_either_enrolment(corpus, trained, tmp_path):
    first = verify_words(
        corpus, tmp_path / "a", f"--pretrained_folder={trained}/1/final"
    )
    assert run("verify", first, tmp_path / "stderr")[0] == 0
    given = f"--embeddings={tmp_path}/a/embeddings.npz"
    words = verify_words(corpus, tmp_path / "b", given, "--enrolment=concatenate")
    assert run("verify", words, tmp_path / "stderr")[0] == 0
    name = "scores_trials_concatenate_cosine.npz"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not (tmp_path / "b/scores_trials_average_cosine.npz").exists()


@pytest.mark.slow
def test_adapter_mfa_without_lora(corpus, tmp_path):
    words = stage1_words(corpus, tmp_path / "out", "stage1_adapter_mfa")
    code, lines = run("train", words, tmp_path / "stderr")
    assert code == 0, lines
    training = json.loads((tmp_path / "out/final/training.json").read_text())
    assert training["trained_parameters"] < training["total_parameters"]


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        (
            "train",
            "--cnceleb1_folder={c}/no",
            "cnceleb1_folder: {c}/no: no such folder",
        ),
        ("train", "--cnceleb2_folder={c}/CN-Celeb_flac", "spk.lst: no such list"),
        (
            "train",
            "--join_seconds=-1",
            "join_seconds=-1, expected a number of at least",
        ),
        ("verify", "--cnceleb1_folder={c}", "{c}/eval/lists/trials.lst: no such list"),
        ("verify", "--enrolment=maximum", "enrolment: 'maximum', expected some of ave"),
        (
            "verify",
            "--pretrained_folder=",
            "pretrained_folder is not given, expected a",
        ),
        ("verify", "--n_resamples=1", "n_resamples: 1, expected 0 or at least 2"),
    ],
)
def test_wrong_settings_are_one_line(corpus, tmp_path, name, more, expected):
    (tmp_path / "final").mkdir()
    words = stage1_words(corpus, tmp_path / "out")
    if name == "verify":
        model = f"--pretrained_folder={tmp_path}/final"
        words = verify_words(corpus, tmp_path / "out", model)
    code, lines = run(name, [*words, more.format(c=corpus)], tmp_path / "stderr")
    assert code == 1, lines
    assert lines[-1].startswith("error: ")
    assert expected.format(c=corpus) in lines[-1]
    assert "Traceback" not in "\n".join(lines)


@pytest.mark.slow
def test_an_unknown_utterance_is_found_before_anything_is_embedded(
    corpus, trained, tmp_path
):
    first, _ = write_cnceleb(tmp_path)
    lines = (first / "eval/lists/trials.lst").read_text().splitlines()
    write_lines(
        first / "eval/lists/trials.lst", [*lines, "id00800-enroll test/none.wav 0"]
    )
    words = verify_words(
        *(tmp_path, tmp_path / "out", f"--pretrained_folder={trained}/1/final")
    )
    code, lines = run("verify", words, tmp_path / "stderr")
    assert code == 1
    assert "trials.lst: line 37: utterance 'test/none' is not in" in lines[-1]
    assert not (tmp_path / "out/embeddings.npz").exists()
