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

from speechbrain_ext.data.corpora.voxblink2 import prepare_voxblink2
from speechbrain_ext.utils.command import run_command

if __name__ == "__main__":
    run_command(prepare_voxblink2, __doc__)
