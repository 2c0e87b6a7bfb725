"""The fused multiply-add against exact fractions, most of all where two roundings would show."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import exact_f32
from kvant.reference import fma
from support import bits

any_float = st.integers(0, 2**32 - 1).map(
    lambda pattern: float(np.uint32(pattern).view(np.float32))
)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
LARGEST = float(np.finfo(np.float32).max)
magnitudes = [0.0, 2.0**-149, 2.0**-126, 2.0**-75, 1.0, 2.0**64, LARGEST, math.inf, math.nan]
special = st.sampled_from([*magnitudes, *(-each for each in magnitudes)])
signs = st.sampled_from([-1.0, 1.0])
mantissas = st.integers(2**23, 2**24 - 1)


def f32(*values):
    return np.array(values, np.float32)


def check(a, b, c):
    """Both as scalars and as elements of arrays, whatever lies beside them."""
    wanted = exact_f32.bits(exact_f32.fma(a, b, c))
    assert bits(fma(np.float32(a), np.float32(b), np.float32(c))) == wanted
    beside = fma(f32(1, a, 2), f32(3, b, 4), f32(5, c, 6))
    assert bits(beside).tolist() == [exact_f32.bits(8.0), wanted, exact_f32.bits(14.0)]


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(2.0**128 - 2.0**103)
@example(2.0**-150)
def test_the_oracle_rounds_as_the_processor_does(x):
    with np.errstate(over="ignore", under="ignore"):
        wanted = np.float32(x)
    assert exact_f32.bits(exact_f32.round_f32(Fraction(x), x)) == bits(wanted)


@given(any_float, any_float, any_float)
def test_any_three_patterns(a, b, c):
    check(a, b, c)


@given(st.one_of(special, finite), st.one_of(special, finite), st.one_of(special, finite))
@example(0.0, 1.0, -0.0)
@example(-0.0, 1.0, -0.0)
@example(1.0, 1.0, -1.0)
@example(2.0**-100, -(2.0**-100), 0.0)
@example(2.0**127, 2.0, -math.inf)
@example(2.0**127, 2.0, -(2.0**127))
@example(math.inf, 0.0, 1.0)
def test_zeros_infinities_and_nans(a, b, c):
    check(a, b, c)


@given(mantissas, mantissas, st.integers(-60, 20), signs, st.integers(-2, 2))
def test_sums_beside_a_midpoint(p, q, exponent, sign, steps):
    """c leads from the product to a midpoint of f32, or a few of its own units beside it."""
    a, b = float(p), sign * math.ldexp(q, exponent)
    product = Fraction(a) * Fraction(b)
    below = f32(exact_f32.round_f32(product))
    middle = Fraction(float(below[0])) + Fraction(float(np.spacing(below)[0])) / 2
    c = f32(exact_f32.round_f32(middle - product))
    for _ in range(abs(steps)):
        c = np.nextafter(c, np.float32(math.copysign(np.inf, steps)))
    check(a, b, float(c[0]))
    check(a, b, -float(below[0]))


# Odd numbers whose products are odd and have 25 bits: midpoints between two f32.
odd = st.integers(2**11, 2894).map(lambda n: 2.0 * n + 1)


@given(odd, odd, st.integers(-149, -1), st.integers(-140, 40), signs)
def test_a_product_on_a_midpoint_and_next_to_nothing_added(a, b, exponent, shift, sign):
    """c is far below what f64 has room for beside the product."""
    tiny = 2.0**exponent
    for c in (tiny, -tiny, 0.0):
        check(a, sign * b, c)
        check(a, sign * b * 2.0**shift, c)


def test_two_roundings_would_be_seen():
    """A plain f64 sum goes wrong on cases as above, so they can find what they look for."""
    a, b, c = 4097.0, 4099.0, -(2.0**-40)
    plain = np.float32(np.float64(a) * np.float64(b) + np.float64(c))
    assert plain != fma(np.float32(a), np.float32(b), np.float32(c))
    check(a, b, c)


@given(mantissas, mantissas, st.integers(-200, -172), signs, st.integers(-5, 5))
def test_subnormal_results(p, q, exponent, sign, units):
    a, b = math.ldexp(p, exponent // 2), sign * math.ldexp(q, exponent - exponent // 2)
    for unit in (0.0, 2.0**-149, 2.0**-140, 2.0**-127):
        check(a, b, units * unit)


@given(st.integers(0, 2**23 - 1), signs, signs)
def test_subnormal_midpoints(units, sign, other):
    """Half a unit of the smallest kind, and a hair to either side."""
    for factor in (1.0, 1 + 2.0**-23, 1 - 2.0**-24):
        check(factor * 2.0**-75, sign * 2.0**-75, other * units * 2.0**-149)


@given(mantissas, mantissas, st.integers(0, 2), signs)
def test_overflow(p, q, above, sign):
    a, b = math.ldexp(p, 40 + above), sign * math.ldexp(q, 40)
    for c in (LARGEST, -LARGEST, sign * 2.0**102, sign * 2.0**103, sign * math.ldexp(3, 101)):
        check(a, b, c)
        check(sign, LARGEST, c)


def test_shapes_broadcast_and_may_be_empty():
    a, b, c = np.ones((4, 1), np.float32), np.ones((1, 3), np.float32), np.zeros(3, np.float32)
    assert fma(a, b, c).shape == (4, 3)
    assert fma(a[:0], b, c).shape == (0, 3)
    assert fma(np.float32(1), np.float32(1), np.float32(1)).dtype == np.float32
    assert fma(np.broadcast_to(np.float32(2), (3,)), b[::-1], c).tolist() == [[2, 2, 2]]


def test_other_types_are_refused():
    with pytest.raises(ValueError, match=r"\[fma\] expected float32 numbers, got float64"):
        fma(np.float32(1), 2.0, np.float32(3))
