"""Windows side by side: on few cores one thread each, on many one window with all threads.

A window alone leaves cores idle between its products and while its logits are compared, so several
at once are faster. But each keeps the logits of all its tokens in memory, so there are never more
than four, and where there are more cores than that, one window with all of them is the better use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from .. import threads as set_threads

__all__ = ["in_order", "side_by_side", "usable_cpus"]

A = TypeVar("A")
B = TypeVar("B")

_AHEAD = 4


@contextmanager
def side_by_side(threads: int | None = None) -> Iterator[tuple[Executor | None, int]]:
    """An executor for windows and the threads of each; None runs one after another.

    Parameters
    ----------
    threads : int or None
        Of all windows together; None takes the set number. No result depends on it.

    >>> with side_by_side(1) as (executor, each):
    ...     print(executor, each)
    None 1
    """
    count = set_threads() if threads is None else threads
    if count == 1 or count > _AHEAD:
        yield None, count
        return
    executor = ThreadPoolExecutor(count)
    try:
        yield executor, 1
    finally:
        # Who interrupts does not wait for windows that have not begun.
        executor.shutdown(cancel_futures=True)


def in_order(
    executor: Executor | None, function: Callable[[A], B], items: Iterable[A], ahead: int = _AHEAD
) -> Iterator[B]:
    """`map(function, items)`, side by side, but at most `ahead` results before they are used.

    >>> list(in_order(None, abs, [-1, 2]))
    [1, 2]
    """
    if executor is None:
        yield from map(function, items)
        return
    source = iter(items)
    waiting = [executor.submit(function, item) for item in islice(source, ahead)]
    try:
        while waiting:
            result = waiting.pop(0).result()
            waiting.extend(executor.submit(function, item) for item in islice(source, 1))
            yield result
    finally:
        for future in waiting:
            future.cancel()


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
