"""A process's share of every batch, read ahead by threads."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from leanlm.data.batches import Batch, Mixture, Windows
from leanlm.errors import UsageError


def feed(
    source: Mixture | Windows, position: int, size: int, rank: int = 0, ranks: int = 1, workers: int = 1, ahead: int = 2
) -> Iterator[Batch]:
    """The rows that process `rank` of `ranks` gets of the batches of `size` rows from row `position` on, without end.

    The batches, put together over the processes, are the same for every number of processes and of `workers` (threads that
    read up to `ahead` batches before they are asked for; 0: none). Raises UsageError where `size` cannot be divided.
    """
    if size % ranks:
        raise UsageError(f"batches of {size} windows cannot be divided among {ranks} processes; choose a multiple of {ranks}")
    share = size // ranks
    first = position + rank * share
    return _ahead(source, first, size, share, workers, ahead) if workers else _now(source, first, size, share)


def _now(source: Mixture | Windows, first: int, step: int, share: int) -> Iterator[Batch]:
    while True:
        yield source.batch(first, share)
        first += step


def _ahead(source: Mixture | Windows, first: int, step: int, share: int, workers: int, ahead: int) -> Iterator[Batch]:
    pool = ThreadPoolExecutor(workers, "reader")
    waiting = deque()
    try:
        while True:
            while len(waiting) <= ahead:
                waiting.append(pool.submit(source.batch, first, share))
                first += step
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
