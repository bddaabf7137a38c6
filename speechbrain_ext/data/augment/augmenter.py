"""Noise, reverberation and speed for training crops, drawn anew for every utterance.

Noise, music and babble come from MUSAN (Snyder et al. 2015), room responses from
RIRS_NOISES (Ko et al. 2017); the arithmetic is in ``waveform.py``.

Everything here takes and returns float32 at 16 kHz, [T], and draws from the generator
it is given. Recordings are only ever read. Samples beyond ±1 are left as they are:
clipping would distort, and the encoder's features are normalised in level.
"""

from pathlib import Path

import numpy as np

from speechbrain_ext.data.augment.noises import HeldSounds, Sounds
from speechbrain_ext.data.augment.waveform import (
    SpeedPerturb,
    add_noise,
    mean_power,
    reverb,
)
from speechbrain_ext.utils.errors import InputError

__all__ = ["Augmenter", "Musan", "RoomResponses", "SpeedPerturb"]

SNR_DB = {"noise": (5, 20), "music": (5, 20), "babble": (15, 25)}
STEPS = ("noise", "reverb")


class Musan:
    """Noise, music and babble from a folder in MUSAN's layout.

    Arguments
    ---------
    folder : str or Path
        Holds ``noise``, ``music`` and ``speech``, with 16 kHz mono wav files anywhere
        below.
    snr_db : dict
        Lowest and highest signal-to-noise ratio of each category to use: ``noise``,
        ``music``, ``babble`` (which needs ``speech``).
    babble_speakers : tuple of int
        Fewest and most recordings summed into one babble.

    Raises
    ------
    InputError
        Where a needed folder has no wav file, or a range is not one.
    """

    folders = {"noise": "noise", "music": "music", "babble": "speech"}

    def __init__(self, folder, snr_db=SNR_DB, babble_speakers=(3, 8)):
        unknown = sorted(set(snr_db) - set(self.folders))
        if unknown or not snr_db:
            raise InputError(
                f"snr_db: categories {sorted(snr_db)}, expected some of "
                f"{sorted(self.folders)}"
            )
        for name, (low, high) in snr_db.items():
            if not low <= high:
                raise InputError(f"snr_db of {name}: {(low, high)}, expected low, high")
        if not 1 <= babble_speakers[0] <= babble_speakers[1]:
            raise InputError(
                f"babble_speakers: {tuple(babble_speakers)}, expected fewest, most"
            )
        self.snr_db = dict(snr_db)
        self.babble_speakers = tuple(babble_speakers)
        # Sorted: a draw means the same file on every machine.
        self.categories = sorted(self.snr_db)
        self.files = {
            category: _wavs_below(Path(folder) / self.folders[category])
            for category in self.categories
        }
        self.sounds = Sounds()

    def __call__(self, wav, generator):
        """Add one drawn noise at one drawn ratio: [T] → [T]."""
        noise, snr_db, _ = self.draw(len(wav), generator)
        return add_noise(wav, noise, snr_db)

    def draw(self, n, generator):
        """Draw noise to add.

        Arguments
        ---------
        n : int
            Samples.
        generator : np.random.Generator
            Drawn from.

        Returns
        -------
        tuple
            (noise float32 [n], ratio in dB, category).
        """
        category = self.categories[generator.integers(len(self.categories))]
        snr_db = generator.uniform(*self.snr_db[category])
        if category == "babble":
            noise = self._babble(n, generator)
        else:
            files = self.files[category]
            path = files[generator.integers(len(files))]
            noise = self.sounds.crop(path, n, generator)
        return noise, snr_db, category

    def _babble(self, n, generator):
        files = self.files["babble"]
        count = generator.integers(*self.babble_speakers, endpoint=True)
        # Distinct recordings as long as there are enough of them.
        chosen = generator.choice(len(files), count, replace=count > len(files))
        babble = np.zeros(n, dtype=np.float32)
        for index in chosen:
            voice = self.sounds.crop(files[index], n, generator)
            power = mean_power(voice)
            if power > 0:
                babble += voice / np.float32(np.sqrt(power))
        return babble


class RoomResponses:
    """Room impulse responses from a folder in the layout of RIRS_NOISES.

    Uses every file that a ``rir_list`` names and every wav file below
    ``simulated_rirs``. The isotropic noises lie beside the real responses and are
    in no ``rir_list``: they are noises, not responses, and are never used.

    Arguments
    ---------
    folder : str or Path
        RIRS_NOISES itself, or the folder that holds it. The paths in a ``rir_list``
        begin with ``RIRS_NOISES/``.

    Raises
    ------
    InputError
        Where there is no response.
    """

    def __init__(self, folder):
        folder = Path(folder)
        if (folder / "RIRS_NOISES").is_dir():
            folder = folder / "RIRS_NOISES"
        paths = set(map(str, folder.glob("simulated_rirs/**/*.wav")))
        for listing in sorted(folder.rglob("rir_list")):
            paths.update(_listed(listing, folder))
        if not paths:
            raise InputError(
                f"{folder}: no room response, expected a rir_list or "
                "simulated_rirs/**/*.wav"
            )
        self.files = sorted(paths)
        self.sounds = Sounds()

    def __call__(self, wav, generator):
        """Put the utterance into one drawn room: [T] → [T]."""
        return reverb(wav, self.draw(generator))

    def draw(self, generator):
        """Draw a response, and one of its channels: float32 [K]."""
        path = self.files[generator.integers(len(self.files))]
        return self.sounds.response(path, generator)


class Augmenter:
    """Draw one chain of augmentations per utterance and apply its steps in order.

    Arguments
    ---------
    chains : dict
        Weight of each chain: ``none``, or steps joined by ``+`` such as ``noise``,
        ``reverb``, ``reverb+noise`` (a dry noise on a wet voice).
    musan : Musan, optional
        Needed for ``noise``.
    rirs : RoomResponses, optional
        Needed for ``reverb``.

    Raises
    ------
    InputError
        For a chain of unknown steps, weights that cannot be drawn by, or a step
        without its recordings.
    """

    def __init__(self, chains, musan=None, rirs=None, effects=None, noise_cache_mib=0):
        if effects:
            used = {s for n, w in chains.items() if w for s in n.split("+")}
            musan = effects["noise"]() if "noise" in used else None
            rirs = effects["reverb"]() if "reverb" in used else None
            noise_cache_mib = noise_cache_mib or 2048
        for name, weight in chains.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise InputError(
                    f"chains: {weight} for {name!r}, expected a weight as in "
                    "{none: 1, noise: 2}, with a blank after the colon"
                )
        weights = np.array([float(weight) for weight in chains.values()])
        if not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
            raise InputError(
                f"chains: weights {dict(chains)}, expected at least one above 0 and "
                "none below"
            )
        self.chains = [_steps(name) for name in chains]
        self.probabilities = weights / weights.sum()
        self.effects = {"noise": musan, "reverb": rirs}
        for steps, weight in zip(self.chains, weights):
            for step in steps:
                if weight > 0 and self.effects[step] is None:
                    raise InputError(
                        f"chain {'+'.join(steps)!r}: nothing to draw {step} from, "
                        "expected a folder of MUSAN (noise) or RIRS_NOISES (reverb)"
                    )

        if noise_cache_mib and (musan or rirs):
            self.hold(noise_cache_mib)

    def hold(self, limit_mib):
        """Keep what is drawn from decoded in memory, up to a limit: equal samples.

        Arguments
        ---------
        limit_mib : float
            See :class:`~speechbrain_ext.data.augment.noises.HeldSounds`.
        """
        musan, rirs = self.effects["noise"], self.effects["reverb"]
        noises = sorted(
            {f for files in musan.files.values() for f in files} if musan else ()
        )
        responses = rirs.files if rirs else []
        held = HeldSounds(noises, responses, limit_mib)
        for source in (musan, rirs):
            if source is not None:
                source.sounds = held

    def __call__(self, wav, generator):
        """Augment one utterance: float32 [T] → float32 [T]."""
        chain = generator.choice(len(self.chains), p=self.probabilities)
        for step in self.chains[chain]:
            wav = self.effects[step](wav, generator)
        return wav


def _steps(name):
    steps = () if name == "none" else tuple(name.split("+"))
    if set(steps) - set(STEPS):
        raise InputError(
            f"chain {name!r}: unknown, expected none, or {' and '.join(STEPS)} "
            "joined by +"
        )
    return steps


def _wavs_below(folder):
    files = sorted(map(str, folder.rglob("*.wav")))
    if not files:
        raise InputError(f"{folder}: no wav file, expected some (MUSAN's layout)")
    return files


def _listed(listing, folder):
    """Paths of a rir_list: the last word of each line, ``RIRS_NOISES/...``."""
    for number, line in enumerate(listing.read_text().splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        top, *below = Path(words[-1]).parts
        if top != "RIRS_NOISES" or not below:
            raise InputError(
                f"{listing}, line {number}: {words[-1]!r}, expected RIRS_NOISES/..."
            )
        yield str(folder.joinpath(*below))
