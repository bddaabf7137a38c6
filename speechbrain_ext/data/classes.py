"""Which class of the classifier a speaker at some speed is.

    class(s, k) = s + k·P          s < P:  played at K speeds, each another speaker
    class(s, 0) = s + (K − 1)·P    s ≥ P:  at true speed only

for S speakers of whom the first P are speed-perturbed: K·P + (S − P) classes, P at each
speed and then the others. VoxCeleb2 + VoxBlink2 in arXiv 2510.04213, section 4.1:
3 · 5,994 + 111,284 = 129,266. With P = S that is K·S classes.
"""

from speechbrain_ext.errors import InputError


def count_classes(n_speakers, n_speeds, n_perturbed=None):
    """How many classes there are.

    Arguments
    ---------
    n_speakers : int
        S.
    n_speeds : int
        K.
    n_perturbed : int, optional
        P; None: all speakers.

    Raises
    ------
    InputError
        More perturbed speakers than there are, or fewer than none.
    """
    perturbed = n_speakers if n_perturbed is None else n_perturbed
    if not 0 <= perturbed <= n_speakers:
        raise InputError(
            f"n_perturbed: {perturbed}, expected 0 to {n_speakers} speakers"
        )
    return n_speeds * perturbed + n_speakers - perturbed


def class_of(speaker, speed_index, n_speakers, n_speeds, n_perturbed=None):
    """The class of one speaker at one speed, see above."""
    perturbed = n_speakers if n_perturbed is None else n_perturbed
    blocks = speed_index if speaker < perturbed else n_speeds - 1
    return speaker + blocks * perturbed
