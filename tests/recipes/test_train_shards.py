"""train.py from shards: one key changes where recordings are read, and nothing else."""

import pytest
from recipe_scripts import SMALL, data_words, run, run_on_two, write_recipe_corpus

from speechbrain_ext.data.shards.writer import make_shards

YAML = "hparams/stage1_adapter_mfa.yaml"
WEIGHTS = "final/speaker_encoder.safetensors"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_recipe_corpus(tmp_path_factory.mktemp("corpus"))


def words_of(corpus, out, *more):
    words = [YAML, *data_words(corpus), *SMALL, f"--encoder_source={corpus}/tiny.json"]
    return [*words, f"--output_folder={out}", *more]


@pytest.fixture(scope="module")
def from_files(corpus, tmp_path_factory):
    """A run that reads the files, noises from the disk; and shards of its manifest."""
    folder = tmp_path_factory.mktemp("files")
    words = words_of(corpus, folder / "out", "--noise_cache_mib=0")
    code, lines = run("train", words, folder / "stderr")
    assert code == 0, lines
    manifest = folder / "out/prepared/train.csv"
    make_shards([manifest], folder / "shards", 10, num_workers=1)
    return folder


def test_the_weights_are_those_of_the_files(corpus, from_files, tmp_path):
    out = tmp_path / "out"
    words = words_of(corpus, out, f"--shards={from_files}/shards", "--num_workers=1")
    code, lines = run("train", words, tmp_path / "stderr")
    assert code == 0, lines
    expected = (from_files / "out" / WEIGHTS).read_bytes()
    assert (out / WEIGHTS).read_bytes() == expected
    log = (out / "log.txt").read_text()
    assert f"28 utterances are read from {from_files}/shards" in log
    assert "files decoded in 0 MiB of memory, once for this machine; 0 files" in log
    lines = (out / "train_log.txt").read_text().splitlines()
    assert len(lines) == 2
    shares = [line.split("train waiting: ")[1].split("%")[0] for line in lines]
    assert all(0 <= float(share) <= 100 for share in shares)


@pytest.mark.slow  # two processes, three times
def test_the_order_of_shards_on_two_ranks(corpus, from_files, tmp_path):
    more = ("--shard_window=8", f"--shards={from_files}/shards", "--batch_size=2")
    weights = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        words = words_of(corpus, folder / "out", *more, "--distributed_backend=gloo")
        codes, texts = run_on_two("train", [*words, "--device=cpu"], folder)
        assert codes == [0, 0], texts
        weights.append((folder / "out" / WEIGHTS).read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != (from_files / "out" / WEIGHTS).read_bytes()
    log = (tmp_path / "a/out/log.txt").read_text()
    assert "the order is that of the shards, mixed within 8 utterances" in log


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--shards=nowhere"], "nowhere: no *.tar file"),
        (["--shard_window=8"], "shard_window: 8 without shards"),
        (["--noise_cache_mib=-1"], "noise_cache_mib: -1, expected"),
        (["--max_bad_recordings=-1"], "max_bad_recordings: -1, expected"),
    ],
)
def test_bad_settings_are_one_line(corpus, tmp_path, words, expected):
    words = words_of(corpus, tmp_path / "out", *words)
    code, lines = run("train", words, tmp_path / "stderr")
    assert code == 1
    assert lines[-1].startswith("error: ")
    assert expected in lines[-1]


def test_shards_of_other_recordings_are_refused(corpus, from_files, tmp_path):
    assert len(list((from_files / "shards").glob("*.tar"))) == 3
    words = words_of(corpus, tmp_path / "out", f"--shards={from_files}/shards")
    words += ["--n_valid_speakers=0"]
    code, lines = run("train", words, tmp_path / "stderr")
    assert code == 1
    assert "expected all 42 of the manifest (14 are missing)" in lines[-1]
