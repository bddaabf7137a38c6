"""A tiny corpus in the layout of ASVspoof 5: tones in noise, and held at steps."""

import numpy as np
import soundfile
from tiny_training import voice, write_musan, write_rirs

# split → letter, folder, protocol, speakers, attacks, recordings of a speaker
SPLITS = {
    "train": ("T", "flac_T", "ASVspoof5.train.tsv", 4, ("A01", "A02"), 8),
    "dev": ("D", "flac_D", "ASVspoof5.dev.track_1.tsv", 3, ("A09",), 6),
    "eval": ("E", "flac_E_eval", "ASVspoof5.eval.track_1.tsv", 3, ("A17", "A18"), 6),
}


def write_asvspoof(folder, seconds=0.7):
    """Recordings and protocols, ``musan`` and ``rirs`` beside them → the folder."""
    generator = np.random.default_rng(5)
    for letter, flac, protocol, n_speakers, attacks, n in SPLITS.values():
        (folder / "corpus" / flac).mkdir(parents=True)
        lines, number = [], 0
        for speaker in range(n_speakers):
            for take in range(n):
                name = f"{letter}_{number:010d}"
                spoof = take % 3 != 0
                length = seconds * (0.6 + 0.2 * (take % 4))
                wav = voice(speaker, length, generator)
                if spoof:  # every third sample, held: images of the tone above it
                    wav = np.repeat(wav[::3], 3)[: len(wav)]
                soundfile.write(folder / f"corpus/{flac}/{name}.flac", wav, 16000)
                attack = attacks[take % len(attacks)] if spoof else "bonafide"
                tag, key = ("AC1", "spoof") if spoof else ("-", "bonafide")
                codec, quality = ("C05", "2") if take % 2 and letter == "E" else "--"
                seed = name if codec != "-" else "-"
                lines.append(
                    f"{letter}_{speaker:04d} {name} F {codec} {quality} {seed} {tag} "
                    f"{attack} {key} -\n"
                )
                number += 1
        (folder / "corpus" / protocol).write_text("".join(lines))
    write_musan(folder / "musan")
    write_rirs(folder / "rirs")
    return folder


def data_words(corpus):
    """Where the data are, for any training YAML."""
    return [
        f"--data_folder={corpus}/corpus",
        f"--musan_folder={corpus}/musan",
        f"--rirs_folder={corpus}/rirs",
    ]


SMALL = [
    *("--batch_size=8", "--num_workers=0", "--crop_seconds=[0.5, 0.5]"),
    *("--noprogressbar", "--device=cpu"),
]
