"""Recordings of one speaker that are the same sound, sample by sample.

Compared is the decoded sound, as 16 bit samples, and not the file: the same crop
written twice differs in its header (ffmpeg's version, the date) or in its format (wav,
flac). Equal sounds are of equal length, so only recordings that share their length with
another one of the speaker are opened.
"""

import hashlib

import soundfile

from speechbrain_ext.errors import InputError


def find_duplicates(paths, frames):
    """Which recordings repeat an earlier one.

    Arguments
    ---------
    paths : list of str
        [N], recordings of one speaker.
    frames : list of int
        [N], their lengths in samples.

    Returns
    -------
    repeated : dict of int to int
        Row → the first row of equal sound.
    bad : list of (int, str)
        Row and reason of each recording that cannot be decoded.
    """
    by_length = {}
    for row, length in enumerate(frames):
        by_length.setdefault(length, []).append(row)
    first, repeated, bad = {}, {}, []
    for rows in by_length.values():
        for row in rows if len(rows) > 1 else ():
            try:
                known = first.setdefault(sound_hash(paths[row]), row)
            except InputError as error:
                bad.append((row, str(error).removeprefix(f"{paths[row]}: ")))
                continue
            if known != row:
                repeated[row] = known
    return repeated, bad


def sound_hash(path):
    """BLAKE2b, 128 bits, of a recording's channels, rate and 16 bit samples.

    Raises
    ------
    InputError
        It cannot be decoded.
    """
    try:
        samples, rate = soundfile.read(str(path), dtype="int16", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be decoded ({error})") from error
    digest = hashlib.blake2b(f"{samples.shape} {rate}".encode(), digest_size=16)
    digest.update(samples.reshape(-1).data)
    return digest.digest()
