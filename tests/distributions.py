"""The twelve families of f32 inputs on which encoders are compared.

The friendly ones look like weights; the others sit where encoders go wrong: equal magnitudes with
both signs (which maximum wins), all-equal blocks (a range of zero), denormals (reciprocals that
overflow) and magnitudes whose scale leaves the range of f16.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_F32 = NDArray[np.float32]
_Maker = Callable[[np.random.Generator, int, int], NDArray[np.floating]]


def _sparse(rng: np.random.Generator, rows: int, cols: int) -> NDArray[np.floating]:
    keep = rng.random((rows, cols)) < 0.05
    return np.where(keep, rng.standard_normal((rows, cols)), 0.0)


def _const(rng: np.random.Generator, rows: int, cols: int) -> NDArray[np.floating]:
    # One value per run of 32, so that a super-block of 256 has flat sub-blocks of unlike height.
    runs = -(-cols // 32)
    values = rng.standard_normal((rows, runs))
    values[::3] = values[::3, :1]
    return np.repeat(values, 32, axis=1)[:, :cols]


def _one_hot(rng: np.random.Generator, rows: int, cols: int) -> NDArray[np.floating]:
    x = np.zeros((rows, cols))
    for start in range(0, cols, 64):
        width = min(64, cols - start)
        at = start + rng.integers(0, width, rows)
        x[np.arange(rows), at] = rng.standard_normal(rows)
    return x


def _ties(rng: np.random.Generator, rows: int, cols: int) -> NDArray[np.floating]:
    # Multiples of one half, few of them: equal magnitudes, both signs, and exact halves to round.
    return rng.integers(-6, 7, (rows, cols)) * 0.5


def _signed_zero(rng: np.random.Generator, rows: int, cols: int) -> NDArray[np.floating]:
    zeros = np.where(rng.random((rows, cols)) < 0.5, 0.0, -0.0)
    some = rng.random((rows, cols)) < 0.01
    some[::2] = False
    return np.where(some, rng.standard_normal((rows, cols)), zeros)


def _denormal(rng: np.random.Generator, rows: int, cols: int) -> NDArray[np.floating]:
    # Bit patterns below the smallest normal number, a few just above, over many binades.
    shift = rng.integers(0, 24, (rows, 1))
    bits = rng.integers(0, 0x01000000, (rows, cols)) >> shift
    signs = rng.integers(0, 2, (rows, cols)) << 31
    return (bits | signs).astype(np.uint32).view(np.float32)


def _extreme(rng: np.random.Generator, rows: int, cols: int) -> NDArray[np.floating]:
    # Whole rows near 1e30 and 1e-30, and rows in which both meet.
    x = rng.standard_normal((rows, cols))
    kind = np.arange(rows)[:, None] % 3
    mixed = np.where(rng.random((rows, cols)) < 0.5, 1e30, 1e-30)
    return x * np.where(kind == 0, 1e30, np.where(kind == 1, 1e-30, mixed))


def _bf16_grid(rng: np.random.Generator, rows: int, cols: int) -> NDArray[np.floating]:
    x = (rng.standard_normal((rows, cols)) * 0.02).astype(np.float32)
    return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


_MAKERS: dict[str, _Maker] = {
    "normal": lambda rng, rows, cols: rng.standard_normal((rows, cols)),
    "t3": lambda rng, rows, cols: rng.standard_t(3, (rows, cols)),
    "t5": lambda rng, rows, cols: rng.standard_t(5, (rows, cols)),
    "laplace": lambda rng, rows, cols: rng.laplace(size=(rows, cols)) * 0.02,
    "sparse": _sparse,
    "const": _const,
    "one_hot": _one_hot,
    "ties": _ties,
    "signed_zero": _signed_zero,
    "denormal": _denormal,
    "extreme": _extreme,
    "bf16_grid": _bf16_grid,
}

NAMES: tuple[str, ...] = tuple(_MAKERS)


def distribution(name: str, rows: int, cols: int, seed: int) -> _F32:
    """Finite f32 numbers of shape (rows, cols) from the family `name`, the same for equal seeds."""
    rng = np.random.default_rng([NAMES.index(name), seed])
    return np.ascontiguousarray(_MAKERS[name](rng, rows, cols), dtype=np.float32)


def importance(cols: int, seed: int) -> _F32:
    """A vector such as an importance matrix holds: positive, of long tail, some columns zero."""
    rng = np.random.default_rng([len(NAMES), seed])
    weights = rng.chisquare(1, cols) * np.exp(rng.standard_normal(cols))
    weights[rng.random(cols) < 0.02] = 0.0
    return weights.astype(np.float32)


def wild(rows: int, cols: int, seed: int, share: float = 0.05) -> NDArray[np.float32]:
    """Numbers around one, a share of them any word at all: NaNs, infinities, denormals."""
    rng = np.random.default_rng(seed)
    anything = rng.integers(0, 2**32, (rows, cols), np.uint32).view(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3e38], np.float32)
    odd = np.where(rng.random((rows, cols)) < 0.5, anything, rng.choice(special, (rows, cols)))
    near = rng.standard_normal((rows, cols)).astype(np.float32) * np.float32(8)
    return np.where(rng.random((rows, cols)) < share, odd, near)
