"""How far one row of logits is from another, in NumPy alone: the definition, bit for bit.

x = n ln 2 + r makes e**x = 2**n e**r, so nothing is subtracted from a logit before its exponential
is taken, and powers of two are put in and taken out without rounding. Rows are cut into blocks; the
sums of a block are f64, in sixteen lanes, relative to 2**N of its largest logit. docs/quality.md
states the errors.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .fma import fma
from .numeric import F32, f32
from .ops import _EXP, _log64, _polynomial

__all__ = ["RowDivergence", "divergence"]

_F64 = NDArray[np.float64]
_I64 = NDArray[np.int64]

BLOCK = 2048
STRIP = 256
LARGEST = 2.0**19
_LOWEST = np.float32(-(2.0**20))
_FLOOR = np.float32(12582912)
_ROUND = 12582912.0 + 127
_LOG2E = float.fromhex("0x1.71547652b82fep+0")
_LN2 = float.fromhex("0x1.62e42fefa39efp-1")
_ROUND64 = 1.5 * 2.0**52


class RowDivergence(NamedTuple):
    """One number per row.

    kl                   KL(base || test) in nats, not negative
    base_lse, test_lse   log of the sum of the exponentials
    base_top, test_top   index of the largest logit, the first of equals
    """

    kl: _F64
    base_lse: _F64
    test_lse: _F64
    base_top: _I64
    test_top: _I64


def _exponent(largest: F32) -> _F64:
    """N of blocks: their largest logit over ln 2, rounded to a whole number."""
    inside = np.clip(largest.astype(np.float64), float(_LOWEST), -float(_LOWEST))
    total: _F64 = (inside * _LOG2E + _ROUND64) - _ROUND64
    return total


def _exponentials(x: F32, n: _F64) -> tuple[F32, F32]:
    """e**x / 2**n, rounded, and what that rounding took away."""
    round = f32(_ROUND - n)
    t = fma(x, np.float32(float.fromhex("0x1.715476p+0")), round)
    whole = t - round
    r = fma(whole, np.float32(-float.fromhex("0x1.62e43p-1")), x)
    r = fma(whole, np.float32(float.fromhex("0x1.05c61p-29")), r)
    y = _polynomial(r, _EXP[1:])
    high = fma(r, y, np.float32(1))
    low = fma(r, y, np.float32(1) - high)
    bits = f32(np.where(t > _FLOOR, t, _FLOOR)).view(np.uint32)
    power = (bits << np.uint32(23)).view(np.float32)
    return high * power, low * power


def _lane_sum(terms: _F64) -> _F64:
    """Sum over the last axis: lane l takes l, l + 16, ... in order; then halves add."""
    lanes = np.zeros((*terms.shape[:-1], 16))
    for sixteen in np.moveaxis(terms.reshape(*terms.shape[:-1], -1, 16), -2, 0):
        lanes = lanes + sixteen
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def _block_sums(p: F32, q: F32, np_: _F64, nq: _F64) -> tuple[_F64, _F64, _F64, _F64]:
    """Of blocks [..., BLOCK]: sums of e**p, e**q, w = e**p and w (p - q), over 2**N each.

    w is e**p to some bits more than the first sum has, which treats both sides alike.
    """
    p, q = (f32(np.where(x < _LOWEST, _LOWEST, x)) for x in (p, q))
    high, low = _exponentials(p, np_[..., None])
    base, other = (x.astype(np.float64) for x in (high, _exponentials(q, nq[..., None])[0]))
    # The lost parts are summed in f32 over each strip.
    shape = (*p.shape[:-1], BLOCK // STRIP, STRIP // 16, 16)
    lost, apart = low.reshape(shape), (p - q).reshape(shape)
    rest, rest_between = (np.zeros((*shape[:-2], 16), np.float32) for _ in range(2))
    for i in range(STRIP // 16):
        rest = rest + lost[..., i, :]
        rest_between = fma(lost[..., i, :], apart[..., i, :], rest_between)
    flat = (*p.shape[:-1], -1)
    sum_p = _lane_sum(base)
    between = _lane_sum(base * (p.astype(np.float64) - q.astype(np.float64)))
    return (
        sum_p,
        _lane_sum(other),
        sum_p + _lane_sum(rest.astype(np.float64).reshape(flat)),
        between + _lane_sum(rest_between.astype(np.float64).reshape(flat)),
    )


def _power(exponent: _F64) -> _F64:
    """2**exponent for exponents of 0 and below; 0 where that is no normal number."""
    return np.where(exponent < -1022, 0.0, np.ldexp(1.0, exponent.astype(np.int64)))


def _log(x: _F64) -> _F64:
    each = [_log64(v) if 0 < v < np.inf else math.nan for v in x.ravel()]
    return np.array(each).reshape(x.shape)


def divergence(base: F32, test: F32) -> RowDivergence:
    """Compare rows of logits [rows, vocab].

    -inf in the base counts nothing; in the test it makes the divergence infinite unless the base
    has it too. Logits below -2**20 count as -2**20. A NaN, or a largest logit beyond 2**19 or below
    -2**19, makes the row's sum and its divergence NaN.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.log(np.float32([[1, 1], [1, 3]]))
    >>> divergence(x, x[::-1]).kl.round(6).tolist()
    [0.143841, 0.130812]
    """
    rows, vocab = base.shape
    missing = -vocab % BLOCK
    fill = np.full((rows, missing), -np.inf, np.float32)
    p, q = (np.concatenate([x, fill], 1).reshape(rows, -1, BLOCK) for x in (base, test))
    with np.errstate(all="ignore"):
        most_p, most_q = (np.fmax.reduce(x, axis=-1, initial=-np.inf) for x in (p, q))
        np_, nq = _exponent(most_p), _exponent(most_q)
        at_p, at_q = np_[:, 0], nq[:, 0]
        sums = _block_sums(p, q, np_, nq)
        sum_p, sum_q, weight, between = (each[:, 0] for each in sums)
        for b in range(1, p.shape[1]):
            new_p, new_q = np.maximum(at_p, np_[:, b]), np.maximum(at_q, nq[:, b])
            old, new = _power(at_p - new_p), _power(np_[:, b] - new_p)
            sum_p = sum_p * old + sums[0][:, b] * new
            weight = weight * old + sums[2][:, b] * new
            between = between * old + sums[3][:, b] * new
            old, new = _power(at_q - new_q), _power(nq[:, b] - new_q)
            sum_q = sum_q * old + sums[1][:, b] * new
            at_p, at_q = new_p, new_q
        base_lse, test_lse = at_p * _LN2 + _log(sum_p), at_q * _LN2 + _log(sum_q)
        for lse, most in ((base_lse, most_p), (test_lse, most_q)):
            lse[~(np.abs(most.max(axis=1)) <= LARGEST)] = np.nan
        kl = between / weight + (test_lse - base_lse)
        kl = np.where(kl < 0, 0.0, kl)
        cut = ((test == -np.inf) & (base != -np.inf)).any(axis=1)
        known = ~np.isnan(base_lse) & ~np.isnan(test_lse)
        kl = np.where(known, np.where(cut, np.inf, kl), np.nan)
    tops = (np.argmax(np.where(np.isnan(x), -np.inf, x), axis=1) for x in (base, test))
    return RowDivergence(kl, base_lse, test_lse, *tops)
