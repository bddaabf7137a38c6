"""One line for an error, whole files or none."""

import errno
import json
import os
import signal
import time

import pytest
from tiny_training import on_a_full_disk, start
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
)

from speechbrain_ext.utils.errors import (
    InputError,
    command_line,
    describe_os_error,
    naming,
)
from speechbrain_ext.utils.files import (
    sync_folder,
    write_atomically,
    write_folder_atomically,
    write_json,
)


def exit_of(main, capsys):
    """(exit code, lines on stderr) of a wrapped main."""
    with pytest.raises(SystemExit) as stopped:
        command_line(main)()
    return stopped.value.code, capsys.readouterr().err.splitlines()


def raiser(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a.wav: 8000 Hz, expected 16000 Hz"), 1, None),
        (InputError("two\n  lines"), 1, "error: two lines"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "x/y.txt"),
            *(1, "error: x/y.txt: No such file or directory"),
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "big.bin"),
            *(1, "error: big.bin: no space left on the device; free some and run"),
        ),
        (OSError("odd"), 1, "error: (no file name): odd"),
        (KeyboardInterrupt(), 130, "error: interrupted by the user"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, code, line, capsys):
    found, lines = exit_of(raiser(error), capsys)
    assert found == code
    assert len(lines) == 1
    assert lines[0].startswith(line or f"error: {error}")


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        command_line(lambda: 1 / 0)()


def test_a_culprit_is_named_before_the_message():
    caught = pytest.raises(InputError, match=r"^list.txt: 3 is wrong$")
    with caught as error, naming("list.txt"):
        raise InputError("3 is wrong")
    assert isinstance(error.value.__cause__, InputError)
    with pytest.raises(ValueError, match=r"^ours$"), naming("list.txt"):
        raise ValueError("ours")


def test_exit_codes_and_results_pass():
    assert command_line(lambda x, y=0: x + y)(1, y=2) == 3
    with pytest.raises(SystemExit) as stopped:
        command_line(raiser(SystemExit(143)))()
    assert stopped.value.code == 143


def _die_late():
    import atexit

    # an ordinary exit would wait for this, as for a collective that never ends
    atexit.register(time.sleep, 60)
    command_line(raiser(InputError("bad")))()


def test_one_of_several_processes_leaves_at_once(tmp_path):
    told = tmp_path / "told.json"
    process = start(
        *(_die_late,),
        stderr=tmp_path / "err",
        WORLD_SIZE=2,
        RANK=1,
        TORCHELASTIC_ERROR_FILE=told,
    )
    process.join(30)
    assert process.exitcode == 1
    assert (tmp_path / "err").read_text() == "error: rank 1: bad\n"
    # as torchrun reads it
    failure = ProcessFailure(local_rank=1, pid=process.pid, exitcode=1, error_file=told)
    text = str(ChildFailedError("train.py", {1: failure}))
    assert text.count("rank 1: bad") == 1
    assert abs(failure.timestamp - time.time()) < 60


def test_describe_names_the_file():
    error = OSError(errno.EACCES, "Permission denied", "/a/b")
    assert describe_os_error(error) == "/a/b: Permission denied"


# ---- files ---------------------------------------------------------------------------


def test_a_file_is_written_with_its_folder(tmp_path):
    path = tmp_path / "new/folder/x.txt"
    with write_atomically(path) as file:
        file.write("λ\n")
        assert not path.exists()
    assert path.read_bytes() == "λ\n".encode()
    with write_atomically(path, "wb") as file:
        file.write(b"\x00")
    assert path.read_bytes() == b"\x00"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]


def _fail_in_between(path, error):
    with write_atomically(path) as file:
        file.write("new")
        raise error


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(type(error)):
        _fail_in_between(path, error)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("size", [4000, 4_000_000])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, size):
    path = tmp_path / "x.txt"
    path.write_text("old")
    line = on_a_full_disk(size // 2, tmp_path / "err", _write, path, "x" * size)
    assert line == f"error: {path}: File too large"
    assert path.read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"x.txt", "err"}


def _write_and_be_killed(path):
    with write_atomically(path) as file:
        file.write("new")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def test_killed_in_between_the_old_file_stays(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    process = start(_write_and_be_killed, path)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_two_writers_do_not_mix(tmp_path):
    path = tmp_path / "x.txt"
    with write_atomically(path) as ours:
        ours.write("ours")
        process = start(_write, path, "theirs")
        process.join(30)
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours"


def _write(path, text):
    with write_atomically(path) as file:
        file.write(text)


def test_json_round_trip(tmp_path):
    value = {"b": [1, 2.5, None], "a": "ü"}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == value
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == value


def test_sync_folder_changes_nothing(tmp_path):
    (tmp_path / "a").write_text("x")
    sync_folder(tmp_path)
    assert (tmp_path / "a").read_text() == "x"
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "absent")


def test_a_folder_that_cannot_be_made_has_the_name_that_the_user_gave(tmp_path):
    """Not that of the one beside it."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(NotADirectoryError) as caught,
        write_folder_atomically(tmp_path / "file" / "x"),
    ):
        pass
    assert describe_os_error(caught.value) == f"{tmp_path}/file/x: Not a directory"
    with (
        pytest.raises(FileNotFoundError) as caught,
        write_folder_atomically(tmp_path / "x") as beside,
    ):
        (beside / "absent").read_text()
    assert caught.value.filename == f"{tmp_path}/x/absent"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
