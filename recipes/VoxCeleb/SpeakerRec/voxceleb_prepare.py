"""Prepare VoxCeleb: manifests for training, validation and test, with no leak.

What must exist first: the recordings, unpacked, as wav, flac or VoxCeleb2's own m4a
(then ffmpeg as well), and the trial lists one wants to report.

    python voxceleb_prepare.py --train_folders /data/vox2/dev --save_folder data \\
        --test_folders /data/vox1 --trial_lists vox1_o.txt vox1_e.txt vox1_h.txt

One override: ``--n_valid_speakers 0`` trains on every speaker, without validation.

Written to ``save_folder``:

    train.csv         ID,duration,wav,spk_id of the training recordings
    valid.csv         recordings of speakers held out of training
    valid_trials.txt  ``label enrol test``, trials made from them
    test.csv          every recording that some trial list names
    bad_files.txt     recordings that were left out, and why
    prepare.json      written last: arguments, counts, check sums

A speaker of a trial list is never trained on, whatever folder the recordings are in;
nor is a validation speaker. Nothing is ever written among the recordings.
"""

from speechbrain_ext.data.corpora.voxceleb import prepare_voxceleb
from speechbrain_ext.utils.command import run_command

if __name__ == "__main__":
    run_command(prepare_voxceleb, __doc__)
