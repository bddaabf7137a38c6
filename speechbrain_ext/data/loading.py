"""What torch's loader lacks: short errors, an end to its workers, the time it costs."""

import time

from torch.utils.data import DataLoader, Dataset

from speechbrain_ext.data.workers import signals_held
from speechbrain_ext.errors import InputError


class CaughtErrors(Dataset):
    """A dataset, but an InputError comes back in place of the items.

    torch would raise it again with the worker's whole traceback for a message.
    """

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitems__(self, keys):
        try:
            return [self.dataset[key] for key in keys]
        except InputError as error:
            return error


class CollateUnlessError:
    """A function that collates items, or hands on the error in their place."""

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, items):
        return items if isinstance(items, InputError) else self.collate(items)


class TimedLoader(DataLoader):
    """A loader that raises such errors and knows how long it was waited for."""

    _began, _waited = 0.0, 0.0

    def close(self):
        """End the workers. At exit torch would wait five seconds for each."""
        workers, self._iterator = self._iterator, None
        if workers is not None:
            workers._shutdown_workers()

    def share_waited(self):
        """Part of the time since the last iteration began that went into waiting."""
        elapsed = time.perf_counter() - self._began
        return min(self._waited / elapsed, 1.0) if elapsed > 0 else 0.0

    def __iter__(self):
        self._began, self._waited = time.perf_counter(), 0.0
        with signals_held():
            batches = super().__iter__()
        self._waited = time.perf_counter() - self._began
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            if isinstance(batch, InputError):
                raise batch
            yield batch
