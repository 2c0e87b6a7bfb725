"""The probes of the library as tasks: loops that only load the memory or the arithmetic."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core, isa
from .timing import Task

__all__ = [
    "KINDS",
    "STREAMS",
    "copy_task",
    "products_task",
    "read_task",
    "store_task",
    "ticks_task",
]

# Places that a reader may work at in turn; which is best depends on the prefetchers of a machine.
STREAMS = (1, 2, 4, 8)
# Numbers of the C ABI, and what a kernel of that kind is made of.
KINDS = {"int8": 0, "f32": 1}
_UNIT = 4096
# Long enough for threads that must wait for a processor to get one now and then.
_SECONDS = 0.005


# A task keeps its arrays alive: the library is only told where they are.


def read_task(array: NDArray[np.uint8], streams: int, threads: int, name: str) -> Task:
    """Read all of an array, with an instruction set by name."""
    address, nbytes = array.ctypes.data, array.nbytes // _UNIT * _UNIT

    def run(kept: Any = array) -> Any:
        return _core.probe_read(address, nbytes, streams, threads)

    return Task(run, lambda: isa.use(name))


def copy_task(
    source: NDArray[np.uint8],
    target: NDArray[np.uint8],
    threads: int,
    *,
    around: bool,
    name: str,
) -> Task:
    """Copy an array, through the caches or around those of the target."""
    a, b, nbytes = source.ctypes.data, target.ctypes.data, source.nbytes // _UNIT * _UNIT

    def run(kept: Any = (source, target)) -> Any:
        return _core.probe_copy(a, b, nbytes, around, threads)

    return Task(run, lambda: isa.use(name))


def store_task(
    target: NDArray[np.uint8],
    threads: int,
    source: NDArray[np.uint8] | None = None,
    *,
    name: str,
) -> Task:
    """Write zeros around the caches; with a source, read it meanwhile, as a decoder does."""
    address, nbytes = target.ctypes.data, target.nbytes // _UNIT * _UNIT
    start, size = (source.ctypes.data, source.nbytes) if source is not None else (0, 0)

    def run(kept: Any = (target, source)) -> Any:
        return _core.probe_store(address, nbytes, start, size, threads)

    return Task(run, lambda: isa.use(name))


def products_task(what: str, threads: int, name: str) -> tuple[Task, float]:
    """A call of a few milliseconds on an instruction set, and its 10^9 operations."""
    kind, tasks, steps = KINDS[what], 8 * threads, 256
    isa.use(name)
    while steps < 1 << 22:
        began = time.perf_counter()
        _core.probe_products(kind, steps, tasks, threads)
        if time.perf_counter() - began > _SECONDS:
            break
        steps *= 2
    products, _ = _core.probe_products(kind, steps, tasks, threads)
    run = lambda: _core.probe_products(kind, steps, tasks, threads)  # noqa: E731
    return Task(run, lambda: isa.use(name)), 2 * products / 1e9


def ticks_task(steps: int) -> Task:
    """Add 16 times in each step, every time waiting for the result: one tick of the clock each."""
    return Task(lambda: _core.probe_ticks(steps))
