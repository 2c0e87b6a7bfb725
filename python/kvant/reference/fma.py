"""Fused multiply-add in f32, by way of f64.

The product of two f32 is exact in f64 (48 of 53 bits, and exponents far inside the range). Adding
the third number rounds, and rounding that sum again to f32 would round twice. So the sum is first
rounded to odd: if it is not exact, its last bit is made 1, which keeps it away from every number
and every midpoint of f32. The last rounding then sees on which side the true sum lies (Boldo and
Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd",
2008). Subnormal results have fewer bits than normal ones, so the same argument holds for them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .numeric import F32


def _widen(x: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(x)
    if array.dtype != np.float32:
        raise ValueError(f"[fma] expected float32 numbers, got {array.dtype}")
    return array.astype(np.float64)


def fma(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> F32:
    """Compute a * b + c, rounded once.

    Parameters
    ----------
    a, b, c : float32
        Any numbers, of shapes that broadcast.

    Returns
    -------
    float32
        Of the broadcast shape. Overflow gives infinities; zeros have the sign that IEEE 754 gives
        them. The bits of a NaN are unspecified: `canonical` makes them so at the end of a product.

    Raises
    ------
    ValueError
        A dtype other than float32, or shapes that do not broadcast.

    Examples
    --------
    The product 1 - 2**-46 rounds to 1 on its own; fused, what is below 1 survives.

    >>> import numpy as np
    >>> a, b, c = np.float32(1 + 2**-23), np.float32(1 - 2**-23), np.float32(-1)
    >>> float(a * b + c), float(fma(a, b, c)) == -(2.0**-46)
    (0.0, True)
    """
    with np.errstate(all="ignore"):
        addend = _widen(c)
        product = _widen(a) * _widen(b)
        total = np.asarray(product + addend)
        # What the addition lost, exactly: Knuth's two-sum. NaN where the sum is not finite.
        added = total - product
        lost = (product - (total - added)) + (addend - added)
        bits = total.view(np.int64)
        # One unit toward the true sum; the neighbour of an even pattern is odd.
        toward = np.where((lost > 0) == (total > 0), 1, -1)
        step = np.where((np.abs(lost) > 0) & (bits & 1 == 0), toward, 0)
        return (bits + step).view(np.float64).astype(np.float32)
