"""Single precision by whole numbers alone: what an operation on f32 gives when rounded once.

Slow and short. Numbers are `fractions.Fraction` until the one rounding; nothing here rounds twice.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

_SMALLEST_EXPONENT, _BITS = -126, 24
_TOO_LARGE = Fraction(2) ** 128


def round_f32(value: Fraction, zero: float = 0.0) -> float:
    """The f32 nearest to a number, ties to even; `zero` is what an exact zero becomes."""
    if value == 0:
        return zero
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, _SMALLEST_EXPONENT) - _BITS + 1)
    # Python rounds fractions half to even.
    rounded = round(value / unit) * unit
    if abs(rounded) >= _TOO_LARGE:
        return math.copysign(math.inf, value)
    return math.copysign(float(rounded), value)


def multiply(a: float, b: float) -> float:
    """a * b, rounded once."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return a * b
    zero = math.copysign(0.0, math.copysign(1.0, a) * math.copysign(1.0, b))
    return round_f32(Fraction(a) * Fraction(b), zero)


def divide(a: float, b: float) -> float:
    """a / b for finite numbers, b above zero, rounded once."""
    return round_f32(Fraction(a) / Fraction(b))


def fma(a: float, b: float, c: float) -> float:
    """a * b + c, rounded once."""
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        # Of infinities and NaNs Python's arithmetic gives the same, a finite c or product aside.
        if math.isfinite(a) and math.isfinite(b):
            return c
        return a * b + c
    sign = math.copysign(1.0, a) * math.copysign(1.0, b)
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    # Two zeros of one sign keep it; every other exact zero is +0.
    both_negative = sign < 0 and math.copysign(1.0, c) < 0 and a * b == 0
    return round_f32(exact, -0.0 if both_negative else 0.0)


def bits(value: float) -> int:
    """The pattern of an f32, every NaN as 0x7fc00000."""
    return 0x7FC00000 if math.isnan(value) else int(np.float32(value).view(np.uint32))
