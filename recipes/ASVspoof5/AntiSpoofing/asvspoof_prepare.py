"""Prepare ASVspoof 5, or an older edition, for training and evaluation.

What must exist first: recordings and protocols as the organisers' archives unpack, at
any depth of one folder: ASVspoof 5, 2019 LA, 2021 LA or 2021 DF.

    python asvspoof_prepare.py --folder /data/ASVspoof5 --save_folder data

One override: ``--splits train dev`` leaves the evaluation out.

Written to ``save_folder``:

    train.csv, dev.csv, eval.csv    ID,duration,wav,spk_id,key,attack,codec
    bad_files.txt                   recordings that were left out, and why
    prepare.json                    written last: arguments, counts, check sums

train.py and evaluate.py call it themselves. Nothing is ever written among the
recordings.
"""

from speechbrain_ext.data.corpora.asvspoof import prepare_asvspoof
from speechbrain_ext.utils.command import run_command

if __name__ == "__main__":
    run_command(prepare_asvspoof, __doc__)
