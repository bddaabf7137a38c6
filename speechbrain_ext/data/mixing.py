"""Two corpora in one manifest: one speed-perturbed, the other as it is.

Speed copies count as new speakers. A corpus of 100,000 speakers needs none: VoxCeleb2
is trained on at three speeds, VoxBlink2 at true speed only (arXiv 2510.04213).
"""

import logging
from pathlib import Path

from speechbrain_ext.data.arrow_manifest import concatenate, table_of, write_table
from speechbrain_ext.data.manifest import read_manifest
from speechbrain_ext.data.marker import Marker
from speechbrain_ext.errors import InputError

logger = logging.getLogger(__name__)

MIXED = "train.arrow"


def mix_manifests(perturbed, other, save_folder):
    """Write one manifest of two, or return at once where that was done before.

    Arguments
    ---------
    perturbed : str or Path
        Manifest whose speakers are played at all speeds. Their labels come first.
    other : str or Path
        Manifest whose speakers are played at true speed only.
    save_folder : str or Path
        Where ``train.arrow`` goes.

    Returns
    -------
    Path
        The manifest; its ``n_perturbed`` is the number of speakers of ``perturbed``.

    Raises
    ------
    InputError
        A speaker or an ID that both have.
    """
    paths = [Path(perturbed).resolve(), Path(other).resolve()]
    arguments = dict(zip(("perturbed", "other"), paths))
    marker = Marker.of(Path(save_folder).resolve(), arguments, paths)
    if marker.load() is None:
        marker.remove()
        counts = _write(marker.folder / MIXED, *paths)
        marker.save([MIXED], counts)
        logger.info("%s: %s", marker.folder / MIXED, counts)
    return marker.folder / MIXED


def _write(path, perturbed, other):
    first, second = read_manifest(perturbed), read_manifest(other)
    names = first.speaker_names.tolist()
    others = second.speaker_names.tolist()
    both = sorted({*names} & {*others})
    if both:
        raise InputError(
            f"{other}: speaker {both[0]!r} is also in {perturbed}, expected other "
            f"names ({len(both)} such speakers)"
        )
    table = concatenate([table_of(first), table_of(second)], len(names))
    write_table(path, table, n_perturbed=len(names))
    return {
        "perturbed_speakers": len(names),
        "other_speakers": len(others),
        "utterances": len(table),
    }
