"""Sound that libsndfile cannot read (AAC in m4a, WebM, AMR, …), by PyAV or ffmpeg.

Either suffices; PyAV is preferred, as no process has to be started. Such sound cannot
be read from its middle, and its header does not say how many samples come out of it. So
a file is decoded once, whole, into a file without a name, from which any part is read
at any time; the last few are kept.

Only formats that hold sound themselves are opened: a playlist could name other files,
or servers.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections import OrderedDict

import numpy as np

from speechbrain_ext.utils.errors import InputError

NEEDED = "PyAV or ffmpeg to read it: pip install av, or put ffmpeg on PATH"
_FORMATS = (
    "mov,matroska,webm,aac,amr,amrnb,amrwb,asf,avi,flv,mpegts,mpeg,ogg,wav,w64,mp3,"
    "flac,aiff,au,caf,wv,ape,ac3,eac3,dts,tta,rm,voc,oma,mpc,mpc8,tak,loas,spdif,dsf"
)
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file,pipe"}
ROUNDING = 0.25  # seconds by which an mp4 file may be shorter than it says
_KEPT_BYTES = 1 << 28  # of decoded sound on the disk; the newest is kept in any case
_kept, _lock = OrderedDict(), threading.Lock()


def is_available():
    """Whether there is something to decode with."""
    return _pyav() is not None or shutil.which("ffmpeg") is not None


def _pyav():
    try:
        import av
    except ImportError:
        return None
    return av


def mono_blocks(file, sample_rate):
    """The first sound track as PyAV mixes and resamples it → int16 [T] of each block.

    InputError where it cannot be decoded.
    """
    av = _pyav()
    resampler = av.AudioResampler("s16", "mono", sample_rate)
    with _as_input_error(av):
        for frame in _frames(av, file):
            for part in resampler.resample(frame):
                yield part.to_ndarray()[0]
        for part in resampler.resample(None):
            yield part.to_ndarray()[0]


@contextlib.contextmanager
def _as_input_error(av):
    """What PyAV says, as an InputError; its errors are several of Python's own."""
    try:
        yield
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(" ".join(reason.split())) from error


def decode(file, path=None):
    """Decode the first sound track of a file.

    Arguments
    ---------
    file : binary file
        Seekable.
    path : str or bytes, optional
        Where it lies, if it is a file of its own.

    Returns
    -------
    wav : np.ndarray
        float32 [T, C] in ±1, on the disk.
    sample_rate : int

    Raises
    ------
    InputError
        Nothing to decode with, or no sound that can be decoded; says why, no name.
    """
    key = _identity(file, path)
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    found = _decode(file, path)
    if key is not None:
        with _lock:
            _kept[key] = found
            size = sum(wav.nbytes for wav, _ in _kept.values())
            while size > _KEPT_BYTES and len(_kept) > 1:
                size -= _kept.popitem(last=False)[1][0].nbytes
    return found


def _identity(file, path):
    """What a file is kept by; of one in memory its owner's word, if he has one."""
    if path is None:
        return getattr(file, "identity", None)
    status = os.stat(path)
    return path, status.st_size, status.st_mtime_ns, status.st_ino


def _decode(file, path):
    av = _pyav()
    with tempfile.TemporaryFile() as target:
        try:
            if av is not None:
                with _as_input_error(av):
                    begin, channels, rate = _with_pyav(av, file, target)
            else:
                begin, channels, rate = _with_ffmpeg(file, path, target)
        except OSError as error:  # the disk is full
            raise InputError(f"its decoded copy: {error.strerror}") from error
        count = (os.fstat(target.fileno()).st_size - begin) // (4 * channels)
        if not count:
            raise InputError("no sound in it can be decoded")
        shape, order = (count, channels), ">f4" if begin else "<f4"
        return np.memmap(target, order, "r", begin, shape), rate


def _with_pyav(av, file, target):
    """Write the samples → (0, channels, rate)."""
    resampler = None
    for frame in _frames(av, file):
        if resampler is None:
            channels, rate = frame.layout.nb_channels, frame.sample_rate
            resampler = av.AudioResampler("flt", frame.layout, rate)
        for part in resampler.resample(frame):
            target.write(part.to_ndarray().astype("<f4", copy=False).tobytes())
    if resampler is None:
        raise InputError("no sound in it can be decoded")
    target.flush()
    return 0, channels, rate


def _frames(av, file):
    """The frames of the first sound track, as PyAV decodes them.

    InputError where one before the last cannot be decoded: a recorder that was killed
    leaves a last one that is cut.
    """
    file.seek(0)
    failure = None
    with av.open(file, options=_OPTIONS, metadata_errors="replace") as container:
        if not container.streams.audio:
            raise InputError("no sound in it")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise InputError("no decoder for its sound")
        late, samples = _late(container, stream), 0
        said = stream.duration and float(stream.duration * stream.time_base)
        for packet in container.demux(stream):
            if failure is not None and packet.size:
                raise InputError("its sound is damaged") from failure
            try:
                for frame in packet.decode():
                    samples += frame.samples
                    if late:
                        late, frame = _without(av, frame, late)
                    if frame is not None:
                        yield frame
            except av.error.InvalidDataError as error:
                failure = error
        if said and "mp4" in container.format.name and samples:
            found = samples / stream.codec_context.sample_rate
            if found < said - ROUNDING:
                raise InputError(
                    f"{found:.2f} s, its header says {said:.2f} s: truncated"
                )


def _late(container, stream):
    """Samples of Opus in Matroska that are still to be left out at the start.

    ffmpeg counts those of the encoder's delay at the rate of the track, which need not
    be the 48 kHz that Opus is decoded at.
    """
    context = stream.codec_context
    if context.name != "opus" or "matroska" not in container.format.name:
        return 0
    delay = int.from_bytes(bytes(context.extradata or b"")[10:12], "little")
    return max(0, delay - context.delay)


def _without(av, frame, late):
    """(samples to be left out still, the frame without its first ones or None)."""
    if frame.samples <= late:
        return late - frame.samples, None
    first = late if frame.format.is_planar else late * frame.layout.nb_channels
    wav = np.ascontiguousarray(frame.to_ndarray()[:, first:])
    rest = av.AudioFrame.from_ndarray(wav, frame.format.name, frame.layout.name)
    rest.sample_rate = frame.sample_rate
    return 0, rest


def _with_ffmpeg(file, path, target):
    """Write samples behind the header of an .au file → (its size, channels, rate)."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise InputError(f"expected {NEEDED}")
    command = [ffmpeg, "-nostdin", "-v", "error", "-xerror"]
    for option, value in _OPTIONS.items():
        command += [f"-{option}", value]
    with contextlib.ExitStack() as stack:
        if path is None:  # a pipe would not do: the index may be at the end
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            path = os.path.join(folder, "sound")
            file.seek(0)
            with open(path, "wb") as copy:
                shutil.copyfileobj(file, copy)
        command += ["-i", f"file:{os.fsdecode(path)}", "-map", "0:a:0"]
        command += ["-map_metadata", "-1", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
        done = subprocess.run(
            command, stdout=target, stderr=subprocess.PIPE, check=False
        )
    message = done.stderr.decode(errors="replace").strip()
    target.seek(0)
    head = target.read(24)
    if done.returncode or len(head) < 24:
        raise InputError(message.splitlines()[-1] if message else "ffmpeg fails")
    return tuple(int.from_bytes(head[at : at + 4], "big") for at in (4, 20, 16))
