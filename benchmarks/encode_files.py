"""encode_files against SpeechBrain's one file after the other, on mixed lengths.

    python benchmarks/encode_files.py            # 200 files of 1–20 s, small encoder
    python benchmarks/encode_files.py --toy      # 12 files, for continuous integration
    python benchmarks/encode_files.py --recordings /data/VoxCeleb1/wav   # 200 of these

Without and with speech detection, of which the peer has none: the three take turns, so
that both rows stand beside the same figures of the peer. Noise is no speech: the
threshold is 0 here, so that all of it is taken for speech and both sides embed the same
samples. Of real recordings (``--recordings``) detection cuts silence out, which saves
time; there only the embeddings without it are compared.

The peer is what SpeechBrain's documentation tells its users: ``load_audio`` and
``encode_batch`` of an ``EncoderClassifier`` for each file, here with the same modules
and weights. The files are noise in syllables, written by this script. Both sides give
the same embeddings, which is checked first.
"""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from harness import argument_parser, in_turns, peak_memory, report, summarise
from speechbrain.inference.classifiers import EncoderClassifier

from speechbrain_ext.inference import SpeakerVerifier
from speechbrain_ext.lobes.heads import AdapterMFA
from speechbrain_ext.lobes.speaker_encoder import SpeakerEncoder
from speechbrain_ext.lobes.w2v_bert import W2VBertEncoder
from speechbrain_ext.pretrained import save_pretrained
from speechbrain_ext.utils.errors import NoSpeechError

ENCODERS = Path(__file__).parents[1] / "recipes/VoxCeleb/SpeakerRec/hparams/encoders"
RATE = 16000
# files, shortest and longest in seconds, encoder
FULL, TOY = (200, 1.0, 20.0, "small"), (12, 1.0, 4.0, "tiny")
PEER = {"peer_name": "SpeechBrain", "source": "EncoderClassifier.encode_batch by file"}
MARK, MARK_SPEECH = 1.5, 1.4


class Unchanged(torch.nn.Module):
    """SpeechBrain's classifier has features and their normalisation apart."""

    def forward(self, wavs, *lens):
        """[B, T] → the same."""
        return wavs


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--recordings", type=Path, help="a folder of wav or flac")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    n_files, shortest, longest, encoder = TOY if arguments.toy else FULL
    with tempfile.TemporaryDirectory() as folder:
        if real := arguments.recordings:
            found = (str(p) for p in real.rglob("*") if p.suffix in (".wav", ".flac"))
            paths = spread(sorted(found), n_files)
        else:
            paths = write_files(Path(folder), n_files, shortest, longest)
            name = f"embeddings of {n_files} files, {shortest:g}–{longest:g} s"
        options = {} if real else {"speech_threshold": 0.0}
        verifier, classifier = both_sides(Path(folder) / "model", encoder, options)

        if real:
            paths = [path for path in paths if has_speech(verifier, path)]
            name = f"embeddings of {len(paths)} recordings of {real}"

        def ours(speech_detection=False):
            return verifier.encode_files(paths, speech_detection=speech_detection)

        def peer():
            wavs = (classifier.load_audio(path) for path in paths)
            return torch.stack([classifier.encode_batch(w)[0, 0] for w in wavs])

        sides = ours, partial(ours, speech_detection=True)
        expected = peer()
        for side in sides[:1] if real else sides:
            difference = float((side() - expected).abs().max())
            if not difference < 1e-4:
                raise SystemExit(f"embeddings differ by {difference}, expected 1e-4")
        turns = (*sides, peer)
        seconds = in_turns(turns, arguments.repeats, warmup=0, toy=arguments.toy)
        memory = [peak_memory(function)[1] / 2**20 for function in turns]
        rows = [
            summarise(
                *(label, "s", seconds[row], seconds[-1]),
                ours_memory=memory[row],
                peer_memory=memory[-1],
                mark=mark,
                **PEER,
            )
            for row, (label, mark) in enumerate(
                ((name, MARK), (f"{name}, speech detection on", MARK_SPEECH))
            )
        ]
        report(rows, arguments)


def write_files(folder, n_files, shortest, longest):
    """Noise below 4 kHz in four syllables a second → paths."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(n_files):
        n = round(generator.uniform(shortest, longest) * RATE)
        noise = np.convolve(generator.standard_normal(n), np.ones(4) / 4, "same")
        syllables = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * np.arange(n) / RATE)
        path = folder / f"{number:03d}.wav"
        soundfile.write(path, 0.1 * noise * syllables, RATE, subtype="PCM_16")
        paths.append(str(path))
    return paths


def spread(paths, count):
    """So many of the paths, evenly over all."""
    return paths[:: max(1, len(paths) // count)][:count]


def has_speech(verifier, path):
    """Whether detection finds any: else there is no embedding with it."""
    try:
        verifier.encode_files([path], speech_detection=True)
    except NoSpeechError:
        return False
    return True


def both_sides(folder, encoder, options):
    """An encoder with random weights as our verifier and as the peer."""
    torch.manual_seed(0)
    encoder = W2VBertEncoder(ENCODERS / f"{encoder}.json")
    head = AdapterMFA(encoder.hidden_size, encoder.n_states)
    speaker_encoder = SpeakerEncoder(encoder, head)
    save_pretrained(folder, speaker_encoder, inference=options)
    verifier = SpeakerVerifier.from_hparams(folder, run_opts={"device": "cpu"})
    modules = {
        "compute_features": Unchanged(),
        "mean_var_norm": Unchanged(),
        "embedding_model": verifier.mods.speaker_encoder,
    }
    return verifier, EncoderClassifier(modules, {}, run_opts={"device": "cpu"})


if __name__ == "__main__":
    main()
