"""Buffers to measure with, in huge or small pages."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import zeros

__all__ = ["buffer", "huge_share", "small_pages"]


def buffer(nbytes: int) -> NDArray[np.uint8]:
    """Bytes in huge pages, touched; small ones too, since they are cut from a large one."""
    whole: NDArray[np.uint8] = zeros((max(nbytes, 4 << 20),), np.dtype(np.uint8))
    whole.fill(1)
    return whole[:nbytes]


def small_pages(nbytes: int) -> NDArray[np.uint8] | None:
    """Bytes in the system's smallest pages, touched; None where it cannot be asked for them."""
    advice = getattr(mmap, "MADV_NOHUGEPAGE", None)
    if advice is None:
        return None
    mapped = mmap.mmap(-1, nbytes)
    # A kernel without transparent huge pages refuses: it has small ones only.
    with suppress(OSError):
        mapped.madvise(advice)
    whole = np.frombuffer(mapped, np.uint8)
    whole.fill(1)
    return whole


def huge_share(array: NDArray[Any]) -> float | None:
    """Share of the mapping around an array that lies in huge pages; None where nobody says."""
    try:
        with open("/proc/self/smaps", encoding="ascii", errors="replace") as lines:
            return _share(list(lines), array.ctypes.data)
    except OSError:
        return None


def _share(lines: list[str], address: int) -> float | None:
    inside, size = False, 0
    for line in lines:
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            start, _, end = first.partition("-")
            inside = int(start, 16) <= address < int(end, 16)
        elif inside and first == "Rss:":
            size = int(line.split()[1])
        elif inside and first == "AnonHugePages:":
            return int(line.split()[1]) / size if size else None
    return None
