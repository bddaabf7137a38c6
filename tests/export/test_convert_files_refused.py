"""Checkpoint files that are damaged, hostile or others: one line, nothing written."""

import json
import os
import subprocess
import sys

import pytest
from released_checkpoints import (
    checkpoint,
    refused,
    save,
    with_lora,
    write_config,
)
from safetensors.torch import save_file
from tiny_encoder import noise

from speechbrain_ext.__main__ import main
from speechbrain_ext.inference import convert_released
from speechbrain_ext.pretrained import load_pretrained
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


# -- files -----------------------------------------------------------------------------


class Hostile:
    """Makes a folder when it is unpickled as code."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        """What pickle would call."""
        return os.mkdir, (self.path,)


def test_hostile_pickle_is_not_run(tmp_path, names):
    ran = tmp_path / "ran"
    content = {**checkpoint(names), "epoch_idx": Hostile(ran)}
    refused(tmp_path, content, "refused, loading it would run [a-z]+.mkdir")
    assert not ran.exists()


def test_dictionary_inside_itself(tmp_path, names):
    content = checkpoint(names)
    content["modules"]["again"] = content
    refused(tmp_path, content, "a dictionary inside itself")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.999])
def test_truncated(tmp_path, names, kept):
    path = save(checkpoint(names), tmp_path / "model.pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    refused(tmp_path, path, "truncated or no torch file")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html>\n<html><head></head></html>", "web page.*/resolve/"),
        (b"\n  <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "LFS pointer"),
        (b'{"error": "not found"}', "JSON text"),
        (b"Entry not found", "truncated or no torch file"),
        (b"PK\x03\x04" + bytes(100), "truncated or no torch file"),
        (bytes(1000), "truncated or no torch file"),
    ],
)
def test_other_content(tmp_path, content, match):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    refused(tmp_path, path, match)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_safetensors(tmp_path, names, name):
    path = tmp_path / name
    save_file(names, path)
    refused(tmp_path, path, "a safetensors file")


def test_folder_and_nothing(tmp_path):
    (tmp_path / "model").mkdir()
    refused(tmp_path, tmp_path / "model", "a folder, expected a published checkpoint")
    refused(tmp_path, tmp_path / "absent.pth", "no such file")


@pytest.mark.parametrize("content", [[1, 2], noise(3), {}, {"epoch_idx": 3}])
def test_other_torch_files(tmp_path, content):
    refused(tmp_path, content, "holds a|no tensors front.encoder")


# -- the folder ------------------------------------------------------------------------


def test_what_is_converted_is_not_lost(tmp_path, names):
    """The folder is replaced as a whole; a checkpoint inside would go with it."""
    path = save(checkpoint(names), tmp_path / "model.pth")
    folder = convert_released(path, tmp_path / "out")
    inside = folder / "model.pth"
    inside.write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"holds model\.pth, which would be lost"):
        convert_released(inside, folder)
    config = write_config(folder)
    with pytest.raises(InputError, match=r"holds encoder_config\.json"):
        convert_released(path, folder, config)
    assert inside.is_file()


def test_folder_of_something_else(tmp_path, names):
    path = save(checkpoint(names), tmp_path / "model.pth")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="exists and is not a pretrained folder"):
        convert_released(path, other)
    assert (other / "thesis.txt").is_file()


# -- the command -----------------------------------------------------------------------


def test_command(tmp_path, names):
    path = save(checkpoint(with_lora(names, 2)), tmp_path / "model.pth")
    folder = tmp_path / "out"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "speechbrain_ext", "convert", path),
            *("--output", folder, "--lora_alpha", "3", "--licence", "CC0"),
            *("--encoder_config", write_config(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{folder}\n"
    for found in ("AdapterMFA", "LoRA of rank 2, alpha 3", "left out", "parameters"):
        assert found in done.stderr
    kept = json.loads((folder / "training.json").read_text())["converted_from"]
    assert kept["licence"] == "CC0"
    assert kept["lora"]["alpha"] == 3
    load_pretrained(folder)


def test_command_of_bad_input(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["convert", str(tmp_path / "absent.pth"), "--output", str(tmp_path)])
    assert caught.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
