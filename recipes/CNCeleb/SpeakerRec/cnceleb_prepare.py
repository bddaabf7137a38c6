"""Prepare CN-Celeb: manifests for training, validation and test, with no leak.

What must exist first: CN-Celeb and CN-Celeb2 (OpenSLR 82), unpacked, as flac or wav.

    python cnceleb_prepare.py --cnceleb1_folder /data/CN-Celeb_flac \\
        --cnceleb2_folder /data/CN-Celeb2_flac --save_folder data

One override: ``--join_seconds 0`` trains on the recordings one by one.

Written to ``save_folder``:

    train.csv         ID,duration,wav,spk_id: recordings of the speakers of dev.lst and
                      spk.lst, the short ones of a speaker and genre joined
    valid.csv         recordings of speakers held out of training, one by one
    valid_trials.txt  ``label enrol test``, trials made from them
    test.csv          every recording of trials.lst, enroll.map and enroll.lst
    bad_files.txt     recordings that were left out, and why
    prepare.json      written last: arguments, counts (of each genre, too), check sums

The genre of a row stands in its ID, ``id00010/interview-01-001``. Joined recordings are
not copied: such a row names all of them, and they are read one after the other. A
speaker of the trials is never trained on. Nothing is ever written among the recordings.
"""

from speechbrain_ext.data.corpora.cnceleb import prepare_cnceleb
from speechbrain_ext.utils.command import run_command

if __name__ == "__main__":
    run_command(prepare_cnceleb, __doc__)
