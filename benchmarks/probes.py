"""Yardsticks: what this machine's memory gives at the moment, measured without kvant's code."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .timing import Task, turns

__all__ = ["bandwidths", "buffer", "clock_hertz", "compiled", "store_tasks", "traffic_task"]

_DECLARED = """
int probe_streams(void);
void probe_stream(float* p, size_t n, float value);
uint64_t probe_stream_reading(float* p, size_t n, const uint64_t* source, size_t bytes);
uint64_t probe_read(const uint64_t* p, size_t n);
uint64_t probe_ticks(size_t n);
"""


def buffer(nbytes: int) -> NDArray[np.uint8]:
    """Bytes in huge pages, touched; small ones too, since they are cut from a large one."""
    from kvant import _core

    whole: NDArray[np.uint8] = _core.allocate(max(nbytes, 4 << 20))
    whole.fill(0)
    return whole[:nbytes]


@cache
def compiled() -> tuple[Any, Any] | None:
    """cffi and the library of probe.c; None without a C compiler or without cffi."""
    compiler = next(
        filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None
    )
    if compiler is None:
        return None
    try:
        ffi = import_module("cffi").FFI()
    except ImportError:
        return None
    ffi.cdef(_DECLARED)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "probe.so"
        source = Path(__file__).with_name("probe.c")
        command = [compiler, "-O3", "-shared", "-fPIC", "-o", str(library), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            return ffi, ffi.dlopen(str(library))
        except (OSError, subprocess.SubprocessError):
            return None


def store_tasks(target: NDArray[np.uint8]) -> dict[str, Task]:
    """Ways to write `target` once, none of which reads anything: the ceiling of a decoder.

    libc's memset and NumPy's fill, and stores around the caches where a compiler is at hand.
    """
    import ctypes

    memset = ctypes.CDLL(None).memset
    memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    memset.restype = ctypes.c_void_p
    address, nbytes = target.ctypes.data, target.nbytes
    floats = target.view(np.float32)
    tasks = {
        "memset": Task(lambda: memset(address, 0, nbytes)),
        "fill": Task(lambda: floats.fill(0)),
    }
    probe = compiled()
    if probe:
        ffi, library = probe
        pointer = ffi.from_buffer("float[]", target)
        if library.probe_streams():
            tasks["stream"] = Task(lambda: library.probe_stream(pointer, floats.size, 0.0))
    return tasks


def traffic_task(target: NDArray[np.uint8], packed: NDArray[np.uint8]) -> Task | None:
    """Read `packed` while writing `target`: what a decoder that costs nothing does."""
    probe = compiled()
    if not probe or not probe[1].probe_streams():
        return None
    ffi, library = probe
    pointer, source = ffi.from_buffer("float[]", target), ffi.from_buffer("uint64_t[]", packed)
    floats, nbytes = target.nbytes // 4, packed.nbytes
    return Task(lambda: library.probe_stream_reading(pointer, floats, source, nbytes))


def bandwidths(target: NDArray[np.uint8], rounds: int) -> dict[str, float]:
    """GB/s of the probes on memory of this size, one thread.

    `copy` and `read` count the bytes copied and read, not the traffic.
    """
    words = target.view(np.uint64)
    half = words.size // 2
    tasks = store_tasks(target)
    tasks["copy"] = Task(lambda: np.copyto(words[:half], words[half : 2 * half]))
    amount = dict.fromkeys(tasks, target.nbytes) | {"copy": half * 8}
    probe = compiled()
    if probe:
        ffi, library = probe
        pointer = ffi.from_buffer("uint64_t[]", target)
        tasks["read"] = Task(lambda: library.probe_read(pointer, words.size))
    else:
        tasks["read"] = Task(lambda: np.bitwise_or.reduce(words))
    amount["read"] = target.nbytes
    times = turns(tasks, rounds=rounds, sample=0.0)
    return {name: t.rate(amount[name], "cpu") / 1e9 for name, t in times.items()}


def clock_hertz(rounds: int = 7) -> float | None:
    """Estimate of the clock, from a chain of additions; None without a compiler."""
    probe = compiled()
    if not probe:
        return None
    steps = 200_000
    times = turns({"ticks": Task(lambda: probe[1].probe_ticks(steps))}, rounds=rounds, sample=0.0)
    return 16 * steps / float(times["ticks"].cpu.min())
