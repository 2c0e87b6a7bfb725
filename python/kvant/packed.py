"""Weights packed for multiplication: tiles of sixteen rows in huge pages."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvant import _core
from kvant.arrays import zeros
from kvant.errors import ShapeError
from kvant.formats import FormatInfo
from kvant.qtensor import QTensor
from kvant.weights import Weights

__all__ = ["PackedTensor", "pack"]


class PackedTensor(Weights):
    """A matrix, or a stack of them, packed for `kvant.matmul`; made by `QTensor.pack`.

    Sixteen rows lie interleaved, so that one instruction multiplies a column of all of them. Every
    byte is kept, and `unpack` gives back the tensor. docs/kernels.md has the layout; interleaving
    rows is an idea of llama.cpp's repacked formats.

    Attributes
    ----------
    data
        uint8 [..., bytes of a packed matrix], in memory of the library.
    info
        The format.
    shape
        (rows, columns), or (experts, rows, columns).

    Examples
    --------
    >>> import numpy as np, kvant
    >>> q = kvant.quantize(np.eye(64, dtype=np.float32), "q8_0")
    >>> p = q.pack()
    >>> p
    PackedTensor(q8_0, (64, 64), 4352 bytes)
    >>> p.unpack() == q
    True
    """

    __slots__ = ("_experts", "_matrix")

    packed = True

    def __init__(self, data: NDArray[np.uint8], info: FormatInfo, shape: tuple[int, ...]) -> None:
        self.data = data
        self.info = info
        self.shape = shape
        self._matrix: _core.Matrix | None = None
        self._experts: _core.Experts | None = None

    def __getitem__(self, index: int) -> PackedTensor:
        """One matrix [n, k] of a stack; rows of a matrix are interleaved and cannot be taken.

        Raises
        ------
        ShapeError
            This is one matrix, or `index` is no whole number.
        IndexError
            There is no such expert.

        Examples
        --------
        >>> import numpy as np, kvant
        >>> kvant.quantize(np.ones((2, 3, 64), np.float32), "q4_0").pack()[1]
        PackedTensor(q4_0, (3, 64), 576 bytes)
        """
        if self.ndim < 3 or isinstance(index, bool) or not isinstance(index, int | np.integer):
            raise ShapeError(f"[PackedTensor] expected the index of one expert, got {index!r}")
        return PackedTensor(self.data[index], self.info, self.shape[1:])

    def __reduce__(self) -> tuple[Any, ...]:
        return pack, (self.unpack(),)

    def matrix(self) -> _core.Matrix:
        """What the library needs to know of weights [n, k]; kept for the next call."""
        if self._matrix is None:
            self._matrix = super().matrix()
        return self._matrix

    def experts(self) -> _core.Experts:
        """The same of a stack, or of one matrix as a stack of one."""
        if self._experts is None:
            self._experts = super().experts()
        return self._experts

    def unpack(self, *, threads: int | None = None) -> QTensor:
        """The tensor it was packed from, byte for byte.

        Parameters
        ----------
        threads
            At most this many; the set number by default.

        Returns
        -------
        QTensor
            Of the format and shape of this one: [n, k] or [experts, n, k].

        Examples
        --------
        >>> import numpy as np, kvant
        >>> q = kvant.quantize(np.ones((2, 3, 64), np.float32), "q4_0")
        >>> q.pack().unpack()
        QTensor(q4_0, (2, 3, 64), 216 bytes)
        """
        rows, cols = self.shape[-2:]
        out = np.empty((*self.shape[:-1], self.info.row_bytes(cols)), np.uint8)
        size = rows * out.shape[-1]
        count = math.prod(self.shape[:-2])
        packed = self.data.reshape(count, self.data.shape[-1])
        for source, target in zip(packed, out.reshape(count, size), strict=True):
            _core.unpack(self.info.number, source, rows, cols, target, threads or 0)
        return QTensor(out, self.format, self.shape)


def pack(q: QTensor, *, threads: int | None = None) -> PackedTensor:
    """`QTensor.pack`."""
    if q.ndim not in (2, 3):
        raise ShapeError(f"[pack] expected [n, k] or [experts, n, k], got {q.shape}")
    rows, cols = q.shape[-2:]
    size = _core.packed_bytes(q.info.number, rows, cols)
    out = zeros((math.prod(q.shape[:-2]), size), np.dtype(np.uint8))
    data = np.ascontiguousarray(q.data).reshape(len(out), rows * q.info.row_bytes(cols))
    for source, target in zip(data, out, strict=True):
        _core.pack(q.info.number, source, rows, cols, target, threads or 0)
    return PackedTensor(out.reshape(*q.shape[:-2], size), q.info, q.shape)
