"""Runs the stages of a chain, each once, wherever the chain was stopped before.

Below the chain's folder, ``chain/STAGE.json`` says what a stage is made from: the text
of its YAML file, its overrides, and what the stages before it are made from. It is
written when the stage begins, and last of all once more, with ``done``; a stage whose
folder was removed has not begun. What only says how the work is done (number of
processes, batch size, loader workers, device: ``HOW``) may change. Anything else that
changed is refused, since a stage continues from its own checkpoints, and which of two
results is worth keeping is not the program's to say.

Two locks of the system, which end with their processes: of the chain, so that there is
one, and of the stage, which a stage inherits and keeps where its chain was killed. It
is told to stop then, and the next chain waits for its end.

SIGTERM, SIGINT and SIGUSR1 are passed on to the stage, under torchrun to its ranks,
which have time for a checkpoint there: torchrun itself would end them after 30 s.
"""

import contextlib
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from speechbrain_ext.chains.plan import describe
from speechbrain_ext.chains.progress import (
    BEGIN,
    Progress,
    clock,
    last_line,
    lines_of,
    reason,
)
from speechbrain_ext.chains.results import rows_of, write_results
from speechbrain_ext.training.resumable import STOPPING
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import write_json
from speechbrain_ext.utils.jobs import digest_of

# Overrides that decide how a stage is computed, and not what.
HOW = (
    *("device", "distributed_backend", "noprogressbar", "num_workers", "output_folder"),
    *("batch_size", "global_batch", "grad_accumulation_factor", "max_batch_seconds"),
    *("gradient_checkpointing", "valid_batch_seconds", "noise_cache_mib", "shards"),
    *("ckpt_interval_minutes", "ckpt_interval_steps", "max_bad_recordings"),
)
POLL = 0.1  # seconds
_PR_SET_PDEATHSIG = 1


def run_chain(chain, plan_only=False):
    """Show the plan, run what is left of it, show the table of results.

    Arguments
    ---------
    chain : Chain
    plan_only : bool
        Stop after the plan; nothing is written.

    Raises
    ------
    InputError
        Another chain runs in the folder, a stage was made from something else, or a
        stage failed.
    SystemExit
        With 128 + the signal's number, when stopped so.
    """
    _check_launcher(chain.launcher)
    made_from = _made_from(chain)
    if plan_only:
        states = _states(chain, made_from)
        print("\n".join(describe(chain, states)), flush=True)
        return
    with _locked(chain), _Signals() as signals:
        states = _states(chain, made_from)
        print("\n".join(describe(chain, states)), flush=True)
        rows, began = [], time.monotonic()
        for number, stage in enumerate(chain.stages, start=1):
            title = f"[{number}/{len(chain.stages)}] {stage.name}"
            if states[stage.name] == "done":
                print(f"{title}: done before", flush=True)
            else:
                _run_stage(chain, stage, title, made_from[stage.name], signals)
                states[stage.name] = "done"
            done = [name for name, state in states.items() if state == "done"]
            # of stages so far: a later one may have been done before
            if (found := rows_of(chain, done)) != rows:
                rows = found
                lines = write_results(chain, rows)
        took = clock(time.monotonic() - began)
        print(f"all {len(chain.stages)} stages are done; this took {took}")
        if rows:
            print("", *lines, f"({chain.folder / 'results.md'})", sep="\n")
        for stage in chain.stages:
            if stage.show:
                print("", *lines_of(_log(chain, stage)), sep="\n")
        print(chain.end, end="", flush=True)


# ---- what is done --------------------------------------------------------------------


def _made_from(chain):
    """Stage → all that decides on its result."""
    found = {}
    for stage in chain.stages:
        about = {"needs": {name: digest_of(found[name]) for name in stage.needs}}
        if stage.hparams:
            about["file"] = digest_of(stage.hparams.read_text(encoding="utf-8"))
            about["script"] = Path(stage.words[0]).name
            about["overrides"] = {
                key: text
                for key, text in sorted(stage.overrides.items())
                if key.split(".")[-1] not in HOW
            }
        else:
            about["words"] = stage.words
        found[stage.name] = about
    return found


def _record(chain, stage):
    return chain.folder / "chain" / f"{stage.name}.json"


def _states(chain, made_from):
    """Stage → "to do", "begun" or "done"; InputError: made from something else."""
    states = {}
    for stage in chain.stages:
        found, there = _read_record(_record(chain, stage)), stage.folder.exists()
        if found is None or not (there or found["folder"] is False):
            states[stage.name] = "to do"
            continue
        if changed := _difference(found["made_from"], made_from[stage.name]):
            later = [s.name for s in chain.stages if _rests_on(chain, s, stage.name)]
            folders = " ".join(str(chain.folder / name) for name in later)
            raise InputError(
                f"{stage.name}: {changed} since it was {found['state']}; expected the "
                "same, or another --output_folder, or, to make it and what rests on it "
                f"anew: rm -r {folders}"
            )
        states[stage.name] = found["state"]
    return states


def _log(chain, stage):
    return chain.folder / "chain" / f"{stage.name}.log"


def _read_record(path):
    """A record, or None where there is none that is whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if {"made_from", "state", "folder"} <= set(found) else None
    except (OSError, ValueError):
        return None


def _difference(before, now):
    """What changed, in words; "" for nothing."""
    if before == now:
        return ""
    one, two = before.get("overrides", {}), now.get("overrides", {})
    for key in sorted({*one, *two}):
        if one.get(key) != two.get(key):
            seen, new = (side.get(key, "the file's own") for side in (one, two))
            return f"{key} has changed from {seen} to {new}"
    for key, words in (("file", "its YAML file"), ("script", "its script")):
        if before.get(key) != now.get(key):
            return f"{words} has changed"
    for name, digest in now.get("needs", {}).items():
        if before.get("needs", {}).get(name) != digest:
            return f"{name}, which it starts from, has changed"
    return "its command has changed"


def _rests_on(chain, stage, name):
    """Whether a stage is the one of that name, or needs it through any others."""
    by_name = {stage.name: stage for stage in chain.stages}
    return stage.name == name or any(
        _rests_on(chain, by_name[need], name) for need in stage.needs
    )


# ---- one stage -----------------------------------------------------------------------


def _run_stage(chain, stage, title, made_from, signals):
    """Run it to its end, and mark it done."""
    signals.stop_before(stage)
    record, log = _record(chain, stage), _log(chain, stage)
    stage.folder.parent.mkdir(parents=True, exist_ok=True)
    command = command_of(chain, stage)
    print(f"{title}\n$ {_shown(command)}", flush=True)
    write_json(record, {"made_from": made_from, "state": "begun", "folder": None})
    began = time.monotonic()
    with Progress(title, log) as progress:
        code = _wait(chain, stage, command, log, progress, signals)
    took = clock(time.monotonic() - began)
    if code == 0:
        made = {"made_from": made_from, "folder": stage.folder.exists()}
        write_json(
            record,
            {**made, "state": "done", "seconds": round(time.monotonic() - began)},
        )
        said = "" if stage.show else f"  {last_line(log)[:100]}"  # or: at the end
        print(f"{title}: done in {took}{said}", flush=True)
        return
    signals.stop_before(stage)
    raise InputError(
        f"{stage.name} ended with exit code {code} after {took}: {reason(log)}; "
        f"its log: {log}"
    )


def _shown(command):
    """A command as it may be typed where the chain was started."""
    here = f"{os.getcwd()}{os.sep}"
    words = ["python" if word == sys.executable else word for word in command]
    return shlex.join([word.replace(here, "") for word in words])


def command_of(chain, stage):
    """The words of a stage's command, launcher and python included."""
    if not (stage.launched and chain.launcher):
        return [sys.executable, *stage.words]
    if _by_torchrun(chain.launcher):
        return [*chain.launcher, *stage.words]
    return [*chain.launcher, sys.executable, *stage.words]


def _by_torchrun(launcher):
    """Whether the last of the launcher's programs is torchrun, which starts python."""
    names = [Path(word).name for word in launcher]
    return "torchrun" in names or "torch.distributed.run" in names


def _check_launcher(launcher):
    """InputError for a launcher whose processes would not know of one another."""
    program = Path(launcher[0]).name if launcher else ""
    if program in ("srun", "mpirun") and not _by_torchrun(launcher):
        raise InputError(
            f"--launcher={shlex.join(launcher)}: each task would train alone, expected "
            f"torchrun behind it: {program} --ntasks-per-node=1 torchrun --nnodes=2 "
            "--nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=node0:29500"
        )


def _wait(chain, stage, command, log, progress, signals):
    """Start the command, pass signals on, show progress → its exit code."""
    with _stage_lock(chain, signals, stage) as lock, open(log, "ab") as output:
        line = f"{BEGIN}{time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n"
        output.write(line.encode())
        output.flush()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # or a terminal's Ctrl-C would reach it twice
                start_new_session=True,
                pass_fds=[lock],
                preexec_fn=_stop_with_parent(os.getpid()),
            )
        except OSError as error:
            raise InputError(f"{command[0]}: {error.strerror}") from error
        passed = 0
        while True:
            try:
                return process.wait(POLL)
            except subprocess.TimeoutExpired:
                progress.show()
            for number in signals.seen[passed:]:
                passed += 1
                _pass_on(number, process, command, stage)


def _pass_on(number, process, command, stage):
    """Send a signal to a stage: under torchrun to its ranks.

    Not to all processes: loader workers leave it to their rank, which would miss them.
    """
    targets = [process]
    with contextlib.suppress(psutil.Error, OSError):
        if _by_torchrun(command):
            children = psutil.Process(process.pid).children()
            ranks = [child for child in children if stage.words[0] in child.cmdline()]
            targets = ranks or targets
        for target in targets:
            target.send_signal(number)


def _stop_with_parent(parent):
    """A function for the new process: SIGTERM comes when the chain is gone (Linux)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask():
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # gone before it could be asked for
            os._exit(128 + signal.SIGTERM)

    return ask


# ---- locks and signals ---------------------------------------------------------------


@contextlib.contextmanager
def _locked(chain):
    """Nobody else runs a chain in this folder; InputError: somebody does."""
    path = chain.folder / "chain" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        if not _lock(file.fileno()):
            file.seek(0)
            raise InputError(
                f"{chain.folder}: another chain (process {file.read().strip()}) is "
                "running in it, expected one at a time"
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def _stage_lock(chain, signals, stage):
    """→ a descriptor that the stage inherits: as long as it lives, no other starts."""
    with open(chain.folder / "chain" / "stage_lock", "a") as file:
        told = False
        while not _lock(file.fileno()):
            if not told:
                print("waiting for the stage of a chain that was killed", flush=True)
            told = True
            signals.stop_before(stage)
            time.sleep(POLL)
        yield file.fileno()


def _lock(descriptor):
    """Whether this process, and those that inherit the descriptor, have it now."""
    try:
        import fcntl
    except ImportError as error:
        raise InputError("chains need Linux or macOS") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Signals:
    """Remembers which signals to stop came, in their order."""

    def __init__(self):
        self.seen, self.before = [], {}

    def __enter__(self):
        for number in STOPPING:
            self.before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number, frame):
        self.seen.append(number)

    def stop_before(self, stage):
        """SystemExit where a signal came before the stage was done."""
        if self.seen:
            name = signal.Signals(self.seen[0]).name
            line = f"stopped by {name} in {stage.name}; the same command continues"
            print(line, file=sys.stderr, flush=True)
            raise SystemExit(128 + self.seen[0])
