"""How many recordings may turn out bad while a model trains.

A disk that loses one file of ten million should not end a run of two weeks; one that
loses a shard should. So a stated number of recordings may be bad, each is named once,
and one more ends the run.
"""

import logging
import multiprocessing

from speechbrain_ext.data.workers import START_METHOD
from speechbrain_ext.errors import InputError

logger = logging.getLogger(__name__)


class BadRecordings:
    """The bad recordings that a process and its loader workers have met.

    Arguments
    ---------
    limit : int
        So many are passed over.
    """

    def __init__(self, limit):
        if limit < 0:
            raise InputError(f"max_bad_recordings: {limit}, expected at least 0")
        self.limit = limit
        # row numbers, -1 where there is none yet; shared with the workers
        context = multiprocessing.get_context(START_METHOD)
        self._rows = context.Array("q", [-1] * limit) if limit else None

    def __len__(self):
        return 0 if self._rows is None else sum(row >= 0 for row in self._rows[:])

    def add(self, row, error):
        """Count a row of the manifest, once.

        Raises
        ------
        InputError
            ``error``, where there are too many.
        """
        if self._rows is None:
            raise error
        with self._rows.get_lock():
            rows = self._rows[:]
            if row in rows:
                return
            if -1 not in rows:
                raise InputError(
                    f"{error} ({self.limit + 1} bad recordings, expected at most "
                    f"max_bad_recordings={self.limit})"
                ) from error
            count = rows.index(-1)
            self._rows[count] = row
        logger.warning(
            "%s; another is drawn in its place (%d of at most %d)",
            *(error, count + 1, self.limit),
        )
