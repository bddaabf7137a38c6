"""Room responses.

Simulated rooms use the image method for a box (Allen and Berkley, "Image method for
efficiently simulating small-room acoustics", J. Acoust. Soc. Am. 65(4), 1979, eq. 10):

    h(t) = sum over images of  b^n / (4 pi d)  delta(t - d / c)

with d the distance from the image to the microphone, n how many walls the path has
met, and b the reflection coefficient, which here all walls share. Eyring's formula
turns a reverberation time into b. Measured rooms are imitated by a direct sound, a few
early echoes, and noise which decays exponentially, faster at high frequencies.
"""

import numpy as np
from scipy.signal import butter, sosfilt

from speechbrain_ext.data.audio import SAMPLE_RATE

SPEED_OF_SOUND = 343.0  # m/s


def reflection_coefficient(size, rt60):
    """Eyring: rt60 = 0.161 V / (-S ln(1 - a)), b = sqrt(1 - a).

    Arguments
    ---------
    size : np.ndarray
        Length, width, height in metres, [3].
    rt60 : float
        Seconds for a decay of 60 dB.

    Returns
    -------
    float
        Between 0 and 1.
    """
    length, width, height = size
    surface = 2 * (length * width + width * height + height * length)
    return float(np.exp(-0.161 * np.prod(size) / (2 * surface * rt60)))


def box_response(size, source, microphone, rt60):
    """Response of a box-shaped room by the image method.

    Arguments
    ---------
    size : np.ndarray
        Length, width, height in metres, [3].
    source, microphone : np.ndarray
        Positions in the box, metres, [3] each.
    rt60 : float
        Reverberation time in seconds; the response ends there.

    Returns
    -------
    np.ndarray
        float32, [T], peak 0.9. The first sound arrives after |source - microphone| / c.
    """
    size = np.asarray(size, float)
    reach = SPEED_OF_SOUND * rt60
    square, walls = 0.0, 0  # both [Nx, Ny, Nz] after three axes
    for axis in range(3):
        offset, met = _images(size[axis], source[axis], microphone[axis], reach)
        along = [-1 if other == axis else 1 for other in range(3)]
        square = square + offset.reshape(along) ** 2
        walls = walls + met.reshape(along)
    heard = square < reach**2
    distance = np.sqrt(square[heard])
    strength = reflection_coefficient(size, rt60) ** walls[heard] / distance
    # To the nearest sample: half a sample matters to arrays, not to one microphone.
    arrival = np.rint(distance * (SAMPLE_RATE / SPEED_OF_SOUND)).astype(int)
    return _finish(np.bincount(arrival, strength))


def noise_response(rt60, delay, direct, rng):
    """A response like a measured one.

    Arguments
    ---------
    rt60 : float
        Reverberation time at low frequencies in seconds; 0.6 of it above 2 kHz.
    delay : float
        Seconds before the direct sound.
    direct : float
        Direct sound over the strongest echo, more than 1.
    rng : np.random.Generator
        Decides echoes and tail.

    Returns
    -------
    np.ndarray
        float32, [T], peak 0.9.
    """
    length = int((delay + rt60) * SAMPLE_RATE)
    start = int(delay * SAMPLE_RATE)
    time = np.arange(length - start) / SAMPLE_RATE
    noise = rng.standard_normal(len(time))
    low = sosfilt(butter(2, 2000 / (SAMPLE_RATE / 2), "low", output="sos"), noise)
    tail = low * 10 ** (-3 * time / rt60) + (noise - low) * 10 ** (-5 * time / rt60)
    for echo in rng.integers(0.002 * SAMPLE_RATE, 0.03 * SAMPLE_RATE, 6):
        tail[echo] += 3 * rng.choice([-1, 1])
    response = np.zeros(length)
    response[start:] = tail / np.abs(tail).max()
    response[start] = direct
    return _finish(response)


def _images(size, source, microphone, reach):
    """Along one axis: metres from microphone to images [N], walls met [N]."""
    order = int(np.ceil(reach / (2 * size))) + 1
    cells = np.arange(-order, order + 1)
    even = 2 * cells * size + source - microphone
    odd = 2 * cells * size - source - microphone
    return (
        np.concatenate([even, odd]),
        np.concatenate([2 * np.abs(cells), np.abs(cells) + np.abs(cells - 1)]),
    )


def _finish(response):
    # Images have one sign only; rooms do not pass the sum of them at 0 Hz.
    corner = 40 / (SAMPLE_RATE / 2)
    response = sosfilt(butter(2, corner, "high", output="sos"), response)
    return (response * (0.9 / np.abs(response).max())).astype(np.float32)
