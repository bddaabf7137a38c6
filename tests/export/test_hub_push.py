"""Sharing: a plan without a network, the upload to a hub of our own, its refusals."""

import base64
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled
from tiny_export import write_final

from speechbrain_ext.__main__ import main
from speechbrain_ext.export import hub
from speechbrain_ext.export.folder import export_model
from speechbrain_ext.export.hub import plan_push, push
from speechbrain_ext.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

FILES = [
    *("README.md", "custom_interface.py", "encoder_config.json", "hyperparams.yaml"),
    *("speaker_encoder.safetensors", "training.json"),
]


@pytest.fixture(scope="module")
def final(tmp_path_factory):
    """A trained model. Only to be read."""
    return write_final(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def exported(final, tmp_path):
    """Ready to be shared as me/voice."""
    export_model(final, tmp_path / "m", name="me/voice", licence="mit")
    return tmp_path / "m"


@pytest.fixture
def no_network(monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("a network call")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


# ---- the plan ------------------------------------------------------------------------


def test_a_dry_run_shows_everything_and_sends_nothing(exported, no_network, capsys):
    (exported / "LICENSE").write_text("x" * 11)
    (exported / ".cache").mkdir()
    (exported / ".cache/secret").write_text("x")
    main(["push", str(exported), "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"{exported} → https://huggingface.co/me/voice (private, where it is new)"
    )
    shown = {line.split()[1]: line for line in lines[1:-2]}
    assert list(shown) == sorted([*FILES, "LICENSE"])
    for name, line in shown.items():
        assert line.split()[0] == f"{(exported / name).stat().st_size:,}"
        assert ("not written by the export" in line) == (name == "LICENSE")
    total = sum((exported / name).stat().st_size for name in shown)
    assert lines[-2].split() == [f"{total:,}", "bytes", "in", "7", "files"]
    assert lines[-1] == "dry run: nothing was sent"


def test_public_only_where_asked_for(exported, capsys):
    assert plan_push(exported).private
    main(["push", str(exported), "--dry_run", "--public"])
    assert "(PUBLIC, if it is new)" in capsys.readouterr().out


def test_a_name_must_be_in_the_card(exported):
    with pytest.raises(InputError, match=r'code does not load "you/voice": export wi'):
        plan_push(exported, "you/voice")


@pytest.mark.parametrize(
    "name", ["voice", "a/b/c", "me/voice.", "me/vo ice", "/", "é/b"]
)
def test_a_name_that_is_none(exported, name):
    with pytest.raises(InputError, match=f"--name {name}: ") as caught:
        plan_push(exported, name)
    assert "\n" not in str(caught.value)


def test_no_name(final, tmp_path):
    export_model(final, tmp_path / "m", licence="mit")
    with pytest.raises(InputError, match="m: no name on the hub, expected --name own"):
        plan_push(tmp_path / "m")


def test_no_licence(final, tmp_path):
    export_model(final, tmp_path / "m", name="me/voice")
    with pytest.raises(InputError, match=r"README\.md: no license in the front matter"):
        plan_push(tmp_path / "m")


def test_not_an_export(final, tmp_path):
    for folder in (final, tmp_path):
        with pytest.raises(InputError, match=f"{folder.name}: not an exported folder"):
            plan_push(folder, "me/voice")
    with pytest.raises(InputError, match="absent: no such folder"):
        plan_push(tmp_path / "absent", "me/voice")


@pytest.mark.parametrize("name", [name for name in FILES if name != "training.json"])
def test_an_export_that_is_not_whole(exported, name):
    path = exported / name
    if name.endswith(".safetensors"):
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(InputError, match=f"{name}: not a whole file of weights"):
            plan_push(exported)
    path.unlink()
    with pytest.raises(InputError, match=f"{name}: no such file"):
        plan_push(exported)


# ---- the hub -------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for."""

    def log_message(self, *args):
        """Nothing on stderr."""

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if "/tree/" in self.path:
            file = {"type": "file", "oid": "0", "size": 1}
            self.answer([{**file, "path": path} for path in self.server.present])
        else:
            files = [{"rfilename": name} for name in self.server.present]
            self.answer({"id": "me/voice", "sha": "0" * 40, "siblings": files})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.calls.append((self.path, self.headers["Authorization"], body))
        if self.server.refuse:
            self.answer({"error": "refused here"}, self.server.refuse)
        elif self.path == "/api/repos/create":
            self.answer({"url": f"{self.server.address}/me/voice"})
        elif "/preupload/" in self.path:
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": f["path"], **mode} for f in json.loads(body)["files"]]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            address = f"{self.server.address}/me/voice/commit/1a"
            self.answer({"commitUrl": address, "commitOid": "1a"})
        else:
            self.answer({"errors": [], "warnings": []})


@pytest.fixture
def server(monkeypatch):
    """A hub on this machine, and a token for it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.calls, server.present, server.refuse = [], [], None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield server
    server.shutdown()
    server.server_close()


def commit_of(server):
    """(header, {path: bytes}, deleted paths) of the commit that was sent."""
    (body,) = (body for path, _, body in server.calls if "/commit/" in path)
    lines = [json.loads(line) for line in body.decode().splitlines()]
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in lines
        if line["key"] == "file"
    }
    deleted = [v["value"]["path"] for v in lines if v["key"] == "deletedFile"]
    return lines[0]["value"], files, deleted


def test_what_the_plan_shows_is_what_is_sent(exported, server, capsys):
    (exported / "LICENSE [mine]").write_text("free")
    (exported / ".DS_Store").write_text("x")
    server.present = ["cohort.npz", "README.md", "notes.txt"]
    main(["push", str(exported), "--message", "Better thresholds"])
    found = capsys.readouterr()
    assert found.out.strip().endswith("/me/voice/commit/1a")
    assert "bytes in 7 files" in found.err
    header, files, deleted = commit_of(server)
    assert header["summary"] == "Better thresholds"
    assert set(files) == {*FILES, "LICENSE [mine]"}
    for name, content in files.items():
        assert content == (exported / name).read_bytes()
    assert deleted == ["cohort.npz"]  # of an earlier export; notes.txt is the user's
    path, token, body = server.calls[0]
    assert (path, token) == ("/api/repos/create", "Bearer hf_of_a_test")
    assert json.loads(body)["visibility"] == "private"
    assert json.loads(body)["organization"] == "me"
    assert json.loads(body)["name"] == "voice"


def test_a_public_repository(exported, server):
    push(plan_push(exported, private=False))
    assert json.loads(server.calls[0][2])["visibility"] == "public"


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_the_hub_refuses_is_one_line(exported, server, status, capsys):
    server.refuse = status
    with pytest.raises(SystemExit, match="1"):
        main(["push", str(exported)])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: me/voice: ")
    assert f"{server.address} answers {status}: refused here" in line
    assert ("hf auth login" in line) == (status == 401)


def test_no_token(exported, no_network, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(InputError, match="me/voice: no token of the hub; log in with"):
        push(plan_push(exported))


def test_a_hub_that_cannot_be_reached(exported, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    message = r"not sent: http://127.0.0.1:1 cannot be reached \(.*refused\)"
    with pytest.raises(InputError, match=message):
        push(plan_push(exported))


def test_offline_mode(exported, server, monkeypatch):
    def offline(*args, **kwargs):
        raise OfflineModeIsEnabled("long")

    monkeypatch.setattr(hub.HfApi, "create_repo", offline)
    with pytest.raises(InputError, match=r"me/voice: .*HF_HUB_OFFLINE"):
        push(plan_push(exported))
