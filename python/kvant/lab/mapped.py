"""Files that are mapped and not trusted: every read is checked against the size of the file."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError

__all__ = ["MappedFile"]


class MappedFile:
    """A file in memory, read only.

    Parameters
    ----------
    path : path
    reader : str
        What errors begin with.

    Raises
    ------
    OSError
        If there is no such file.
    FormatError
        If it is empty.
    """

    def __init__(self, path: str | os.PathLike[str], reader: str) -> None:
        self.path = Path(path)
        self._reader = reader
        with self.path.open("rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            if not self.size:
                raise self.error("a header", "an empty file")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def error(self, expected: str, got: object) -> FormatError:
        """The error that says what the file should have had."""
        return FormatError(f"[{self._reader}] expected {expected}, got {got} in {self.path}")

    def take(self, offset: int, nbytes: int) -> bytes:
        """Bytes at a place; FormatError where the file ends before them."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise self.error(f"{nbytes} bytes at {offset}", f"{self.size} bytes in all")
        return self._map[offset : offset + nbytes]

    def array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        """Numbers at a place, as a new array."""
        kind = np.dtype(dtype)
        count = 1
        for length in shape:
            count *= length
        return np.frombuffer(self.take(offset, count * kind.itemsize), kind).reshape(shape).copy()

    def close(self) -> None:
        """Unmap the file; what was read stays."""
        self._map.close()
