"""Products with the experts that a router chose, and what calls with experts have in common."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvant import _core
from kvant.arrays import as_rows, bits, checked_out, f32_array, f32_result, f32_rows
from kvant.errors import ShapeError
from kvant.products import act_number
from kvant.weights import Weights, check_weights

__all__ = ["matmul_experts", "route"]

_OF_ALL, _NORMED, _OF_CHOSEN = range(3)


def route(
    scores: ArrayLike,
    top: int,
    *,
    among: str = "all",
    norm: bool = True,
    threads: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Choose the best `top` experts of each token, and what their outputs are weighted with.

    Parameters
    ----------
    scores
        f32 [..., experts], what the router gives.
    top
        Experts of a token.
    among
        `"all"`: softmax over the scores of all experts (qwen3moe, olmoe). `"chosen"`: over those of
        the experts that were chosen (gpt-oss, Mixtral).
    norm
        Divide the shares by their sum, which is added up best first.
    threads
        At most this many; the set number by default. The bits do not depend on it.

    Returns
    -------
    ids : ndarray
        int64 [..., top], best first; the lower id first of equals, NaN last.
    shares : ndarray
        f32 [..., top].

    Raises
    ------
    ShapeError
        A shape or dtype does not fit, there are fewer experts than `top`, or `among` is unknown.

    Notes
    -----
    Routers of this kind are those of Shazeer and others (2017, arXiv:1701.06538).

    Examples
    --------
    >>> import numpy as np, kvant
    >>> ids, shares = kvant.route(np.log(np.float32([[1, 4, 3, 0.5]])), 2)
    >>> ids, shares.round(3)
    (array([[1, 2]]), array([[0.571, 0.429]], dtype=float32))
    """
    given = f32_array("route", "scores", scores)
    if among not in ("all", "chosen"):
        raise ShapeError(f"[route] expected among to be 'all' or 'chosen', got {among!r}")
    experts = given.shape[-1]
    if not 1 <= top <= experts:
        raise ShapeError(f"[route] expected to choose from 1 to {experts} experts, got {top}")
    shape = (*given.shape[:-1], top)
    ids, shares = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    if shares.size:
        kind = _OF_CHOSEN if among == "chosen" else _NORMED if norm else _OF_ALL
        rows = f32_rows("route", given)
        _core.route(rows, kind, ids.reshape(-1, top), shares.reshape(-1, top), threads or 0)
    return ids, shares


def matmul_experts(
    x: ArrayLike,
    experts: Weights,
    ids: ArrayLike,
    *,
    out: NDArray[np.float32] | None = None,
    act: str = "q8",
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Multiply each row of x by the experts chosen for it.

    Rows are sorted by expert, so that the bytes of each are read once. Every result has the bits
    that `matmul` gives of the row and the expert.

    Parameters
    ----------
    x
        f32, f16 or bf16 [m, k], a row for each token; or [m, top, k], one for each slot. There may
        be any number of leading axes, or none, instead of m.
    experts
        Weights [experts, n, k] in any format: a tensor, or one packed by `QTensor.pack`.
    ids
        Whole numbers [m, top], the experts of each token; the same may stand there repeatedly.
    out
        f32 [m, top, n], C-contiguous, to write to; it must not overlap what is read. Then nothing
        is allocated.
    act, threads
        As for `matmul`.

    Returns
    -------
    ndarray
        f32 [m, top, n].

    Raises
    ------
    ShapeError
        An id names no expert, a shape or dtype does not fit, `act` is unknown, or `out` overlaps
        an input.

    Notes
    -----
    Grouping tokens by expert is how MegaBlocks (Gale and others, 2022, arXiv:2211.15841) and
    llama.cpp's `mul_mat_id` avoid padding; the products are those of `matmul`.

    Examples
    --------
    >>> import numpy as np, kvant
    >>> ones = np.ones((2, 1, 32), np.float32)
    >>> experts = kvant.quantize(ones * np.float32([[[1]], [[2]]]), "f32").pack()
    >>> x, ids = np.ones((3, 32), np.float32), [[0, 1], [1, 1], [0, 0]]
    >>> kvant.matmul_experts(x, experts, ids)[..., 0]
    array([[32., 64.],
           [64., 64.],
           [32., 32.]], dtype=float32)
    """
    check_weights("matmul_experts", "experts", experts, 3)
    count, rows, cols = experts.shape
    chosen = expert_ids("matmul_experts", ids)
    given = np.asarray(x)
    per_slot = given.ndim > chosen.ndim
    leading = chosen.shape if per_slot else chosen.shape[:-1]
    check_x("matmul_experts", given, leading, cols)
    matrix, kind, stride = as_rows("matmul_experts", given)
    result = product_result("matmul_experts", out, (*chosen.shape, rows), (given, chosen))
    table = chosen.reshape(math.prod(chosen.shape[:-1]), chosen.shape[-1])
    number = act_number("matmul_experts", act)
    try:
        _core.matmul_experts(
            bits(matrix),
            kind,
            stride,
            per_slot,
            experts.experts(),
            table,
            result,
            number,
            threads or 0,
        )
    except ShapeError:
        check_range("matmul_experts", chosen, count)
        raise
    return result


def check_x(function: str, x: NDArray[Any], leading: tuple[int, ...], cols: int) -> None:
    """Refuse an x of another shape."""
    if x.shape != (*leading, cols):
        raise ShapeError(f"[{function}] expected x {(*leading, cols)}, got {x.shape}")


def expert_ids(function: str, ids: ArrayLike) -> NDArray[np.int64]:
    """Return ids as int64 in one piece."""
    chosen = np.asarray(ids)
    if chosen.ndim == 0 or (chosen.size and chosen.dtype.kind not in "iu"):
        raise ShapeError(
            f"[{function}] expected whole numbers [m, top] for ids, "
            f"got {chosen.dtype} {chosen.shape}"
        )
    return np.require(chosen, np.int64, ["C", "ALIGNED"])


def check_range(function: str, ids: NDArray[np.int64], count: int) -> None:
    """Refuse ids that name no expert."""
    bad = np.argwhere((ids < 0) | (ids >= count))
    if bad.size:
        at = tuple(int(i) for i in bad[0])
        raise ShapeError(
            f"[{function}] expected ids from 0 to {count - 1}, got {int(ids[at])} at {at}"
        )


def product_result(
    function: str, out: Any, shape: tuple[int, ...], inputs: tuple[NDArray[Any], ...]
) -> NDArray[np.float32]:
    """Return `out` once it is known to be usable and apart from the inputs, or a new array."""
    if out is None:
        return f32_result(function, None, shape, ())
    result = checked_out(function, out, shape, np.dtype(np.float32))
    if any(np.may_share_memory(result, given) for given in inputs):
        raise ShapeError(f"[{function}] expected out apart from the inputs, got memory of one")
    return result
