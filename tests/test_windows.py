"""What Windows lacks is not needed to verify, to embed and to train.

There is no Windows here: a process of its own takes away what Python has on POSIX
alone, then imports the whole package and works with it. Other people's packages are
imported before: they look at the system for themselves.
"""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import multiprocessing, os, signal, sys

for name in ("pthread_sigmask", "sigwaitinfo", "sigwait", "sigtimedwait"):
    delattr(signal, name)
import fcntl, mmap
import matplotlib.figure, peft, pyarrow.csv, scipy.stats, scipy.signal, soundfile
import torch._dynamo, torch.distributed, torchaudio, transformers, filelock, psutil
import silero_vad
import speechbrain.core, speechbrain.inference.speaker
from speechbrain.lobes.models import ECAPA_TDNN
from transformers import Wav2Vec2BertModel

access, fsync = fcntl.fcntl, os.fsync


def fsync_as_windows(descriptor):
    if access(descriptor, 3) & os.O_ACCMODE == os.O_RDONLY:  # 3 is F_GETFL
        raise OSError(9, "Bad file descriptor")
    fsync(descriptor)


os.fsync = fsync_as_windows
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None
for name in (
    *("preadv", "pread", "pwritev", "readv", "fork", "forkpty", "sched_getaffinity"),
    *("memfd_create", "posix_fadvise", "uname", "getuid", "geteuid", "fchown", "chown"),
    *("O_CLOEXEC", "O_DIRECTORY", "O_SYNC", "mkfifo", "killpg", "nice", "wait"),
):
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "SIGXFSZ", "alarm", "pause"):
    delattr(signal, name)
for name in [n for n in dir(mmap) if n.startswith(("MAP_", "PROT_", "MADV_"))]:
    delattr(mmap, name)
sys.platform = "win32"

import importlib, io, json, pkgutil, tarfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import speechbrain_ext

for module in pkgutil.walk_packages(speechbrain_ext.__path__, "speechbrain_ext."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
sys.platform = "linux"  # soundfile would call Windows

from tiny_training import train, tiny_run, write_corpus
from tiny_verifier import load, make_folder, write_voice

from speechbrain_ext.cli import main
from speechbrain_ext.data.audio import read_audio
from speechbrain_ext.data.shards import writer
from speechbrain_ext.utils.parallel import START_METHOD, signals_held

root = Path(sys.argv[1])
paths = [write_voice(root / f"{n}.wav", n) for n in range(2)]
folder = str(make_folder(root / "model"))


def command(*arguments):
    with redirect_stdout(io.StringIO()) as said:
        main([*arguments, "--source", folder])
    return said.getvalue()


verified = json.loads(command("verify", *paths))
command("embed", *paths, "--out", str(root / "embeddings.npz"))
with np.load(root / "embeddings.npz") as file:
    assert len(file["ids"]) == 2
cosine = float(load(folder).compare(*paths).cosine)
assert abs(verified["scores"]["cosine"] - cosine) < 1e-5
command("enrol", "Anna", paths[0], "--voices", str(root / "voices.safetensors"))

brain, loader = tiny_run(write_corpus(root / "corpus"), root / "run", epochs=1)
train(brain, loader)
assert brain.optimizer_step == 7
assert START_METHOD is None
with signals_held():
    pass

with tarfile.open(root / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
    tar.add(paths[0], "a.wav")
member = f"{root / 'a.tar'}!a@512+{os.path.getsize(paths[0])}"
assert np.array_equal(read_audio(member), read_audio(paths[0]))
with writer._locked(root / "shards"):
    pass
print("all done")
"""


def test_nothing_of_posix_alone_is_needed(tmp_path):
    script = tmp_path / "as_windows.py"
    script.write_text(SCRIPT)
    folders = [Path(__file__).parent, Path(__file__).parents[1]]
    done = subprocess.run(
        [sys.executable, script, tmp_path],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "all done"
