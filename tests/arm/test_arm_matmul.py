"""Products of the Arm build: every ISA packs to the same bytes and has the bits of the twin."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from codec_client import Server
from numpy.typing import NDArray

from distributions import distribution
from kvant.reference import FORMATS, encode, matmul

pytestmark = pytest.mark.arm

# Rows of x and of weights: every width of a register tile; tiles that are not full, one and more.
SHAPES = ((1, 16), (2, 33), (3, 50), (4, 17), (5, 80), (11, 36))
ACTS = ("q8", "f32")


def columns(name: str, rows: int) -> int:
    """Whole chunks of 256, or ones that are not full where the block allows it."""
    block = FORMATS[name].block
    if block == 1:
        return 256 + 45 * (rows % 3)
    return 512 if block == 256 else 256 + block * (rows % 3)


@cache
def weights(name: str, rows: int, cols: int) -> NDArray[np.uint8]:
    """Encoded normal numbers; the first rows hold any bytes, so any scales and any codes."""
    fmt = FORMATS[name]
    rng = np.random.default_rng(rows)
    data = rng.integers(0, 256, (rows, cols // fmt.block * fmt.block_bytes), np.uint8)
    if fmt.can_encode:
        data[5:] = encode(distribution("normal", rows - 5, cols, 4), name)
    return data


@cache
def activations(m: int, cols: int) -> NDArray[np.float32]:
    x = np.random.default_rng(m).standard_normal((m, cols)).astype(np.float32)
    if m > 1:
        x[1, :32] = 0
        x[1, 40] = 1e4
    if m > 3:
        x[3, cols // 2] = np.inf
    return x


@cache
def twin(name: str, m: int, rows: int, act: str) -> NDArray[np.float32]:
    cols = columns(name, rows)
    return matmul(activations(m, cols), weights(name, rows, cols), name, act)


@pytest.mark.parametrize("name", FORMATS)
def test_packing_keeps_every_byte(arm: Server, name: str) -> None:
    for _, rows in SHAPES:
        cols = columns(name, rows)
        data = weights(name, rows, cols)
        packed = arm.pack(data, name)
        assert np.array_equal(arm.unpack(packed, name, rows, cols), data)
        assert arm.use("scalar") == 0
        assert arm.pack(data, name) == packed


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("name", FORMATS)
def test_products_have_the_bits_of_the_reference(arm: Server, name: str, act: str) -> None:
    for m, rows in SHAPES:
        cols = columns(name, rows)
        data, x = weights(name, rows, cols), activations(m, cols)
        wanted = twin(name, m, rows, act).view(np.uint32)
        for packed in (False, True):
            bytes_ = arm.pack(data, name) if packed else data.tobytes()
            found = arm.matmul(x, bytes_, name, rows, packed, act).view(np.uint32)
            assert np.array_equal(found, wanted), (name, act, m, rows, cols, packed)
