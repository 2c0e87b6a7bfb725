"""The limits that rates stand beside: what this machine reads, copies, stores and multiplies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import isa
from .memory import buffer
from .probes import STREAMS, copy_task, products_task, read_task, store_task
from .timing import Task, turns

__all__ = ["COPY", "READ", "STORE", "Limit", "Limits"]

READ, COPY, STORE = "read", "copy", "store"


class Limit(NamedTuple):
    """A task, and its 10^9 bytes or operations."""

    name: str
    task: Task
    amount: float


class Limits:
    """Limits of this machine with its best instruction set, each as a task to be taken in turns.

    Parameters
    ----------
    memory
        Bytes of the buffer that is read and written, more than caches hold.
    """

    def __init__(self, memory: int) -> None:
        self.array: NDArray[np.uint8] = buffer(memory)
        self.isa = isa.available()[0]
        self._streams: dict[int, int] = {}
        self._products: dict[tuple[str, int], Limit] = {}

    def streams(self, threads: int) -> int:
        """At how many places in turn this machine reads fastest; found out at the first call."""
        if threads not in self._streams:
            tasks = {str(s): read_task(self.array, s, threads, self.isa) for s in STREAMS}
            times = turns(tasks, rounds=5, sample=0.0)
            medians = {s: float(np.median(times[str(s)].wall)) for s in STREAMS}
            self._streams[threads] = min(STREAMS, key=medians.__getitem__)
        return self._streams[threads]

    def read(self, threads: int, nbytes: int | None = None) -> Limit:
        """Read the buffer, or the first bytes of it, in huge pages."""
        array = self.array[: nbytes or self.array.nbytes]
        task = read_task(array, self.streams(threads), threads, self.isa)
        return Limit(READ, task, array.nbytes / 1e9)

    def store(self, threads: int, nbytes: int | None = None) -> Limit:
        """Write the buffer around the caches."""
        array = self.array[: nbytes or self.array.nbytes]
        return Limit(STORE, store_task(array, threads, name=self.isa), array.nbytes / 1e9)

    def copy(self, threads: int) -> Limit:
        """Copy one half of the buffer to the other, around the caches of the target."""
        half = self.array.nbytes // 2
        source, target = self.array[:half], self.array[half:]
        task = copy_task(source, target, threads, around=True, name=self.isa)
        return Limit(COPY, task, half / 1e9)

    def products(self, what: str, threads: int) -> Limit:
        """Products of `"int8"` or `"f32"` in registers."""
        if (what, threads) not in self._products:
            task, amount = products_task(what, threads, self.isa)
            self._products[what, threads] = Limit(what, task, amount)
        return self._products[what, threads]
