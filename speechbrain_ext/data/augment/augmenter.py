"""Noise, reverberation and others on training crops, drawn anew for every utterance.

Noise, music and babble come from MUSAN (Snyder et al. 2015), room responses from
RIRS_NOISES (Ko et al. 2017); the arithmetic is in ``waveform.py``. In a YAML file::

    augmenter: !name:speechbrain_ext.data.augment.Augmenter
        chains: {none: 1, noise: 1, reverb+noise: 1}
        effects:
            noise: !name:speechbrain_ext.data.augment.Musan {folder: /data/musan}
            reverb: !name:speechbrain_ext.data.augment.RoomResponses {folder: /rirs}

Any other effect is a subclass of :class:`Effect` and one more line there.

All effects take and return float32 at 16 kHz, [T], and draw from the generator that
they are given. Recordings are only ever read. Samples beyond ±1 are kept: clipping
would distort, and the encoder's features are normalised in level.
"""

import itertools
from pathlib import Path

import numpy as np

from speechbrain_ext.data.augment.noises import CachedNoiseFiles, NoiseFiles
from speechbrain_ext.data.augment.waveform import add_noise, mean_power, reverb
from speechbrain_ext.utils.errors import InputError

SNR_DB = {"noise": (5, 20), "music": (5, 20), "babble": (15, 25)}


class Effect:
    """One step of a chain: a change of a training crop.

    A subclass has ``apply``. One that draws from sound files reads them by ``sounds``
    and lists them in ``noises`` (channels are averaged) or ``responses`` (channels are
    kept), so that the Augmenter can keep them decoded in memory.

    Attributes
    ----------
    sounds : NoiseFiles
        Reads sound files.
    noises, responses : list of str
        Paths.
    """

    noises, responses = (), ()

    def __init__(self):
        self.sounds = NoiseFiles()

    def apply(self, wav, generator):
        """Change one crop.

        Arguments
        ---------
        wav : np.ndarray
            float32 at 16 kHz, [T]; not to be changed in place.
        generator : np.random.Generator
            The only source of chance.

        Returns
        -------
        np.ndarray
            float32, [T].
        """
        raise NotImplementedError


class Musan(Effect):
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
        super().__init__()
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
        # sorted: a draw means the same file on every machine
        self.categories = sorted(self.snr_db)
        self.files = {
            category: _wavs_below(Path(folder) / self.folders[category])
            for category in self.categories
        }

    @property
    def noises(self):
        """Paths of all files, each once."""
        return sorted(set(itertools.chain.from_iterable(self.files.values())))

    def apply(self, wav, generator):
        """Add one drawn noise at one drawn ratio: [T] → [T]."""
        noise, snr_db, _ = self.draw(len(wav), generator)
        return add_noise(wav, noise, snr_db)

    def draw(self, n, generator):
        """(noise float32 [n], ratio in dB, category)."""
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
        # distinct recordings as long as there are enough of them
        chosen = generator.choice(len(files), count, replace=count > len(files))
        babble = np.zeros(n, dtype=np.float32)
        for index in chosen:
            voice = self.sounds.crop(files[index], n, generator)
            power = mean_power(voice)
            if power > 0:
                babble += voice / np.float32(np.sqrt(power))
        return babble


class RoomResponses(Effect):
    """Room impulse responses from a folder in the layout of RIRS_NOISES.

    Uses every file that a ``rir_list`` names and every wav file below
    ``simulated_rirs``. The isotropic noises lie beside the real responses and are
    in no ``rir_list``: they are no responses and never used.

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
        super().__init__()
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

    @property
    def responses(self):
        """Paths of all files."""
        return self.files

    def apply(self, wav, generator):
        """Put the utterance into one drawn room: [T] → [T]."""
        return reverb(wav, self.draw(generator))

    def draw(self, generator):
        """Draw a response, and one of its channels: float32 [K]."""
        path = self.files[generator.integers(len(self.files))]
        return self.sounds.response(path, generator)


class Augmenter:
    """Draw one chain of effects per utterance and apply its steps in order.

    Arguments
    ---------
    chains : dict
        Weight of each chain: ``none``, or steps joined by ``+`` such as ``noise``,
        ``reverb``, ``reverb+noise`` (a dry noise on a wet voice).
    effects : dict, optional
        What each step is: an :class:`Effect`, or a function without arguments that
        makes one, as ``!name:`` gives. It is called, and so its folder opened, only
        where a chain of some weight has the step.
    cache_mib : float
        So much of the sound files is kept decoded in memory, once for all processes of
        a machine, the shortest first; the samples are equal. 0: all from the disk.

    Raises
    ------
    InputError
        A chain with a step that is no effect, or weights that cannot be drawn by; an
        effect whose files are missing or damaged.
    """

    def __init__(self, chains, effects=None, cache_mib=2048):
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
        effects = effects or {}
        self.chains = [_steps(name, effects) for name in chains]
        self.probabilities = weights / weights.sum()
        used = {
            step for chain, w in zip(self.chains, weights) if w > 0 for step in chain
        }
        self.effects = {
            name: _made(name, effect)
            for name, effect in effects.items()
            if name in used
        }
        if not cache_mib >= 0:
            raise InputError(f"cache_mib: {cache_mib}, expected at least 0")
        if cache_mib:
            self.cache(cache_mib)

    def cache(self, limit_mib):
        """Keep sound files decoded in memory, up to a limit in MiB of each machine.

        All processes of a distributed run call this together.
        """
        effects = self.effects.values()
        noises = sorted({path for effect in effects for path in effect.noises})
        responses = sorted({path for effect in effects for path in effect.responses})
        if noises or responses:
            sounds = CachedNoiseFiles(noises, responses, limit_mib)
            for effect in effects:
                effect.sounds = sounds

    def __call__(self, wav, generator):
        """Augment one utterance: float32 [T] → float32 [T]."""
        chain = generator.choice(len(self.chains), p=self.probabilities)
        for step in self.chains[chain]:
            wav = self.effects[step].apply(wav, generator)
        return wav


def _steps(chain, effects):
    steps = () if chain == "none" else tuple(chain.split("+"))
    for step in steps:
        if step not in effects:
            raise InputError(
                f"chain {chain!r}: no effect {step!r}, expected none, or some of "
                f"{sorted(effects)} joined by +"
            )
    return steps


def _made(name, effect):
    if isinstance(effect, type) or not hasattr(effect, "apply"):
        effect = effect()
    if not isinstance(effect, Effect):
        raise InputError(f"effect {name!r}: {effect!r}, expected an Effect")
    return effect


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
