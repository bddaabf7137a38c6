"""Prepare VoxBlink2, to be trained on together with VoxCeleb2.

What must exist first: the crops that VoxBlink2's own ``cropper_audio.py`` makes,
``FOLDER/id000000/VIDEO/00000.wav`` or the same as flac, at 16 kHz.

    python voxblink2_prepare.py --folders /data/VoxBlink2/audio \\
        --spk2videos /data/VoxBlink2/data/spk2videos --save_folder data/voxblink2

One override: ``--drop_duplicates`` leaves out recordings that are, sample by sample,
another one of the same speaker.

Ten million headers take minutes to hours, depending on the disk: do it before
``torchrun``, whose other processes wait for it half an hour at most. Killed, it goes on
where it was. Written to ``save_folder``:

    train.arrow       the training recordings (speechbrain_ext.data.arrow_manifest)
    duplicates.txt    what was left out as a duplicate, and of what
    bad_files.txt     recordings that were left out, and why
    prepare.json      written last: arguments, counts, check sums
"""

import argparse
import logging

from speechbrain_ext.data.corpora.voxblink2 import VoxBlink2Options, prepare_training
from speechbrain_ext.utils.errors import command_line


def prepare_voxblink2(
    folders,
    save_folder,
    spk2videos=None,
    drop_duplicates=False,
    min_seconds=0.4,
    max_bad_files=10_000,
    num_workers=16,
):
    """Prepare VoxBlink2.

    A second call with the same arguments returns at once, unless the list or a written
    file has changed. Recordings added to the folders later are not noticed: delete
    ``prepare.json`` (and ``parts``, after a run that was stopped) then.

    Arguments
    ---------
    folders : str, Path or list of them
        Where the speakers' folders are, ``FOLDER/id000000`` or
        ``FOLDER/audio/id000000``.
    save_folder : str or Path
        Where the prepared files go.
    spk2videos : str, Path or None
        The corpus's list of videos. Others are left out, and what is missing is
        counted.
    drop_duplicates : bool
        Leave out recordings whose samples are those of another one of the speaker.
    min_seconds : float
        Shorter recordings are left out.
    max_bad_files : int
        So many unusable recordings may be left out; one more is an error.
    num_workers : int
        Threads. Does not change the result.

    Returns
    -------
    PreparedTraining

    Raises
    ------
    InputError
        Anything wrong with an argument, a folder, the list or too many recordings.
    """
    options = VoxBlink2Options(
        folders=folders,
        save_folder=save_folder,
        spk2videos=spk2videos,
        drop_duplicates=drop_duplicates,
        min_seconds=min_seconds,
        max_bad_files=max_bad_files,
    )
    return prepare_training(options, num_workers=num_workers)


def _arguments():
    # Left out of the namespace where not given: each default stands once, above.
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0],
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--folders", required=True, nargs="+", metavar="PATH")
    parser.add_argument("--save_folder", required=True, metavar="PATH")
    parser.add_argument("--spk2videos", metavar="PATH")
    parser.add_argument("--drop_duplicates", action="store_true")
    parser.add_argument("--min_seconds", type=float, metavar="SECONDS")
    for name in ("max_bad_files", "num_workers"):
        parser.add_argument(f"--{name}", type=int, metavar="N")
    return parser.parse_args()


@command_line
def main():
    """Prepare from the command line; what is found goes to stderr."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prepare_voxblink2(**vars(_arguments()))


if __name__ == "__main__":
    main()
