"""The published code as a peer: its encoder, from a folder that the user has.

Nothing of it is part of this project. It brings a fork of transformers that takes the
name of the installed one, so it runs in a process of its own, to which features are
given and which is idle between two calls. The fork's check of other packages' versions
is left out.
"""

import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

ADDRESS = "https://github.com/ZXHY-82/w2v-BERT-2.0_SV"
FORK = "deeplab/pretrained/audio2vector/module/transformers/src"
CONFIGURATIONS = "deeplab/pretrained/audio2vector/ckpts/facebook/w2v-bert-2.0"


def pruned_configuration(folder):
    """The shipped structure at 80 % sparsity → dict."""
    path = Path(folder, CONFIGURATIONS, "config_prune_stu_0.8.json")
    if not path.is_file():
        raise SystemExit(f"{path}: not found, expected the published code: {ADDRESS}")
    return json.loads(path.read_text())


class PublishedEncoder:
    """features [1, T, 160] → L+1 hidden states, computed by the published code.

    Arguments
    ---------
    folder : str
        The published code.
    values : dict
        Configuration of its encoder.
    weights : dict
        Name of every parameter → tensor.
    threads : int
        Of torch, in its process.
    scratch : str
        An existing folder for what is exchanged.
    """

    def __init__(self, folder, values, weights, threads, scratch):
        self.files = {
            name: str(Path(scratch, name))
            for name in ("config.json", "weights.safetensors", "x.npy", "states.npz")
        }
        Path(self.files["config.json"]).write_text(json.dumps(values))
        tensors = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(tensors, self.files["weights.safetensors"])
        self.process = subprocess.Popen(
            [sys.executable, __file__, folder, str(threads), *self.files.values()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._wait()

    def take(self, features):
        """What the next calls compute."""
        np.save(self.files["x.npy"], features.numpy())
        self._ask("take")

    def __call__(self):
        """One forward pass."""
        self._ask("run")

    def states(self):
        """Hidden states of one forward pass → list of torch.Tensor."""
        self._ask("keep")
        with np.load(self.files["states.npz"]) as states:
            return [torch.from_numpy(states[name]) for name in states.files]

    def close(self):
        """End its process."""
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        self._wait()

    def _wait(self):
        if self.process.stdout.readline() != "done\n":
            raise SystemExit("the published code failed: see its message above")


def serve(folder, threads, config, weights, x, states):
    """The other process: obey the words on stdin, answer each with "done"."""
    torch.set_num_threads(int(threads))
    model = load(folder, json.loads(Path(config).read_text()), weights)
    words = {
        "run": lambda features: model(features, output_hidden_states=True),
        "keep": lambda features: np.savez(
            states, *(s.numpy() for s in words["run"](features).hidden_states)
        ),
    }
    features = None
    print("done", flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            if line == "take\n":
                features = torch.from_numpy(np.load(x))
            else:
                words[line.strip()](features)
            print("done", flush=True)


def load(folder, values, weights):
    """The fork's model with these weights, in eval mode."""
    sys.path.insert(0, str(Path(folder, FORK)))
    check = types.ModuleType("transformers.dependency_versions_check")
    check.dep_version_check = lambda *arguments: None
    sys.modules[check.__name__] = check
    from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

    model = Wav2Vec2BertModel(Wav2Vec2BertConfig(**values))
    missing, unexpected = model.load_state_dict(load_file(weights), strict=False)
    if unexpected or set(missing) - {"masked_spec_embed"}:
        raise SystemExit(f"weights missing: {missing}, unexpected: {unexpected}")
    return model.eval()


if __name__ == "__main__":
    serve(*sys.argv[1:])
