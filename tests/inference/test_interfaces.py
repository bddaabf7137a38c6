"""SpeechBrain's own classes load a model's folder: embeddings and scores are ours."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file, save_file
from speechbrain.inference import EncoderClassifier, SpeakerRecognition
from speechbrain.inference.interfaces import foreign_class
from speechbrain.utils.fetching import FetchFrom, FetchSource
from tiny_verifier import load, make_folder, write_voice

from speechbrain_ext.inference import SpeakerVerifier
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

CUSTOM = {"pymodule_file": "custom_interface.py", "classname": "SpeakerVerifier"}
LOADERS = {
    "SpeakerRecognition": SpeakerRecognition.from_hparams,
    "EncoderClassifier": EncoderClassifier.from_hparams,
    "foreign_class": lambda **options: foreign_class(**CUSTOM, **options),
}
COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Its name has a space; it is read-only."""
    path = make_folder(tmp_path_factory.mktemp("models") / "my model")
    for file in path.iterdir():
        file.chmod(0o444)
    path.chmod(0o555)
    yield path
    path.chmod(0o755)


@pytest.fixture
def voices(tmp_path):
    return [str(write_voice(tmp_path / f"{n}.wav", n, 1.0 + n)) for n in range(2)]


def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 16000, generator=generator), torch.tensor([1.0, 0.5, 0.8])


def assert_ours(loaded, folder, voices):
    ours, (wavs, lens) = load(folder), batch()
    for normalize in (False, True):
        expected = ours.encode_batch(wavs, lens, normalize)
        found = loaded.encode_batch(wavs, lens, normalize)
        assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    if not hasattr(loaded, "verify_batch"):
        return
    pairs = wavs[:2], wavs[1:], lens[:2], lens[1:]
    found, _ = loaded.verify_batch(*pairs)
    assert torch.allclose(found, ours.verify_batch(*pairs)[0], rtol=0, atol=1e-5)
    found, _ = loaded.verify_files(*voices)
    assert torch.allclose(found, ours.verify_files(*voices)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("place", ["absolute", "relative", "savedir", "FetchSource"])
def test_from_a_folder(name, place, folder, voices, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent if place == "relative" else tmp_path)
    source = folder.name if place == "relative" else str(folder)
    options = {"savedir": str(tmp_path / "saved")} if place == "savedir" else {}
    if place == "FetchSource":
        source = FetchSource(FetchFrom.LOCAL, source)
    loaded = LOADERS[name](source=source, **options)
    assert_ours(loaded, folder, voices)
    assert isinstance(loaded, SpeakerVerifier) == (name == "foreign_class")


@pytest.mark.parametrize("name", LOADERS)
def test_the_random_state_stays(name, folder):
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    LOADERS[name](source=str(folder))
    assert torch.equal(torch.rand(4), expected)


def test_normalised_embeddings_have_length_1(folder):
    loaded = EncoderClassifier.from_hparams(source=str(folder))
    lengths = loaded.encode_batch(*batch(), normalize=True).norm(dim=-1)
    assert torch.allclose(lengths, torch.ones(3, 1), rtol=0, atol=1e-6)


def test_the_verifier_of_foreign_class_has_what_the_folder_has(whole, voices):
    loaded = foreign_class(source=str(whole), **CUSTOM)
    ours = load(whole)
    assert loaded.kinds == ours.kinds == ["cosine", "as_norm", "llr"]
    assert loaded.compare(*voices) == ours.compare(*voices)


# ---- strictly ------------------------------------------------------------------------


def without_a_tensor(folder):
    weights = load_file(folder / "speaker_encoder.safetensors")
    del weights[sorted(weights)[0]]
    save_file(weights, folder / "speaker_encoder.safetensors")


def with_one_more(folder):
    weights = load_file(folder / "speaker_encoder.safetensors")
    save_file(weights | {"more": torch.ones(1)}, folder / "speaker_encoder.safetensors")


def of_another_shape(folder):
    weights = load_file(folder / "speaker_encoder.safetensors")
    name = sorted(weights)[0]
    weights[name] = torch.ones(3, 3, 3)
    save_file(weights, folder / "speaker_encoder.safetensors")


def of_another_configuration(folder):
    path = folder / "encoder_config.json"
    config = json.loads(path.read_text()) | {"hidden_act": "gelu"}
    path.write_text(json.dumps(config))


def without_weights(folder):
    (folder / "speaker_encoder.safetensors").unlink()


@pytest.mark.parametrize("name", [*LOADERS, "ours"])
@pytest.mark.parametrize(
    ("damage", "culprit"),
    [
        (without_a_tensor, "speaker_encoder.safetensors"),
        (with_one_more, "more"),
        (of_another_shape, "speaker_encoder.safetensors"),
        (without_weights, "speaker_encoder.safetensors"),
        (of_another_configuration, "encoder_config.json: hidden_act is 'gelu'"),
    ],
)
def test_strictly(name, damage, culprit, folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        shutil.copyfile(file, copy / file.name)
    damage(copy)
    with pytest.raises(InputError, match=culprit):
        LOADERS.get(name, SpeakerVerifier.from_hparams)(source=str(copy))


# ---- the hub -------------------------------------------------------------------------


def hub_of(folder, asked):
    """A server of the hub's two kinds of answers, for one model, ``owner/model``."""
    names = sorted(path.name for path in folder.iterdir())

    class Hub(SimpleHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(with_content=False)

        def do_GET(self):
            self.answer(with_content=True)

        def answer(self, with_content):
            path = self.path.split("?")[0]
            if path.startswith("/api/models/owner/model/tree/"):
                sizes = {name: (folder / name).stat().st_size for name in names}
                tree = [
                    {"type": "file", "path": name, "size": size, "oid": name}
                    for name, size in sizes.items()
                ]
                return self.send(json.dumps(tree).encode(), with_content)
            if path.startswith("/api/models/owner/model"):
                siblings = [{"rfilename": name} for name in names]
                about = {"id": "owner/model", "sha": COMMIT, "siblings": siblings}
                return self.send(json.dumps(about).encode(), with_content)
            name = path.rpartition("/")[2]
            if "/owner/model/resolve/" not in path or name not in names:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            asked.add(name)
            return self.send((folder / name).read_bytes(), with_content, f'"{name}"')

        def send(self, content, with_content, etag='"about"'):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", etag)
            self.end_headers()
            if with_content:
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Hub)


SCRIPT = """
import socket, torch
from speechbrain.inference import EncoderClassifier, SpeakerRecognition
from speechbrain.inference.interfaces import foreign_class
from speechbrain_ext.inference import SpeakerVerifier
wavs = torch.load("wavs.pt")
loaders = (
    SpeakerRecognition.from_hparams,
    EncoderClassifier.from_hparams,
    lambda source, **options: foreign_class(
        source, pymodule_file="custom_interface.py", classname="SpeakerVerifier",
        **options),
    SpeakerVerifier.from_hparams,
)


def refused(*_):
    raise ConnectionRefusedError


for network in ("there", "gone"):
    for number, load in enumerate(loaders):
        for options in ({}, {"savedir": "saved"}):  # one for all of them
            found = load(source="owner/model", **options).encode_batch(wavs)
            torch.save(found, f"{network}{number}{len(options)}.pt")
    socket.socket.connect = refused
"""


def test_from_the_hub(folder, tmp_path):
    asked = set()
    hub = hub_of(folder, asked)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    wavs, _ = batch()
    torch.save(wavs, tmp_path / "wavs.pt")
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    cache = {"HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": address}
    try:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | cache | {"HF_HUB_DISABLE_XET": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        hub.shutdown()
        hub.server_close()
    assert done.returncode == 0, done.stderr
    expected = load(folder).encode_batch(wavs)
    found = list(tmp_path.glob("*[01].pt"))
    assert len(found) == 16
    for path in found:
        assert torch.allclose(torch.load(path), expected, rtol=0, atol=1e-5), path.name
    assert asked == {
        *("hyperparams.yaml", "custom_interface.py", "encoder_config.json"),
        *("speaker_encoder.safetensors", "training.json"),
    }
