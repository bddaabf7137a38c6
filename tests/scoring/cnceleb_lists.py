"""CN-Celeb's evaluation lists in their true format and size, with made-up contents.

Of the published lists these figures are known: 196 models, 17,777 test utterances of
200 speakers, so many of each genre; every model against every utterance, 17,755 of
these 3,484,292 trials targets, so 22 utterances are of the four speakers without a
model. How the genres spread over speakers, and the recordings of each model (799 in
all), are drawn.
"""

import numpy as np

TESTS = {
    "advertisement": 20,
    "drama": 661,
    "entertainment": 3434,
    "interview": 6175,
    "live_broadcast": 2304,
    "movie": 146,
    "play": 50,
    "recitation": 105,
    "singing": 2017,
    "speech": 2089,
    "vlog": 776,
}
N_MODELS, N_SPEAKERS, N_ENROLMENTS = 196, 200, 799
N_TESTS, N_TARGETS, N_TRIALS = 17_777, 17_755, 3_484_292


def write_lists(folder, seed=0):
    """enroll.lst, enroll.map, test.lst and trials.lst → the folder they are in."""
    random = np.random.default_rng(seed)
    speakers = [f"id{n:05d}" for n in range(800, 800 + N_SPEAKERS)]
    models = speakers[:N_MODELS]
    owner = random.integers(0, N_MODELS, N_TESTS)
    owner[:N_TARGETS][:N_MODELS] = np.arange(N_MODELS)
    owner[N_TARGETS:] = N_MODELS + np.arange(N_TESTS - N_TARGETS) % 4
    genres = random.permutation(np.repeat(list(TESTS), list(TESTS.values())))
    order = np.lexsort((genres, owner))
    tests, number = [], {}
    for speaker, genre in zip(owner[order], genres[order]):
        session = f"{speakers[speaker]}-{genre}-01"
        number[session] = number.get(session, 0) + 1
        tests.append(f"test/{session}-{number[session]:03d}.wav")
    folder.mkdir(parents=True, exist_ok=True)
    each = np.full(N_MODELS, N_ENROLMENTS // N_MODELS)
    each[: N_ENROLMENTS % N_MODELS] += 1
    of_models = random.choice(list(TESTS), N_MODELS)
    write(
        folder / "enroll.map",
        (
            f"{m}-enroll "
            + " ".join(f"{m}/{genre}-02-{k:03d}.wav" for k in range(1, count + 1))
            for m, genre, count in zip(models, of_models, each)
        ),
    )
    write(folder / "enroll.lst", (f"{m}-enroll enroll/{m}-enroll.wav" for m in models))
    write(folder / "test.lst", tests)
    write(
        folder / "trials.lst",
        (f"{m}-enroll {t} {int(t[5:12] == m)}" for m in models for t in tests),
    )
    return folder


def write(path, lines):
    with open(path, "w") as file:
        file.writelines(f"{line}\n" for line in lines)
