"""kvant.activation_mul and silu_mul: the bits of the twin on every ISA, errors as documented."""

from __future__ import annotations

import math

import numpy as np
import pytest
from blocks import seeds
from hypothesis import given
from hypothesis import strategies as st

import kvant
from distributions import wild
from kvant.reference import ops
from support import every_isa, words

NAMES = tuple(ops.ACTIVATIONS)
ROOT_HALF = math.sqrt(0.5)


def exact(name, x):
    """In f64; x is f64."""
    if name == "silu":
        return x / (1 + np.exp(-x))
    if name == "gelu":
        return 0.5 * x * np.vectorize(math.erfc)(-x * ROOT_HALF)
    if name == "gelu_tanh":
        return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return np.maximum(x, 0)


def units(found, wanted):
    """Errors in units of the last place of the exact numbers."""
    place = np.exp2(np.maximum(np.frexp(wanted)[1], -125) - 24.0)
    return np.abs(found - wanted) / place


@pytest.mark.parametrize("name", NAMES)
@given(
    rows=st.integers(1, 4),
    cols=st.one_of(st.integers(1, 70), st.just(1000)),
    seed=seeds,
    share=st.sampled_from([0.0, 0.05, 1.0]),
)
def test_is_its_twin(name, rows, cols, seed, share):
    gate, up = wild(rows, cols, seed, share), wild(rows, cols, seed + 1, share)
    wanted = words(ops.activation_mul(gate, up, name))
    for isa in every_isa():
        assert np.array_equal(words(kvant.activation_mul(gate, up, name)), wanted), isa
        if name == "silu":
            assert np.array_equal(words(kvant.silu_mul(gate, up)), wanted), isa


@pytest.mark.parametrize("name", NAMES)
def test_many_numbers_of_every_size(name, isa):
    """Every 4099th f32, in one row."""
    x = np.arange(0, 2**32, 4099, np.uint64).astype(np.uint32).view(np.float32)
    ones = np.ones_like(x)
    found = kvant.activation_mul(x, ones, name)
    assert np.array_equal(words(found), words(ops.activation_mul(x, ones, name)))


# Largest errors over every f32, measured once; the samples here stay below.
BOUNDS = {
    "silu": [(-87, 100, 2.4)],
    "gelu": [(-12, 100, 6.0)],
    "gelu_tanh": [(-1, 100, 2.7), (-5, -1, 32)],
    "relu": [(-100, 100, 0)],
}


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_those_of_the_document(name):
    rng = np.random.default_rng(0)
    for low, high, bound in BOUNDS[name]:
        x = np.concatenate([rng.uniform(low, high, 60_000), rng.uniform(-1, 1, 30_000)])
        x = np.clip(x, low, high).astype(np.float32)
        found = kvant.activation_mul(x, np.ones_like(x), name)
        wanted = exact(name, x.astype(np.float64))
        assert units(found, wanted).max() <= bound
        below = wanted < 0
        assert np.abs(found - wanted)[below].max(initial=0) < 8e-8


@pytest.mark.parametrize("name", NAMES)
def test_known_numbers(name, isa):
    x = np.float32([0.0, -0.0, np.inf, -1000, np.nan, 20, -np.inf])
    found = kvant.activation_mul(x, np.ones_like(x), name)
    assert found[:4].tolist() == [0, 0, np.inf, 0]
    assert words(found)[4] == 0x7FC00000
    assert found[5] == 20
    # Minus infinity times zero, as in PyTorch.
    assert found[6] == 0 if name == "relu" else words(found)[6] == 0x7FC00000
    # Zero times infinity is not a number either.
    none = kvant.activation_mul(np.float32([0]), np.float32([np.inf]), name)
    assert words(none)[0] == 0x7FC00000


@pytest.mark.parametrize("shape", [(1, 70_001), (1000, 77), (3, 5, 4096)])
def test_threads_do_not_show(shape):
    gate = wild(math.prod(shape[:-1]), shape[-1], 0).reshape(shape)
    up = wild(math.prod(shape[:-1]), shape[-1], 1).reshape(shape)
    alone = words(kvant.silu_mul(gate, up, threads=1))
    for threads in (2, 3, 4):
        assert np.array_equal(words(kvant.silu_mul(gate, up, threads=threads)), alone)


def test_halves_of_one_array():
    both = wild(9, 2 * 100, 0)
    gate, up = both[:, :100], both[:, 100:]
    wanted = kvant.silu_mul(gate.copy(), up.copy())
    assert np.array_equal(words(kvant.silu_mul(gate, up)), words(wanted))
    kvant.silu_mul(gate, up, out=gate)
    assert np.array_equal(words(gate), words(wanted))
