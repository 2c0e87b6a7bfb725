"""kvant.rms_norm, softmax, silu_mul and rope, against the same in NumPy, into arrays that exist.

Bytes moved are x, once, and the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kvant

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=7, warmup=True, disable_gc=True)

COLS = 4096
ROWS = [1, 64]
F32 = NDArray[np.float32]


def numpy_rms_norm(x: F32) -> F32:
    mean = np.mean(np.square(x), axis=-1, keepdims=True)
    return np.asarray(x * (np.float32(1) / np.sqrt(mean + np.float32(1e-6))) * x[0])


def numpy_softmax(x: F32) -> F32:
    y = np.exp(x - x.max(axis=-1, keepdims=True))
    y /= y.sum(axis=-1, keepdims=True)
    return np.asarray(y)


def numpy_silu_mul(x: F32) -> F32:
    return np.asarray(x / (np.float32(1) + np.exp(-x)) * x)


def numpy_rope(x: F32) -> F32:
    angle = np.outer(np.arange(len(x)), 1e4 ** (-np.arange(0, 128, 2) / 128))[:, None]
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    a, b = np.split(x.reshape(len(x), -1, 128), 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


def rope(x: F32, out: F32) -> F32:
    heads = (len(x), COLS // 128, 128)
    kvant.rope(x.reshape(heads), np.arange(len(x)), out=out.reshape(heads), threads=1)
    return out


CALLS: dict[str, tuple[Callable[[F32, F32], F32], Callable[[F32], F32]]] = {
    "rms_norm": (lambda x, out: kvant.rms_norm(x, x[0], out=out, threads=1), numpy_rms_norm),
    "softmax": (lambda x, out: kvant.softmax(x, out=out, threads=1), numpy_softmax),
    "silu_mul": (lambda x, out: kvant.silu_mul(x, x, out=out, threads=1), numpy_silu_mul),
    "rope": (rope, numpy_rope),
}


def numbers(rows: int) -> F32:
    return np.random.default_rng(0).standard_normal((rows, COLS)).astype(np.float32)


@pytest.mark.parametrize("isa", kvant.isa.available())
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", CALLS)
def test_ops(meter: Any, name: str, rows: int, isa: str) -> None:
    run, with_numpy = CALLS[name]
    x, out = numbers(rows), np.empty((rows, COLS), np.float32)
    kvant.isa.use(isa)
    found = meter(f"{name} {rows} x {COLS}", lambda: run(x, out), 2 * x.nbytes)
    np.testing.assert_allclose(found, with_numpy(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", CALLS)
def test_numpy(meter: Any, name: str, rows: int) -> None:
    _, with_numpy = CALLS[name]
    x = numbers(rows)
    meter(f"{name} {rows} x {COLS}", lambda: with_numpy(x), 2 * x.nbytes)
