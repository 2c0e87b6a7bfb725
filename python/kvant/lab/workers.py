"""Windows side by side: one thread each, with the BLAS library held to one thread inside.

A BLAS that spins for its helpers wastes most of its time on matrices as small as those of one
window, the more so on a busy machine. One window per thread scales better, and the result of a
window then cannot depend on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from typing import TypeVar

__all__ = ["in_order", "pool"]

A = TypeVar("A")
B = TypeVar("B")


@contextmanager
def pool(threads: int | None = None) -> Iterator[Executor | None]:
    """An executor for windows, or None where they should run one after another.

    Without the package `threadpoolctl` BLAS cannot be held back, so windows are not run side by
    side either.
    """
    try:
        limits = import_module("threadpoolctl").threadpool_limits
    except ModuleNotFoundError:
        yield None
        return
    workers = threads if threads is not None else usable_cpus()
    executor = ThreadPoolExecutor(workers)
    try:
        with limits(limits=1):
            yield executor
    finally:
        # Who interrupts does not wait for windows that have not begun.
        executor.shutdown(cancel_futures=True)


def in_order(
    executor: Executor | None, function: Callable[[A], B], items: Iterable[A], ahead: int = 4
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
