"""Networks of features against their public code: one recording, and 200 files.

    python benchmarks/networks.py                      # SpeechBrain's ECAPA-TDNN
    python benchmarks/networks.py --wespeaker FOLDER   # and wespeaker's networks
    python benchmarks/networks.py --toy                # small, for CI

FOLDER is a checkout of https://github.com/wenet-e2e/wespeaker. A network is made there
with random weights, converted by the command for published checkpoints, and both sides
must give equal embeddings, within 1e-4 of their length. A row of seconds is one
recording, waveform to embedding. A row of files is ``encode_files`` against what the
public programs do: read a file, compute its features (torchaudio's Kaldi filterbank, or
SpeechBrain's), run the network, one after another.
"""

import importlib
import sys
import tempfile
import types
from pathlib import Path

import soundfile
import torch
from encode_files import write_files
from harness import LeftOut, argument_parser, compare, report
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.processing.features import InputNormalization
from torchaudio.compliance import kaldi

from speechbrain_ext.export.published.convert import convert_released
from speechbrain_ext.inference import SpeakerVerifier

SPEECHBRAIN, WESPEAKER = "SpeechBrain", "wespeaker"
ECAPA = "ECAPA-TDNN 1024"
# network → (module and class there, its options)
PUBLIC = {
    "CAM++": ("campplus", "CAMPPlus", {"feat_dim": 80, "embed_dim": 512}),
    "ResNet34": ("resnet", "ResNet34", {"feat_dim": 80, "embed_dim": 256}),
    "ResNet221": ("resnet", "ResNet221", {"feat_dim": 80, "embed_dim": 256}),
    "SimAM-ResNet34": ("samresnet", "SimAM_ResNet34_ASP", {"embed_dim": 256}),
}
IN_FILES = ECAPA, "CAM++"  # the others take minutes
SECONDS, FILES, ROUNDS = (3, 10), (200, 1.0, 10.0), 2
TOY_SECONDS, TOY_FILES = (1,), (4, 1.0, 2.0)
ALONE, TOGETHER = 1.0, 1.5  # times as fast: not slower; files


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--networks", nargs="+", choices=[ECAPA, *PUBLIC])
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows, checkout = [], arguments.wespeaker
    if checkout and not Path(checkout, "wespeaker/models").is_dir():
        raise SystemExit(f"{checkout}: no wespeaker/models, expected its checkout")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        number, *lengths = TOY_FILES if arguments.toy else FILES
        paths = write_files(Path(folder), number, *lengths)
        for name in arguments.networks or [ECAPA, *PUBLIC]:
            if name in PUBLIC and not arguments.wespeaker:
                rows.append(LeftOut(name, WESPEAKER, "give --wespeaker FOLDER"))
                continue
            rows += beside_public(name, Path(folder, "model"), paths, arguments)
    report(rows, arguments)


def beside_public(name, folder, paths, arguments):
    """Both sides of a network → rows."""
    if name == ECAPA:
        embed, read, checkpoint = speechbrain_ecapa(folder, arguments.toy)
        about = {"peer_name": SPEECHBRAIN, "source": "EncoderClassifier.encode_batch"}
    else:
        embed, read, checkpoint = of_wespeaker(name, folder, arguments.wespeaker)
        about = {"peer_name": WESPEAKER, "source": f"models/{PUBLIC[name][0]}.py"}
    output = folder.with_name("converted")
    verifier = SpeakerVerifier.from_hparams(
        convert_released(checkpoint, output), run_opts={"device": "cpu"}
    )
    rows = []
    for seconds in TOY_SECONDS if arguments.toy else SECONDS:
        # of 16 bits, as wespeaker's features are of whole numbers
        wav = (2**15 * 0.1 * torch.randn(1, 16000 * seconds)).round() / 2**15
        check_equal(name, verifier.encode_batch(wav)[0], embed(wav))
        rows.append(
            compare(
                f"{name}, {seconds} s",
                lambda wav=wav: verifier.encode_batch(wav),
                lambda wav=wav: embed(wav),
                toy=arguments.toy,
                mark=ALONE,
                **about,
            )
        )
    if name in IN_FILES:
        found = {}

        def ours():
            found["ours"] = verifier.encode_files(paths, speech_detection=False)

        def peer():
            found["peer"] = torch.cat([embed(read(path)) for path in paths])

        label = f"{name}, {len(paths)} files of mixed lengths"
        about |= {"toy": arguments.toy, "mark": TOGETHER}
        rows.append(compare(label, ours, peer, ROUNDS, 0, **about))
        check_equal(name, found["ours"], found["peer"])
    return rows


def check_equal(name, ours, peer):
    """Embeddings [N, E] of both sides."""
    apart = torch.linalg.norm(ours - peer, dim=-1) / torch.linalg.norm(peer, dim=-1)
    if not (worst := float(apart.max())) < 1e-4:
        raise SystemExit(f"{name}: embeddings differ by {worst:.2g} of their length")


def speechbrain_ecapa(folder, toy):
    """(wav [1, N] → embedding [1, E], path → wav, published file)."""
    channels = [64, 64, 64, 64, 192] if toy else [1024, 1024, 1024, 1024, 3072]
    network = ECAPA_TDNN(80, lin_neurons=192, channels=channels)
    features = Fbank(n_mels=80)
    norm = InputNormalization(norm_type="sentence", std_norm=False)
    settle(network, lambda wav: norm(features(wav), torch.ones(len(wav))))
    modules = {
        "compute_features": features,
        "mean_var_norm": norm,
        "embedding_model": network,
    }
    classifier = EncoderClassifier(modules, {}, run_opts={"device": "cpu"})
    path = written(network, folder / "spkrec/embedding_model.ckpt")
    return (
        lambda wav: classifier.encode_batch(wav)[0],
        lambda file: classifier.load_audio(file)[None],
        path,
    )


def of_wespeaker(name, folder, checkout):
    """The same of a network of wespeaker, after wespeaker/cli/speaker.py."""
    if "wespeaker" not in sys.modules:
        # its own __init__ asks for packages that no network needs
        package = types.ModuleType("wespeaker")
        package.__path__ = [str(Path(checkout, "wespeaker"))]
        sys.modules["wespeaker"] = package
    module, kind, options = PUBLIC[name]
    try:
        kind = getattr(importlib.import_module(f"wespeaker.models.{module}"), kind)
    except (ImportError, AttributeError) as error:
        message = f"{checkout}: {error}, expected a checkout of wespeaker"
        raise SystemExit(message) from error
    network = kind(**options)

    def features(wav):
        x = kaldi.fbank(2**15 * wav, num_mel_bins=80, window_type="hamming")
        return (x - x.mean(0))[None]

    settle(network, lambda wavs: torch.cat([features(wav[None]) for wav in wavs]))

    def embed(wav):
        found = network(features(wav))
        return found[-1] if isinstance(found, tuple) else found

    def read(file):
        return torch.from_numpy(soundfile.read(file, dtype="float32")[0])[None]

    return embed, read, written(network, folder / "wespeaker/avg_model.pt")


def settle(network, features):
    """Random weights, and statistics of BatchNorm as training would leave them."""
    network.train()
    for _ in range(3):
        network(features(0.1 * torch.randn(2, 16000)))
    network.eval()


def written(network, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return path


if __name__ == "__main__":
    main()
