"""What the property modules of this folder share: names, seeds, and blocks that once went wrong."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from distributions import distribution
from kvant.reference import FORMATS

F32 = NDArray[np.float32]

NAMES = tuple(FORMATS)
ENCODED = tuple(n for n in NAMES if FORMATS[n].can_encode)
WEIGHTED = tuple(n for n in ENCODED if FORMATS[n].uses_importance)
seeds = st.integers(0, 2**20)

# Around the 16 lanes of a batch, and around the 256 rows of one kernel call.
row_counts = st.one_of(st.integers(1, 5), st.sampled_from([7, 8, 9, 15, 16, 17, 31, 33]))
block_counts = st.sampled_from([1, 2, 3, 5])


def normal(*shape: int, seed: int = 0) -> F32:
    """Normal numbers of any shape."""
    return distribution("normal", int(np.prod(shape[:-1])), shape[-1], seed).reshape(shape)


def cols_of(name: str, blocks: int) -> int:
    """Columns of so many blocks; formats without blocks get odd lengths around the vector width."""
    block = FORMATS[name].block
    return block * blocks if block > 1 else 16 * blocks - 1


def random_rows(name: str, rows: int, blocks: int, seed: int) -> NDArray[np.uint8]:
    """Arbitrary bytes as packed rows."""
    row_bytes = cols_of(name, blocks) // FORMATS[name].block * FORMATS[name].block_bytes
    return np.random.default_rng(seed).integers(0, 256, (rows, row_bytes), np.uint8)


def _below_powers(cols: int) -> F32:
    """Rows whose largest magnitude is one unit below, at, or above a power of two."""
    powers = np.array([2.0**-14, 2.0**-13, 2.0**-1, 1.0, 2.0, 6.0, 8.0, 448.0, 2.0**15], np.float32)
    tops = np.stack([np.nextafter(powers, np.float32(0)), powers, np.nextafter(powers, np.inf)], 1)
    ramp = np.linspace(-0.99, 0.99, cols, dtype=np.float32)
    x = (tops.reshape(-1, 1) * ramp).astype(np.float32)
    x[:, cols // 2] = tops.reshape(-1)
    x[::2] *= np.float32(-1)
    return x


def _ties(cols: int) -> F32:
    """Both signs of the largest magnitude, in either order, and steps that end in exact halves."""
    column = np.arange(cols)
    up = np.where(column % 2 == 0, 1.0, -1.0)
    steps = (column % 17 - 8) * 0.5
    return np.stack([up, -up, steps, -steps, steps[::-1]]).astype(np.float32)


def _denormals(cols: int) -> F32:
    smallest = np.float32(2.0**-149)
    column = np.arange(cols)
    ramp = (column % 33 - 16).astype(np.float32)
    return np.stack(
        [
            np.full(cols, smallest),
            ramp * smallest,
            ramp * smallest * np.float32(2**18),
            ramp * np.float32(2.0**-127),
            ramp * np.float32(1e-15) * np.float32(1e-15),
        ]
    ).astype(np.float32)


def _huge(cols: int) -> F32:
    up = np.where(np.arange(cols) % 2 == 0, 1.0, -1.0)
    top = np.float32(np.finfo(np.float32).max)
    one = np.zeros(cols)
    one[cols // 3] = 3e38
    return np.stack([up * 3e38, np.full(cols, 3e38), np.full(cols, -3e38), one, up * top]).astype(
        np.float32
    )


def _equal(cols: int) -> F32:
    levels = np.array([1, -1, 0.1, -0.1, 65504, 65520, 6.1e-5, 6e-8, 2.9e-8, 1e-30], np.float32)
    return np.repeat(levels[:, None], cols, axis=1)


def _zeros(cols: int) -> F32:
    """Zeros of both signs, with and without one full sub-block."""
    x = np.zeros((4, cols), np.float32)
    x[1] = -0.0
    x[2, cols // 2 :] = 1.0
    x[3, ::2] = -0.0
    return x


def _one_sided(cols: int) -> F32:
    """Minima far from zero: scales tiny against them."""
    ramp = np.linspace(0, 1, cols, dtype=np.float32)
    return np.stack([100 + ramp * 1e-3, -100 - ramp * 1e-3, 1000 + ramp, 1e-3 + ramp]).astype(
        np.float32
    )


CORNERS = {
    "below_powers": _below_powers,
    "ties": _ties,
    "denormals": _denormals,
    "huge": _huge,
    "equal": _equal,
    "zeros": _zeros,
    "one_sided": _one_sided,
}


def odd_weights(kind: str, cols: int) -> F32 | None:
    """Importance vectors that lead searches astray; `wrapping` drives codes of q2_k below zero."""
    column = np.arange(cols)
    vectors = {
        "none": None,
        "zero": np.zeros(cols),
        "one hot": (column % 64 == 7).astype(float),
        "wide": 10.0 ** ((column * 7) % 61 - 30),
        "wrapping": np.where(column % 16 < 2, 1e6, 1e-6),
        "negative": np.where(column % 3 == 0, -1.0, 1.0),
    }
    vector = vectors[kind]
    return None if vector is None else vector.astype(np.float32)


WEIGHTS = ("none", "zero", "one hot", "wide", "wrapping", "negative")
