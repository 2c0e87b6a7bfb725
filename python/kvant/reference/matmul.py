"""Products with quantized weights, in the one order of operations that all of kvant keeps to.

Every output is a sequence of f32 operations of its own, so that neither batch size nor the cut into
tiles can change it. Loops here run over k; rows and outputs go side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import BlockFormat, Format, Groups
from .fma import fma
from .numeric import F32, I8, I32, U8, canonical, f32, i8, i32
from .table import find

Packed: TypeAlias = tuple[ArrayLike, str]
"""Weights: uint8 rows [n, row_bytes], or of experts [experts, n, row_bytes], and their format."""

Activate: TypeAlias = Callable[[F32, F32], F32]
"""What joins the two halves of a gated network, both [..., hidden], such as silu(gate) * up."""

# Activations share a scale in blocks of this many along k.
_BLOCK = 32
# Blocks below this count as zero; from it on 127 / amax and amax / 127 are normal numbers.
_SMALLEST = np.float32(2.0**-100)


@dataclass(frozen=True)
class Activations:
    """Rows of x as eight-bit codes: x = d * q, one d for each 32 along k.

    q       int8 [m, k]
    d       float32 [m, k / 32]
    sums    int32 [m, k / 16], the sum of q over each 16
    """

    q: I8
    d: F32
    sums: I32


def _check_x(function: str, x: ArrayLike) -> F32:
    rows = np.asarray(x)
    if rows.dtype != np.float32 or rows.ndim != 2:
        raise ValueError(
            f"[{function}] expected x of float32 [m, k], got {rows.dtype} {rows.shape}"
        )
    return np.ascontiguousarray(rows)


def quantize_activations(x: ArrayLike) -> Activations:
    """Quantize the left side of a product, as `matmul` does it.

    Per block of 32 along k, d = amax / 127 and q = x * (127 / amax), rounded half to even. A block
    whose amax is below 2**-100 is zero throughout. A block with a NaN or an infinity has the
    canonical NaN for d and zeros for q, so that outputs of its row are NaN and no others.

    Parameters
    ----------
    x : float32 [m, k]
        Any numbers; k must be a multiple of 32.

    Returns
    -------
    Activations

    Raises
    ------
    ValueError
        Another dtype, rank or k.

    Examples
    --------
    >>> import numpy as np
    >>> a = quantize_activations(np.linspace(-1, 1, 32, dtype=np.float32)[None])
    >>> a.q[0, :4].tolist(), a.sums.tolist(), bool(a.d[0, 0] == np.float32(1) / np.float32(127))
    ([-127, -119, -111, -102], [[-1048, 1048]], True)
    """
    rows = _check_x("quantize_activations", x)
    m, k = rows.shape
    if k % _BLOCK:
        raise ValueError(f"[quantize_activations] expected k a multiple of {_BLOCK}, got {k}")
    blocks = rows.reshape(m, k // _BLOCK, _BLOCK)
    levels = np.float32(127)
    with np.errstate(all="ignore"):
        amax = np.abs(blocks).max(axis=2)
        finite = np.isfinite(amax)
        usable = finite & (amax >= _SMALLEST)
        scaled = np.rint(blocks * (levels / amax)[:, :, None])
        d = np.where(usable, amax / levels, np.float32(0))
    q = i8(np.where(usable[:, :, None], scaled, np.float32(0)))
    sums = q.reshape(m, k // 16, 16).sum(axis=2, dtype=np.int32)
    return Activations(q.reshape(m, k), np.where(finite, d, np.float32(np.nan)), sums)


def _product_of_groups(a: Activations, w: Groups, group: int) -> F32:
    """Eight-bit activations times codes in groups of 16 or 32."""
    m, k = a.q.shape
    q, codes = f32(a.q), f32(w.codes).T
    sums = a.sums.reshape(m, k // group, group // 16).sum(axis=2, dtype=np.int32)
    acc = np.zeros((m, w.codes.shape[0]), np.float32)
    for first in range(0, k, _BLOCK):
        t = np.zeros_like(acc)
        for start in range(first, first + _BLOCK, group):
            run, g = slice(start, start + group), start // group
            # Whole numbers below 2**24 in any order of addition: exact in f32, and NumPy is quick
            # at it. By way of int32 because a float sum of zeros could be -0.
            isum = f32(i32(q[:, run] @ codes[run]))
            scale = w.scale[:, g]
            t = scale * isum if start == first else fma(scale, isum, t)
            if w.minimum is not None:
                t = fma(-w.minimum[:, g], f32(sums[:, g, None]), t)
        acc = fma(a.d[:, first // _BLOCK, None], t, acc)
    return acc


def _product_of_floats(x: F32, w: F32) -> F32:
    """x [m, k] times w [n, k], one fused step for each k."""
    acc = np.zeros((x.shape[0], w.shape[0]), np.float32)
    for column, weight in zip(np.ascontiguousarray(x.T), np.ascontiguousarray(w.T), strict=True):
        acc = fma(weight, column[:, None], acc)
    return acc


def _check_weights(function: str, data: ArrayLike, fmt: Format, rank: int, k: int) -> U8:
    rows = fmt.check_bytes(function, data)
    axes = "n, row_bytes" if rank == 2 else "experts, n, row_bytes"
    if rows.ndim != rank:
        raise ValueError(f"[{function}] expected packed weights [{axes}], got {rows.shape}")
    cols = rows.shape[-1] // fmt.block_bytes * fmt.block
    if cols != k:
        raise ValueError(f"[{function}] expected x of float32 [m, {cols}], got k = {k}")
    return rows


def matmul(x: ArrayLike, data: ArrayLike, format: str, act: str = "q8") -> F32:
    """Multiply rows of x by packed weights: y = x @ w.T.

    With `act="q8"` and a block format, x is quantized first. Then, for each block of 32 along k in
    order, with d of the activations, s and m of the weights and exact integer sums over a group::

        t   = s * sum(code * q)              first group of the block
        t   = fma(s, sum(code * q), t)       second group, where groups are of 16
        t   = fma(-m, sum(q), t)             formats with a minimum, after each group
        acc = fma(d, t, acc)

    Otherwise acc = fma(w, x, acc) for each k in order, w being the decoded weight.

    Parameters
    ----------
    x : float32 [m, k]
    data : uint8 [n, row_bytes]
        Packed rows of k weights.
    format : str
        A key of `FORMATS`; f32, f16 and bf16 take x as it is whatever `act` says.
    act : {"q8", "f32"}
        Whether x is quantized.

    Returns
    -------
    float32 [m, n]
        NaNs are 0x7fc00000.

    Raises
    ------
    ValueError
        Unknown format or `act`, wrong dtype, or shapes that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from kvant.reference import encode
    >>> w = encode(np.eye(2, 32, dtype=np.float32), "q8_0")
    >>> matmul(np.arange(32, dtype=np.float32)[None], w, "q8_0").tolist()
    [[0.0, 0.976318359375]]
    """
    fmt = find("matmul", format)
    if act not in ("q8", "f32"):
        raise ValueError(f"[matmul] expected act of 'q8' or 'f32', got {act!r}")
    rows = _check_x("matmul", x)
    packed = _check_weights("matmul", data, fmt, 2, rows.shape[1])
    with np.errstate(all="ignore"):
        if isinstance(fmt, BlockFormat) and act == "q8":
            activations = quantize_activations(rows)
            return canonical(_product_of_groups(activations, fmt.unpack(packed), fmt.group))
        return canonical(_product_of_floats(rows, fmt.decode(packed)))


def ffn(
    x: ArrayLike, gate: Packed, up: Packed, down: Packed, activate: Activate, act: str = "q8"
) -> F32:
    """Compute a gated feed-forward network: down(activate(gate(x), up(x))).

    Parameters
    ----------
    x : float32 [m, k]
    gate, up : (uint8 [hidden, row_bytes], str)
        Packed weights and their format.
    down : (uint8 [n, row_bytes], str)
        The same, with rows of `hidden` weights.
    activate : callable
        Takes the products with gate and up, float32 [m, hidden] each; returns the same shape.
    act : {"q8", "f32"}
        As for `matmul`.

    Returns
    -------
    float32 [m, n]

    Raises
    ------
    ValueError
        As `matmul`.

    Examples
    --------
    >>> import numpy as np
    >>> w = (np.eye(2, dtype=np.float32).view(np.uint8), "f32")
    >>> ffn(np.array([[2, 3]], np.float32), w, w, w, lambda gate, up: gate * up).tolist()
    [[4.0, 9.0]]
    """
    with np.errstate(all="ignore"):
        hidden = activate(matmul(x, *gate, act), matmul(x, *up, act))
    return matmul(hidden, *down, act)


def _check_ids(function: str, ids: ArrayLike, m: int, experts: int) -> NDArray[np.intp]:
    chosen = np.asarray(ids)
    if chosen.dtype.kind not in "iu" or chosen.ndim != 2 or chosen.shape[0] != m:
        raise ValueError(
            f"[{function}] expected whole ids [{m}, top], got {chosen.dtype} {chosen.shape}"
        )
    if chosen.size and (chosen.min() < 0 or chosen.max() >= experts):
        raise ValueError(
            f"[{function}] expected ids from 0 to {experts - 1}, "
            f"got {chosen.min()} to {chosen.max()}"
        )
    return chosen.astype(np.intp)


def matmul_experts(x: ArrayLike, experts: Packed, ids: ArrayLike, act: str = "q8") -> F32:
    """Multiply each row of x by the experts chosen for it.

    Parameters
    ----------
    x : float32 [m, k]
    experts : (uint8 [experts, n, row_bytes], str)
        Packed weights and their format.
    ids : int [m, top]
        Experts of each row; the same one may stand there twice.
    act : {"q8", "f32"}
        As for `matmul`.

    Returns
    -------
    float32 [m, top, n]

    Raises
    ------
    ValueError
        As `matmul`; ids that are not whole numbers or name no expert.

    Examples
    --------
    >>> import numpy as np
    >>> w = np.array([[[1, 1]], [[1, -1]]], np.float32).view(np.uint8)
    >>> matmul_experts(np.array([[5, 2]], np.float32), (w, "f32"), [[1, 0]]).tolist()
    [[[3.0], [7.0]]]
    """
    data, format = experts
    rows = _check_x("matmul_experts", x)
    fmt = find("matmul_experts", format)
    packed = _check_weights("matmul_experts", data, fmt, 3, rows.shape[1])
    chosen = _check_ids("matmul_experts", ids, rows.shape[0], packed.shape[0])
    out = np.empty((*chosen.shape, packed.shape[1]), np.float32)
    for expert in np.unique(chosen):
        row, slot = np.nonzero(chosen == expert)
        out[row, slot] = matmul(rows[row], packed[expert], format, act)
    return out


def moe_ffn(
    x: ArrayLike,
    gate: Packed,
    up: Packed,
    down: Packed,
    ids: ArrayLike,
    weights: ArrayLike,
    activate: Activate,
    act: str = "q8",
) -> F32:
    """Compute a gated feed-forward network with experts, `ffn` for each row and slot.

    Outputs of the slots are added in the order of `ids`: y starts at +0, and for each slot
    y = fma(weight, output, y).

    Parameters
    ----------
    x : float32 [m, k]
    gate, up : (uint8 [experts, hidden, row_bytes], str)
        Packed weights and their format.
    down : (uint8 [experts, n, row_bytes], str)
        The same, with rows of `hidden` weights.
    ids : int [m, top]
        Experts of each row.
    weights : float32 [m, top]
        What their outputs are multiplied by.
    activate : callable
        Takes the products with gate and up, float32 [m, top, hidden] each; returns the same shape.
    act : {"q8", "f32"}
        As for `matmul`.

    Returns
    -------
    float32 [m, n]
        NaNs are 0x7fc00000.

    Raises
    ------
    ValueError
        As `matmul_experts`; weights of another dtype or shape than stated.

    Examples
    --------
    >>> import numpy as np
    >>> w = (np.array([[[1]], [[2]]], np.float32).view(np.uint8), "f32")
    >>> ids, weights = [[0, 1]], np.array([[0.5, 0.25]], np.float32)
    >>> moe_ffn(np.ones((1, 1), np.float32), w, w, w, ids, weights, lambda g, u: g * u).tolist()
    [[2.5]]
    """
    chosen, factors = np.asarray(ids), np.asarray(weights)
    if factors.dtype != np.float32 or factors.shape != chosen.shape:
        raise ValueError(
            f"[moe_ffn] expected weights of float32 {chosen.shape}, "
            f"got {factors.dtype} {factors.shape}"
        )
    with np.errstate(all="ignore"):
        hidden = activate(matmul_experts(x, gate, ids, act), matmul_experts(x, up, ids, act))
    # Each slot's row goes through its own expert alone.
    each = hidden.reshape(chosen.size, hidden.shape[-1])
    outputs = matmul_experts(each, down, chosen.reshape(-1, 1), act)
    slots = outputs.reshape(*chosen.shape, outputs.shape[-1])
    y = np.zeros((slots.shape[0], slots.shape[2]), np.float32)
    for slot in range(chosen.shape[1]):
        y = fma(factors[:, slot, None], slots[:, slot], y)
    return canonical(y)
