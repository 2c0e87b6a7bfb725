"""Quantized tensors: packed bytes, a format and a shape."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvant import _core
from kvant.arrays import checked_out, empty, float_dtype
from kvant.errors import ShapeError
from kvant.formats import format_info
from kvant.weights import Weights

if TYPE_CHECKING:
    from kvant.packed import PackedTensor

__all__ = ["QTensor"]


class QTensor(Weights):
    """A tensor in one of the formats of `kvant.formats()`.

    Parameters
    ----------
    data
        uint8 [..., row_bytes]: the packed rows, as a GGUF file holds them. Kept, not copied;
        it may be a read-only view on a mapped file.
    format
        Name of the format.
    shape
        Shape of the tensor in elements; the last axis is the one that is packed.

    Raises
    ------
    ShapeError
        `data` does not have the bytes that `shape` needs.
    FormatError
        The format is unknown.

    Examples
    --------
    >>> import numpy as np, kvant
    >>> q = kvant.quantize(np.ones((2, 64), np.float32), "q4_0")
    >>> q
    QTensor(q4_0, (2, 64), 72 bytes)
    >>> q[1].dequantize()[:2]
    array([1., 1.], dtype=float32)
    """

    __slots__ = ()

    packed = False

    def __init__(self, data: NDArray[np.uint8], format: str, shape: tuple[int, ...]) -> None:
        self.info = format_info(format)
        self.shape = tuple(int(n) for n in shape)
        if not self.shape or min(self.shape) < 0:
            raise ShapeError(f"[QTensor] expected a shape of one or more axes, got {shape}")
        wanted = (*self.shape[:-1], self.info.row_bytes(self.shape[-1]))
        array = np.asarray(data)
        if array.dtype != np.uint8 or array.shape != wanted:
            raise ShapeError(
                f"[QTensor] expected uint8 {wanted} for {self.info.name} {self.shape}, "
                f"got {array.dtype} {array.shape}"
            )
        if wanted[-1] > 1 and array.size and array.strides[-1] != 1:
            raise ShapeError("[QTensor] expected contiguous rows of bytes")
        self.data = array

    @classmethod
    def from_bytes(cls, buffer: Any, format: str, shape: tuple[int, ...]) -> QTensor:
        """Wrap anything with the buffer protocol that holds the packed rows one after another.

        Examples
        --------
        >>> import kvant
        >>> kvant.QTensor.from_bytes(bytes(34), "q8_0", (32,)).dequantize().sum()
        np.float32(0.0)
        """
        info = format_info(format)
        shape = tuple(int(n) for n in shape)
        if not shape or min(shape) < 0:
            raise ShapeError(f"[QTensor.from_bytes] expected one or more axes, got {shape}")
        wanted = (*shape[:-1], info.row_bytes(shape[-1]))
        flat = np.frombuffer(buffer, dtype=np.uint8)
        if flat.size != math.prod(wanted):
            raise ShapeError(
                f"[QTensor.from_bytes] expected {math.prod(wanted)} bytes for "
                f"{info.name} {shape}, got {flat.size}"
            )
        return cls(flat.reshape(wanted), format, shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage per element, scales included."""
        return self.info.bits_per_weight

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QTensor):
            return NotImplemented
        return (
            self.format == other.format
            and self.shape == other.shape
            and bool(np.array_equal(self.data, other.data))
        )

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, index: int | slice) -> QTensor:
        """Take one index or a slice of the first axis; the packed axis cannot be cut."""
        if self.ndim < 2:
            raise ShapeError("[QTensor] expected two or more axes to index, got one (it is packed)")
        if isinstance(index, bool) or not isinstance(index, int | np.integer | slice):
            raise ShapeError(
                f"[QTensor] expected an index or slice of the first axis, got {index!r}"
            )
        data = self.data[index]
        return QTensor(data, self.format, (*data.shape[:-1], self.shape[-1]))

    def __reduce__(self) -> tuple[Any, ...]:
        return QTensor, (np.ascontiguousarray(self.data), self.format, self.shape)

    def pack(self, *, threads: int | None = None) -> PackedTensor:
        """Pack [n, k] or [experts, n, k] for `kvant.matmul`, into memory of the library.

        Sixteen rows are interleaved; the size stays the same up to a multiple of 64 bytes for
        every sixteen rows. `PackedTensor.unpack` is the inverse.

        Parameters
        ----------
        threads
            At most this many; the set number by default. The bytes do not depend on it.

        Returns
        -------
        PackedTensor
            Of the same format and shape.

        Raises
        ------
        ShapeError
            The tensor has another number of axes.

        Examples
        --------
        >>> import numpy as np, kvant
        >>> kvant.quantize(np.ones((2, 64), np.float32), "q4_0").pack()
        PackedTensor(q4_0, (2, 64), 576 bytes)
        """
        from kvant.packed import pack

        return pack(self, threads=threads)

    def dequantize(
        self,
        dtype: Any = "f32",
        rows: slice | ArrayLike | None = None,
        out: NDArray[Any] | None = None,
        *,
        threads: int | None = None,
    ) -> NDArray[Any]:
        """Decode to floats, bit for bit as ggml does; any NaN is the canonical 0x7fc00000.

        Parameters
        ----------
        dtype
            `"f32"` (default), `"f16"` or `"bf16"` (rounded to nearest even from f32), or a dtype.
        rows
            Indices or a slice of the first axis of a tensor with two or more axes; all by default.
            Repeated and unordered indices are fine (embedding gather); negative ones count from
            the end.
        out
            Array to write to: the result's shape and dtype, C-contiguous.
        threads
            At most this many; the set number by default.

        Returns
        -------
        ndarray
            Of shape `self.shape`, with the first axis replaced when `rows` is given.

        Raises
        ------
        ShapeError
            A row is out of range, or `out` does not fit.

        Examples
        --------
        >>> import numpy as np, kvant
        >>> table = kvant.quantize(np.arange(96, dtype=np.float32).reshape(3, 32), "q8_0")
        >>> table.dequantize(rows=[2, 0]).shape
        (2, 32)
        """
        kind, numpy_dtype = float_dtype("dequantize", dtype)
        shape = self.shape
        index: NDArray[np.int64] | None = None
        source = self
        if rows is not None:
            if self.ndim < 2:
                raise ShapeError("[dequantize] expected two or more axes to take rows of, got one")
            if isinstance(rows, slice):
                source = self[rows]
                shape = source.shape
            else:
                index = self._row_index(rows)
                shape = (index.size, *self.shape[1:])
        if out is None:
            out = empty(shape, numpy_dtype)
        else:
            checked_out("dequantize", out, shape, numpy_dtype)
        data, stride = source.byte_rows()
        inner = math.prod(self.shape[1:-1])
        if index is not None and inner != 1:
            index = (index[:, None] * inner + np.arange(inner)).reshape(-1)
        cols = shape[-1]
        _core.decode(
            self.info.number,
            data,
            stride,
            index,
            math.prod(shape[:-1]),
            cols,
            kind,
            out.reshape(-1).view(np.uint8),
            threads or 0,
        )
        return out

    def byte_rows(self) -> tuple[NDArray[np.uint8], int]:
        """The packed rows as a matrix, and the bytes from one to the next.

        Copied only when the other axes are strided oddly.
        """
        matrix = self.data.reshape(math.prod(self.shape[:-1]), self.data.shape[-1])
        if matrix.shape[0] > 1 and matrix.strides[0] < 0:
            matrix = np.ascontiguousarray(matrix)
        return matrix, matrix.strides[0] if matrix.shape[0] > 1 else matrix.shape[1]

    def _row_index(self, rows: ArrayLike) -> NDArray[np.int64]:
        given = np.asarray(rows)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise ShapeError(f"[dequantize] expected a list of row indices, got {rows!r}")
        bad = (given < -self.shape[0]) | (given >= self.shape[0])
        if bad.any():
            raise ShapeError(
                f"[dequantize] expected rows below {self.shape[0]}, got {int(given[bad][0])}"
            )
        index = given.astype(np.int64)
        return np.where(index < 0, index + self.shape[0], index)
