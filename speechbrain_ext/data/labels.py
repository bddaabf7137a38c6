"""Which class of the classifier a speaker at some speed is.

    class(s, k) = s + k·P          s < P:  played at K speeds, each another speaker
    class(s, 0) = s + (K − 1)·P    s ≥ P:  at true speed only

for S speakers of whom the first P are speed-perturbed: K·P + (S − P) classes, P at each
speed and then the others. VoxCeleb2 + VoxBlink2 in arXiv 2510.04213, section 4.1:
3 · 5,994 + 111,284 = 129,266. With P = S that is K·S classes.
"""

from typing import NamedTuple

from speechbrain_ext.utils.errors import InputError


class Classes(NamedTuple):
    """S speakers at K speeds, of whom the first P are perturbed; None: all."""

    n_speakers: int
    n_speeds: int
    n_perturbed: int | None = None

    @property
    def perturbed(self):
        """P.

        Raises
        ------
        InputError
            More than there are speakers, or fewer than none.
        """
        perturbed = self.n_speakers if self.n_perturbed is None else self.n_perturbed
        if not 0 <= perturbed <= self.n_speakers:
            raise InputError(
                f"n_perturbed: {perturbed}, expected 0 to {self.n_speakers} speakers"
            )
        return perturbed

    @property
    def count(self):
        """The number of classes."""
        return self.n_speakers + (self.n_speeds - 1) * self.perturbed

    def class_of(self, speaker, speed_index):
        """The class of one speaker at one speed; only perturbed ones have several."""
        perturbed = self.perturbed
        blocks = speed_index if speaker < perturbed else self.n_speeds - 1
        return speaker + blocks * perturbed

    def speakers_and_speeds(self):
        """(speaker, speed index) of each class, in their order."""
        perturbed = self.perturbed
        for speed_index in range(self.n_speeds):
            for speaker in range(perturbed):
                yield speaker, speed_index
        for speaker in range(perturbed, self.n_speakers):
            yield speaker, 0
