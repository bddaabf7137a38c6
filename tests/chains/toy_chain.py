"""A chain of scripts that take no time: a training that can be stopped, a verification.

``write_toy`` writes a recipe's folder; ``run_toy`` runs its chain in a process.
"""

import sys
from pathlib import Path

from tiny_training import start

from speechbrain_ext.chains.runner import run_chain
from speechbrain_ext.chains.stages import read_chain
from speechbrain_ext.utils.errors import command_line

TOY = """\
import json, os, signal, sys, time
from pathlib import Path


def toy(run_opts, /, *, output_folder: str, steps: int, lr: float = 1.0,
        pretrained_folder: str = None, data_folder: str = None, num_workers: int = 0,
        fails: bool = False):
    ...


def main():
    words = dict(word[2:].split("=", 1) for word in sys.argv[2:] if "=" in word)
    folder = Path(words["output_folder"])
    folder.mkdir(parents=True, exist_ok=True)
    stopped = []
    signal.signal(signal.SIGTERM, lambda *about: stopped.append(about[0]))
    saved = folder / "saved"
    step, value = json.loads(saved.read_text()) if saved.exists() else (0, 0.0)
    with open(folder / "starts", "a") as file:
        file.write(f"{step}\\n")
    former = words.get("pretrained_folder")
    if former:
        value += 0 if step else json.loads((Path(former) / "model").read_text())
    while step < int(words.get("steps", 3)):
        value, step = 0.5 * value + step * float(words.get("lr", 1)), step + 1
        beside = folder / "saved.new"
        beside.write_text(json.dumps([step, value]))
        os.replace(beside, saved)
        print(f"here - INFO - step {step}", flush=True)
        end = time.monotonic() + float(os.environ.get(f"SECONDS_OF_{folder.name}", 0))
        while not stopped and time.monotonic() < end:
            time.sleep(0.005)
        if stopped:
            print("stopped by SIGTERM", flush=True)
            sys.exit(143)
    if words.get("fails") == "True":
        print("error: the sky is falling", file=sys.stderr)
        sys.exit(1)
    (folder / "final").mkdir(exist_ok=True)
    (folder / "final/model").write_text(json.dumps(value))


if __name__ == "__main__":
    main()
"""
VERIFY = """\
import json, sys
from pathlib import Path


def toy_verify(run_opts, /, *, output_folder: str, pretrained_folder: str,
               data_folder: str = None):
    ...


if __name__ == "__main__":
    words = dict(word[2:].split("=", 1) for word in sys.argv[2:])
    value = json.loads((Path(words["pretrained_folder"]) / "model").read_text())
    system = {"system": "cosine", "title": "cosine", "cllr": None,
              "eer_percent": value, "min_dcf": {"0.01": 0.5}}
    lists = [{"list": "/lists/O.txt", "trials": 37611, "systems": [system]}]
    folder = Path(words["output_folder"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"lists": lists}))
"""
CHAIN = """\
overrides: {data_folder: null}
seconds_per_step: 3600
utterances: 8
stages:
    - name: one
      script: toy.py
      hparams: toy.yaml
    - name: two
      script: toy.py
      hparams: toy.yaml
      overrides: {pretrained_folder: <one>/final, steps: 4, lr: 2.0}
      gigabytes: 7
    - name: check
      script: toy_verify.py
      hparams: toy_verify.yaml
      overrides: {pretrained_folder: <two>/final}
      published: {cosine: {Vox1-O: 0.14}}
      hours: 3
    - name: copy
      command: [<recipe>/copy_model.py, <two>/final/model, <copy>]
end: |
    the copy is in <copy>
"""


def write_toy(folder, change=("", "")):
    """Scripts, hparams files and ``chain.yaml`` → the recipe's folder."""
    recipe = folder / "recipe"
    recipe.mkdir(exist_ok=True)
    (recipe / "toy.py").write_text(TOY)
    (recipe / "toy_verify.py").write_text(VERIFY)
    (recipe / "copy_model.py").write_text(
        "import pathlib, shutil, sys\n"
        "pathlib.Path(sys.argv[2]).mkdir(exist_ok=True)\n"
        "shutil.copy(sys.argv[1], sys.argv[2])\n"
    )
    (recipe / "toy.yaml").write_text(
        "output_folder: results/toy\nsteps: 3\npretrained_folder: null\n"
        "data_folder: !PLACEHOLDER\n"
    )
    (recipe / "toy_verify.yaml").write_text(
        "output_folder: results/toy_verify\npretrained_folder: !PLACEHOLDER\n"
    )
    assert change[0] in CHAIN
    (recipe / "chain.yaml").write_text(CHAIN.replace(*change, 1))
    return recipe


def words_of(recipe, *more):
    """The command line of the toy chain, of which ``data_folder`` must be given."""
    out = recipe.parent / "out"
    return [str(recipe / "chain.yaml"), f"--output_folder={out}", *more]


@command_line
def run_words(path, *words, plan_only=False):
    """As chain.py does."""
    recipe = Path(path).parent
    run_chain(read_chain(path, list(words), recipe), plan_only)


def printing(stdout, words):
    """In a process of its own: what it prints goes to a file."""
    sys.stdout = open(stdout, "w")  # noqa: SIM115
    run_words(*words)


def start_toy(recipe, *more, **environment):
    """Start the chain in a process: its output is ``stdout`` and ``stderr`` beside.

    ``SECONDS_OF_one=60`` has each step of that stage take so long.
    """
    folder = recipe.parent
    words = words_of(recipe, f"--data_folder={folder}", *more)
    stdout, stderr = folder / "stdout", folder / "stderr"
    return start(printing, stdout, words, stderr=stderr, **environment)


def run_toy(recipe, *more, seconds=200):
    """→ (exit code, lines of stdout, lines of stderr)."""
    process = start_toy(recipe, *more)
    process.join(seconds)
    process.kill()
    folder = recipe.parent
    streams = [(folder / name).read_text() for name in ("stdout", "stderr")]
    return process.exitcode, *(text.splitlines() for text in streams)
