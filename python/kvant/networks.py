"""Gated feed-forward networks, dense and with experts, as one call each."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvant import _core
from kvant.arrays import as_rows, bits
from kvant.errors import ShapeError
from kvant.experts import check_range, check_x, expert_ids, product_result
from kvant.ops import activation_number
from kvant.products import act_number
from kvant.weights import Weights, check_weights

__all__ = ["ffn", "moe_ffn"]


def ffn(
    x: ArrayLike,
    gate: Weights,
    up: Weights,
    down: Weights,
    *,
    activation: str = "silu",
    out: NDArray[np.float32] | None = None,
    act: str = "q8",
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Gated feed-forward network: `matmul(activation_mul(matmul(x, gate), matmul(x, up)), down)`.

    The bits are those of the four calls. x is quantized once, and products with gate and up are
    joined while they are in the cache.

    Parameters
    ----------
    x
        f32, f16 or bf16 [..., k].
    gate, up
        Weights [f, k], tensors or packed; formats may differ.
    down
        Weights [n, f].
    activation
        As for `activation_mul`.
    out
        f32 [..., n], C-contiguous, to write to; it must not overlap an input. Then nothing is
        allocated.
    act, threads
        As for `matmul`.

    Returns
    -------
    ndarray
        f32 [..., n].

    Raises
    ------
    ShapeError
        A shape or dtype does not fit, `act` is unknown, or `out` overlaps an input.
    FormatError
        The activation is unknown.

    Notes
    -----
    The layer is that of Shazeer, "GLU Variants Improve Transformer" (2020, arXiv:2002.05202).

    Examples
    --------
    >>> import numpy as np, kvant
    >>> w = kvant.quantize(np.eye(32, dtype=np.float32), "f32")
    >>> kvant.ffn(np.full(32, 3, np.float32), w, w, w, activation="relu")[:2]
    array([9., 9.], dtype=float32)
    """
    _check_network("ffn", 2, gate, up, down)
    given = np.asarray(x)
    leading = given.shape[:-1]
    check_x("ffn", given, leading, gate.shape[-1])
    number, kind_of_act = activation_number("ffn", activation), act_number("ffn", act)
    matrix, kind, stride = as_rows("ffn", given)
    result = product_result("ffn", out, (*leading, down.shape[-2]), (given,))
    _core.ffn(
        bits(matrix),
        kind,
        math.prod(leading),
        stride,
        gate.experts(),
        up.experts(),
        down.experts(),
        number,
        result,
        kind_of_act,
        threads or 0,
    )
    return result


def moe_ffn(
    x: ArrayLike,
    gate: Weights,
    up: Weights,
    down: Weights,
    ids: ArrayLike,
    weights: ArrayLike,
    *,
    activation: str = "silu",
    out: NDArray[np.float32] | None = None,
    act: str = "q8",
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Gated feed-forward network with experts: `ffn` of each token with each expert chosen for it.

    Outputs are added in the order of `ids`: y starts at +0, and for each slot
    `y = fma(weight, output, y)`, rounded once. The bits do not depend on how tokens and experts are
    spread over threads, and those of a token not on the tokens beside it.

    Tokens are sorted by expert and each expert's bytes are read once (several times only where the
    activations in between would take more than some 256 MiB).

    Parameters
    ----------
    x
        f32, f16 or bf16 [m, k]. There may be any number of leading axes, or none, instead of m.
    gate, up
        Weights [experts, f, k], tensors or packed; formats may differ.
    down
        Weights [experts, n, f].
    ids
        Whole numbers [m, top], the experts of each token; the same may stand there repeatedly.
    weights
        f32 [m, top], what the outputs are multiplied by.
    activation
        As for `activation_mul`.
    out
        f32 [m, n], C-contiguous, to write to; it must not overlap an input. Then nothing is
        allocated.
    act, threads
        As for `matmul`.

    Returns
    -------
    ndarray
        f32 [m, n].

    Raises
    ------
    ShapeError
        An id names no expert, a shape or dtype does not fit, `act` is unknown, or `out` overlaps
        an input.
    FormatError
        The activation is unknown.

    Notes
    -----
    The layer is that of Mixtral (Jiang and others, 2024, arXiv:2401.04088). Choosing experts and
    weights is the caller's.

    Examples
    --------
    >>> import numpy as np, kvant
    >>> eye = np.stack([np.eye(32, dtype=np.float32)] * 2)
    >>> w = kvant.quantize(eye, "f32")
    >>> down = kvant.quantize(eye * np.float32([[[1]], [[2]]]), "f32")
    >>> x, ids, weights = np.full(32, 3, np.float32), [0, 1], np.float32([0.5, 0.25])
    >>> kvant.moe_ffn(x, w, w, down, ids, weights, activation="relu")[:2]
    array([9., 9.], dtype=float32)
    """
    _check_network("moe_ffn", 3, gate, up, down)
    chosen = expert_ids("moe_ffn", ids)
    factors = np.asarray(weights)
    if factors.dtype != np.float32 or factors.shape != chosen.shape:
        raise ShapeError(
            f"[moe_ffn] expected weights of float32 {chosen.shape}, "
            f"got {factors.dtype} {factors.shape}"
        )
    factors = np.require(factors, None, ["C", "ALIGNED"])
    leading, top = chosen.shape[:-1], chosen.shape[-1]
    given = np.asarray(x)
    check_x("moe_ffn", given, leading, gate.shape[-1])
    number, kind_of_act = activation_number("moe_ffn", activation), act_number("moe_ffn", act)
    matrix, kind, stride = as_rows("moe_ffn", given)
    result = product_result("moe_ffn", out, (*leading, down.shape[-2]), (given, chosen, factors))
    tokens = math.prod(leading)
    try:
        _core.moe_ffn(
            bits(matrix),
            kind,
            stride,
            gate.experts(),
            up.experts(),
            down.experts(),
            chosen.reshape(tokens, top),
            factors.reshape(tokens, top),
            number,
            result,
            kind_of_act,
            threads or 0,
        )
    except ShapeError:
        check_range("moe_ffn", chosen, gate.shape[0])
        raise
    return result


def _check_network(function: str, axes: int, gate: Weights, up: Weights, down: Weights) -> None:
    for what, w in (("gate", gate), ("up", up), ("down", down)):
        check_weights(function, what, w, axes)
    if up.shape != gate.shape:
        raise ShapeError(f"[{function}] expected up {gate.shape} as gate, got {up.shape}")
    wanted = (*gate.shape[:-2], down.shape[-2], gate.shape[-2])
    if down.shape != wanted:
        raise ShapeError(
            f"[{function}] expected down {wanted} for gate {gate.shape}, got {down.shape}"
        )
