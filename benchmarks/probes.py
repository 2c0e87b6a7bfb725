"""Yardsticks: what this machine's memory gives at the moment, measured without any decoding."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from kvant import isa
from kvant.bench.limits import Limits
from kvant.bench.machine import clock_hertz
from kvant.bench.memory import buffer
from kvant.bench.probes import store_task
from kvant.bench.timing import Task, turns

__all__ = ["bandwidths", "buffer", "clock_hertz", "store_tasks", "traffic_task"]


def store_tasks(target: NDArray[np.uint8]) -> dict[str, Task]:
    """Ways to write `target` once, none of which reads anything: the ceiling of a decoder.

    libc's memset and NumPy's fill, and stores around the caches.
    """
    memset = ctypes.CDLL(None).memset
    memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    memset.restype = ctypes.c_void_p
    address, nbytes = target.ctypes.data, target.nbytes
    floats = target.view(np.float32)
    return {
        "memset": Task(lambda: memset(address, 0, nbytes)),
        "fill": Task(lambda: floats.fill(0)),
        "stream": store_task(target, 1, name=isa.available()[0]),
    }


def traffic_task(target: NDArray[np.uint8], packed: NDArray[np.uint8]) -> Task:
    """Read `packed` while writing `target`: what a decoder that costs nothing does."""
    return store_task(target, 1, packed.reshape(-1), name=isa.available()[0])


def bandwidths(nbytes: int, rounds: int) -> dict[str, float]:
    """GB/s of the probes on memory of this size, one thread.

    `copy` and `read` count the bytes copied and read, not the traffic.
    """
    limits = Limits(nbytes)
    tasks = store_tasks(limits.array)
    amount = dict.fromkeys(tasks, nbytes / 1e9)
    for limit in (limits.copy(1), limits.read(1)):
        tasks[limit.name], amount[limit.name] = limit.task, limit.amount
    before = isa.current()
    try:
        times = turns(tasks, rounds=rounds, sample=0.0)
    finally:
        isa.use(before)
    return {name: t.rate(amount[name], "cpu") for name, t in times.items()}
