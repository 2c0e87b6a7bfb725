"""Single-precision steps that the encoders share, spelled out for odd inputs too.

Callers hold floating-point warnings off (`numpy.errstate`): infinities and NaNs are ordinary
values here, since the reciprocal of a denormal range overflows.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

F32: TypeAlias = NDArray[np.float32]
I8: TypeAlias = NDArray[np.int8]
I32: TypeAlias = NDArray[np.int32]
U8: TypeAlias = NDArray[np.uint8]
Ints: TypeAlias = NDArray[np.integer[Any]]

# Sub-blocks whose largest magnitude is below this are taken for zero by every search.
SMALLEST_GROUP = np.float32(1e-15)

_MAGIC = np.float32(12582912.0)
_CANONICAL_NAN = np.uint32(0x7FC00000)
_INT_MIN = np.float32(-2147483648.0)
_HALF_NAN = np.uint16(0xFE00)


def f32(x: NDArray[Any]) -> F32:
    """The same numbers as f32."""
    return np.asarray(x, dtype=np.float32)


def i32(x: NDArray[Any]) -> I32:
    """The same whole numbers as int32."""
    return np.asarray(x, dtype=np.int32)


def i8(x: NDArray[Any]) -> I8:
    """The same whole numbers as int8."""
    return np.asarray(x, dtype=np.int8)


def nearest_int(x: F32) -> I32:
    """Round half to even by adding 1.5 * 2**23 and reading the mantissa.

    Outside |x| < 2**22 the mantissa is read all the same: infinities give -2**22, a NaN made by
    arithmetic gives 0. The formats rely on these values in blocks of denormals.
    """
    bits = (x + _MAGIC).view(np.int32)
    return (bits & np.int32(0x007FFFFF)) - np.int32(0x00400000)


def truncate(x: F32) -> I32:
    """Float to int as x86 does it: toward zero, -2**31 for NaN and whatever does not fit."""
    whole = np.trunc(x)
    fits = (whole >= _INT_MIN) & (whole < -_INT_MIN)
    return np.where(fits, whole, _INT_MIN).astype(np.int32)


def round_half_away(x: F32) -> F32:
    """Round to the nearest whole number, halves away from zero, like C's `roundf`."""
    whole = np.trunc(x)
    step = np.copysign(f32(np.abs(x - whole) >= np.float32(0.5)), x)
    return f32(np.where(np.isfinite(x), whole + step, x))


def low_byte(x: Ints) -> U8:
    """The lowest eight bits, as a cast to a byte keeps them."""
    return (x & 0xFF).astype(np.uint8)


def signed_byte(x: Ints) -> I32:
    """The lowest eight bits read as a signed number."""
    return low_byte(x).view(np.int8).astype(np.int32)


def ordered_sum(terms: F32) -> F32:
    """Add along axis 0 from first to last, rounding to f32 after each, starting from +0."""
    total = np.zeros(terms.shape[1:], np.float32)
    for term in terms:
        total += term
    return total


def peak(x: F32) -> tuple[F32, F32]:
    """Largest magnitude along axis 0 and the signed value that has it (the first, on a tie)."""
    amax = np.zeros(x.shape[1:], np.float32)
    signed = np.zeros(x.shape[1:], np.float32)
    for value in x:
        magnitude = np.abs(value)
        larger = magnitude > amax
        amax = f32(np.where(larger, magnitude, amax))
        signed = f32(np.where(larger, value, signed))
    return amax, signed


def reciprocal(x: F32) -> F32:
    """1/x, and 0 where x is zero."""
    return f32(np.where(x != 0, np.float32(1.0) / x, np.float32(0.0)))


def to_half(x: F32) -> NDArray[np.uint16]:
    """Bits of the nearest f16 (ties to even; overflow to infinity; NaN to 0xFE00)."""
    bits = x.astype(np.float16).view(np.uint16)
    return np.where(np.isnan(x), _HALF_NAN, bits)


def from_half(bits: NDArray[np.uint16]) -> F32:
    """f16 bits as f32 numbers, exact."""
    return bits.view(np.float16).astype(np.float32)


def half_bytes(x: F32) -> U8:
    """f32 numbers of shape (n,) as little-endian f16 bytes of shape (n, 2)."""
    return to_half(x).astype("<u2").view(np.uint8).reshape(-1, 2)


def read_half(data: U8, at: int) -> F32:
    """The f16 number that starts at byte `at` of each block, as f32 of shape (n,)."""
    return from_half(read_u16(data, at))


def read_u16(data: U8, at: int) -> NDArray[np.uint16]:
    """The little-endian 16-bit word that starts at byte `at` of each block."""
    low = data[:, at].astype(np.uint16)
    return low | (data[:, at + 1].astype(np.uint16) << np.uint16(8))


def canonical(x: F32) -> F32:
    """The same numbers with every NaN replaced by the positive quiet NaN of empty payload."""
    return np.where(np.isnan(x), _CANONICAL_NAN, x.view(np.uint32)).view(np.float32)
