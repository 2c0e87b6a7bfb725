"""What tensors and packed tensors have in common: bytes, a format, a shape, and products."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kvant import _core
from kvant.errors import ShapeError
from kvant.formats import FormatInfo

__all__ = ["Weights", "check_weights"]


class Weights:
    """Quantized weights: a `QTensor` or a `PackedTensor`."""

    __slots__ = ("data", "info", "shape")

    packed: ClassVar[bool]
    data: NDArray[np.uint8]
    info: FormatInfo
    shape: tuple[int, ...]

    @property
    def format(self) -> str:
        """Name of the format."""
        return self.info.name

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed data."""
        return self.data.nbytes

    @property
    def T(self) -> Transposed:  # noqa: N802
        """For `x @ w.T`, which is `kvant.matmul(x, w)`.

        Examples
        --------
        >>> import numpy as np, kvant
        >>> w = kvant.quantize(np.ones((2, 32), np.float32), "q4_0")
        >>> np.ones(32, np.float32) @ w.T
        array([32., 32.], dtype=float32)
        """
        return Transposed(self)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.format}, {self.shape}, {self.nbytes} bytes)"

    def matrix(self) -> _core.Matrix:
        """What the library needs to know of weights [n, k]."""
        rows, cols = self.shape
        return _core.Matrix(self._bytes(), self.info.number, rows, cols, self.packed)

    def experts(self) -> _core.Experts:
        """The same of a stack [experts, n, k], or of one matrix as a stack of one."""
        count, (rows, cols) = math.prod(self.shape[:-2]), self.shape[-2:]
        return _core.Experts(self._bytes(), self.info.number, count, rows, cols, self.packed)

    def _bytes(self) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self.data).reshape(-1)


class Transposed:
    """Weights as the right side of `@`."""

    __slots__ = ("weights",)
    __array_ufunc__ = None  # so that NumPy leaves `x @ w.T` to __rmatmul__

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def __rmatmul__(self, x: Any) -> NDArray[np.float32]:
        from kvant.products import matmul

        return matmul(x, self.weights)


def check_weights(function: str, what: str, w: Any, axes: int) -> None:
    """Refuse what is not quantized, and another number of axes than 2 or 3."""
    if not isinstance(w, Weights):
        raise ShapeError(
            f"[{function}] expected {what} as QTensor or PackedTensor, got {type(w).__name__}"
        )
    if len(w.shape) != axes:
        wanted = "[n, k]" if axes == 2 else "[experts, n, k]"
        raise ShapeError(f"[{function}] expected {what} {wanted}, got {w.shape}")
