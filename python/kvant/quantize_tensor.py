"""Whole tensors in another format, slab by slab, with what an importance matrix says of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .errors import ShapeError
from .formats import format_info
from .imatrix import Imatrix
from .qtensor import QTensor
from .quant import quantize

__all__ = ["EMBEDDINGS", "importance_of", "quantize_tensor", "quantized"]

EMBEDDINGS = frozenset({"token_embd.weight", "per_layer_token_embd.weight"})
_SLAB_WEIGHTS = 1 << 24  # 64 MiB of f32


def quantize_tensor(
    source: QTensor,
    format: str,
    importance: npt.NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> Iterator[QTensor]:
    """Encode a tensor in slabs of rows.

    Parameters
    ----------
    source : QTensor
        Any number of axes; leading ones are matrices (experts).
    format : str
    importance : float32 [cols], or [n_matrices, cols], or None
        One row for all matrices, or one for each.

    Yields
    ------
    QTensor
        Consecutive matrices of whole rows, in file order.
    """
    if len(source.shape) > 2:
        for index in range(source.shape[0]):
            own = importance
            if importance is not None and importance.ndim == 2:
                own = importance.reshape(source.shape[0], -1, importance.shape[-1])[index]
                own = own[0] if len(own) == 1 else own
            yield from quantize_tensor(source[index], format, own, threads)
        return
    rows, columns = source.shape[-2:] if len(source.shape) == 2 else (1, source.shape[-1])
    uses = importance if format_info(format).uses_importance else None
    step = max(1, _SLAB_WEIGHTS // max(1, columns))
    for start in range(0, rows, step):
        part = source[start : start + step] if len(source.shape) == 2 else source
        yield quantize(part.dequantize(), format, importance=uses, threads=threads)


def quantized(
    source: QTensor,
    format: str,
    importance: npt.NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> QTensor:
    """Encode a whole tensor; arguments are those of `quantize_tensor`."""
    pieces = list(quantize_tensor(source, format, importance, threads))
    if len(pieces) == 1 and pieces[0].shape == source.shape:
        return pieces[0]
    data = np.concatenate([piece.data.reshape(-1) for piece in pieces])
    return QTensor.from_bytes(data, format, source.shape)


def importance_of(
    matrix: Imatrix | None, name: str, shape: tuple[int, ...]
) -> npt.NDArray[np.float32] | None:
    """The importance of a tensor, or None; an embedding table whose entry does not fit gets none.

    Raises
    ------
    ShapeError
        If an entry is there but has not one value for each column, or each expert's columns.
    """
    if matrix is None or name not in matrix:
        return None
    matrices = shape[-3] if len(shape) > 2 else 1
    try:
        found = matrix.importance(name, shape[-1])
    except ShapeError:
        found = None
    if found is None or found.size != shape[-1] * matrices:
        if name in EMBEDDINGS:
            return None
        raise ShapeError(
            f"[quantize_file] expected an importance of {shape[-1] * matrices} values for {name}, "
            f"got {'another number' if found is None else found.size}"
        )
    return found
