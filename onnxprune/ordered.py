"""`in_order`: the same work on one item after another, on several threads, with the results in the order of the items.

What is summed up from the results in turn has the same bits however many threads there are.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from .errors import OptionError, TooLargeError

T = TypeVar("T")
R = TypeVar("R")
MOST_THREADS = 8
# Bytes from which on a pass over weights takes less time on several threads.
WORTH_A_THREAD = 1 << 26
AHEAD_BYTES = 512 << 20


def n_threads(asked: int | None) -> int:
    """Give the number of threads: as asked, or one for each core, up to 8; raises `OptionError` below 1."""
    if asked is not None and asked < 1:
        raise OptionError(f"threads must be at least 1, not {asked}")
    return min(os.cpu_count() or 1, MOST_THREADS) if asked is None else asked


def threads_for(n_bytes: int) -> int:
    """Give the number of threads for a pass over so many bytes of weights: one where several would cost more."""
    return n_threads(None) if n_bytes >= WORTH_A_THREAD else 1


def in_order(
    work: Callable[[T], R], items: Iterable[T], threads: int, *, ahead_bytes: int = AHEAD_BYTES
) -> Iterator[R]:
    """Give `work(item)` for every item; `items` is read on the caller's thread.

    While the caller has one result, as many as there are threads are on their way, fewer where their arrays (in lists
    and mappings of any depth) take more than `ahead_bytes`. An error of `work` is raised in its turn, and then what has
    not begun is dropped. Raises `TooLargeError` where the system starts no thread.
    """
    if threads == 1:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    # The first result shows how large they are.
    ahead = 0
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            try:
                waiting.append(pool.submit(work, item))
            except RuntimeError as error:
                raise TooLargeError(
                    f"working on {threads} threads: {error}; memory or the number of processes is at its limit. "
                    "Allow more, or take one thread"
                ) from error
            while len(waiting) > ahead:
                done = waiting.popleft().result()
                ahead = min(threads, ahead_bytes // max(1, _size(done)))
                yield done
                del done
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _size(result: Any) -> int:
    """Count the bytes of the arrays in a result."""
    if isinstance(result, np.ndarray):
        return result.nbytes
    if isinstance(result, Mapping):
        return sum(map(_size, result.values()))
    return sum(map(_size, result)) if isinstance(result, (list, tuple)) else 0
