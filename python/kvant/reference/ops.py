"""The operations around matrix products, in NumPy alone: the definition, bit for bit.

Everything is f32 and rounded after each step, `fma` once for both of its own; sums over a row are
sixteen partial sums (`lane_sum`). Angles of `rope` are f64 in +, -, * and / only, because the sine
of a C library differs between machines. Every NaN of a result is 0x7fc00000.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .fma import fma
from .numeric import F32, U8, canonical, f32

__all__ = [
    "activation_mul",
    "add",
    "embedding",
    "hadamard",
    "rms_norm",
    "rope",
    "route",
    "scale",
    "silu_mul",
    "softmax",
]

_F64 = NDArray[np.float64]

_EXP = [1.0, 1.0, *map(float.fromhex, ("0x1.fffffcp-2", "0x1.555492p-3", "0x1.5558b0p-5"))]
_EXP += map(float.fromhex, ("0x1.12398ep-7", "0x1.6a4d62p-10"))
# G of gelu's tail exp(-a**2 / 2) * G(1 / (1 + c * a)), and c.
_TAIL = [
    *map(float.fromhex, ("0x1.a984c2p-18", "0x1.0f50a6p-3", "0x1.13bc74p-3", "0x1.ace3a0p-4")),
    *map(float.fromhex, ("0x1.280fbep-3", "-0x1.acb6fep-4", "0x1.26c00cp-2", "-0x1.4dbfb2p-2")),
    *map(float.fromhex, ("0x1.3aea5cp-3", "-0x1.c10c64p-6")),
]
_C = np.float32(float.fromhex("0x1.547ae2p-2"))
_ONE, _HALF = np.float32(1), np.float32(0.5)
_ATANH = [1.0 / (2 * k + 1) for k in range(12)]
_EXP64 = [1.0 / math.factorial(k) for k in range(14)]
_SIN64 = [(-1.0) ** k / math.factorial(2 * k + 1) for k in range(9)]
_COS64 = [(-1.0) ** k / math.factorial(2 * k) for k in range(9)]
# Adding it to an f64 rounds to a whole number, which then stands in the low bits.
_ROUND64 = 1.5 * 2.0**52


def _polynomial(x: F32, terms: list[float]) -> F32:
    y = np.full_like(x, terms[-1])
    for term in reversed(terms[:-1]):
        y = fma(x, y, np.float32(term))
    return y


def exp(x: F32) -> F32:
    """e**x: 0 below -126.5 ln 2, infinity above 127.5 ln 2, within 0.9 ulp between."""
    with np.errstate(all="ignore"):
        x = f32(np.where(x < np.float32(-88.2), np.float32(-88.2), x))
        x = f32(np.where(x > np.float32(88.6), np.float32(88.6), x))
        magic = np.float32(12582912 + 127)
        t = fma(x, np.float32(float.fromhex("0x1.715476p+0")), magic)
        n = t - magic
        r = fma(n, np.float32(-float.fromhex("0x1.62e43p-1")), x)
        r = fma(n, np.float32(float.fromhex("0x1.05c61p-29")), r)
        power = (t.view(np.uint32) << np.uint32(23)).view(np.float32)
        return _polynomial(r, _EXP) * power


def _lanes(x: F32, fill: float) -> F32:
    """Rows [..., k] as [..., ceil(k / 16), 16], what is missing filled."""
    missing = -x.shape[-1] % 16
    full = np.concatenate([x, np.full((*x.shape[:-1], missing), fill, np.float32)], axis=-1)
    return full.reshape(*x.shape[:-1], -1, 16)


def halve(lanes: F32) -> F32:
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes


def lane_sum(x: F32) -> F32:
    """Sum of each row [..., 1]: the sixteen of `lane_parts`, of which halves add."""
    return halve(lane_parts(x))


def lane_parts(x: F32) -> F32:
    """Sixteen sums of each row [..., 16], of which number l takes l, l + 16, ..."""
    total = np.zeros((*x.shape[:-1], 16), np.float32)
    for sixteen in np.moveaxis(_lanes(x, 0.0), -2, 0):
        total = total + sixteen
    return total


def rms_norm(x: F32, weight: F32 | None, eps: float = 1e-6) -> F32:
    """(x * r) * weight, r = 1 / sqrt(sum / k + eps), the sum like `lane_sum` with fma(x, x, sum).

    Examples
    --------
    >>> import numpy as np
    >>> rms_norm(np.float32([2, -2]), np.float32([1, 3]), 0.0).tolist()
    [1.0, -3.0]
    """
    with np.errstate(all="ignore"):
        total = np.zeros((*x.shape[:-1], 16), np.float32)
        for sixteen in np.moveaxis(_lanes(x, 0.0), -2, 0):
            total = fma(sixteen, sixteen, total)
        mean = halve(total) / np.float32(x.shape[-1])
        y = x * (_ONE / np.sqrt(mean + np.float32(eps)))
        return canonical(y if weight is None else y * weight)


def softmax(x: F32, scale: float = 1.0) -> F32:
    """e * (1 / lane_sum(e)), e = exp(x * scale - max); all NaN for NaN, +inf, or only -inf.

    Examples
    --------
    >>> import numpy as np
    >>> softmax(np.float32([0, 0])).tolist()
    [0.5, 0.5]
    """
    with np.errstate(all="ignore"):
        z = x * np.float32(scale)
        e = exp(z - z.max(axis=-1, keepdims=True))
        return canonical(e * (_ONE / lane_sum(e)))


def hadamard(x: F32, block: int, signs: F32 | None = None, inverse: bool = False) -> F32:
    """H (signs * x) / sqrt(block) of every block; or, undone, signs * (H x / sqrt(block)).

    Examples
    --------
    >>> import numpy as np
    >>> hadamard(np.ones(16, np.float32), 16)[:2].tolist()
    [4.0, 0.0]
    """
    root = np.float32(1 / math.sqrt(block))
    y = x.reshape(-1, block)
    with np.errstate(all="ignore"):
        if signs is not None and not inverse:
            y = y * signs
        step = 1
        while step < block:
            pairs = y.reshape(len(y), -1, 2, step)
            a, b = pairs[:, :, 0], pairs[:, :, 1]
            y = np.stack([a + b, a - b], axis=2).reshape(len(y), block)
            step *= 2
        y = y * (signs * root if signs is not None and inverse else root)
        return canonical(y.reshape(x.shape))


def scale(x: F32, factor: float) -> F32:
    """x * factor, the factor rounded to f32.

    Examples
    --------
    >>> import numpy as np
    >>> scale(np.float32([1, 2]), 0.5).tolist()
    [0.5, 1.0]
    """
    with np.errstate(all="ignore"):
        return canonical(x * np.float32(factor))


def add(y: F32, x: F32) -> F32:
    """y + x.

    Examples
    --------
    >>> import numpy as np
    >>> add(np.float32([1, 2]), np.float32([3, 4])).tolist()
    [4.0, 6.0]
    """
    with np.errstate(all="ignore"):
        return canonical(y + x)


def route(
    scores: F32, used: int, *, among: str = "all", norm: bool = True
) -> tuple[NDArray[np.int64], F32]:
    """The best `used` experts of each row, best first, and their shares.

    The lower id comes first of equals, NaN comes last. Shares are those of `softmax` over all
    scores, divided by their sum when `norm` (added up best first); or of a softmax over the scores
    of those chosen.

    Examples
    --------
    >>> import numpy as np
    >>> route(np.float32([[1, 3, 3]]), 2)[0].tolist()
    [[1, 2]]
    """
    values = softmax(scores) if among == "all" else scores
    chosen = np.argsort(-values, axis=-1, kind="stable")[..., :used]
    shares = np.take_along_axis(values, chosen, axis=-1)
    if among == "chosen":
        return chosen, softmax(shares)
    if norm:
        shares = f32(shares / np.add.accumulate(shares, axis=-1)[..., -1:])
    return chosen, shares


def _silu(x: F32) -> F32:
    return x / (_ONE + exp(-x))


def _gelu_tanh(x: F32) -> F32:
    cubic = np.float32(-float.fromhex("0x1.2444f2p-4"))
    slope = fma(x * x, cubic, np.float32(-float.fromhex("0x1.988454p+0")))
    return x / (_ONE + exp(x * slope))


def _gelu(x: F32) -> F32:
    a = np.abs(x)
    a = f32(np.where(a > np.float32(14), np.float32(14), a))
    square = a * a
    lost = fma(a, a, -square)
    e = exp(-_HALF * square)
    e = fma(e, -_HALF * lost, e)
    tail = e * _polynomial(_ONE / fma(a, _C, _ONE), _TAIL)
    return f32(np.where(x < 0, x * tail, fma(-a, tail, x)))


def _relu(x: F32) -> F32:
    return f32(np.where(x <= 0, np.float32(0), x))


ACTIVATIONS = {"silu": _silu, "gelu": _gelu, "gelu_tanh": _gelu_tanh, "relu": _relu}


def activation_mul(gate: F32, up: F32, activation: str = "silu") -> F32:
    """`activation(gate) * up`: silu, gelu, gelu_tanh or relu.

    Examples
    --------
    >>> import numpy as np
    >>> activation_mul(np.float32([-1, 2]), np.float32([3, 3]), "relu").tolist()
    [0.0, 6.0]
    """
    with np.errstate(all="ignore"):
        return canonical(ACTIVATIONS[activation](gate) * up)


def silu_mul(gate: F32, up: F32) -> F32:
    """`silu(gate) * up`."""
    return activation_mul(gate, up)


def _polynomial64(x: _F64, terms: list[float]) -> _F64:
    y = np.full_like(x, terms[-1])
    for term in reversed(terms[:-1]):
        y = y * x + term
    return y


def _log64(x: float) -> float:
    m, exponent = math.frexp(x)
    m, exponent = m * 2, exponent - 1
    if m >= float.fromhex("0x1.6a09e667f3bcdp+0"):
        m, exponent = m * 0.5, exponent + 1
    s = (m - 1.0) / (m + 1.0)
    series = float(_polynomial64(np.float64(s * s).reshape(1), _ATANH)[0])
    return exponent * float.fromhex("0x1.62e42fefa39efp-1") + (s + s) * series


def _exp64(x: _F64) -> _F64:
    magic = _ROUND64 + 1023.0
    t = x * float.fromhex("0x1.71547652b82fep+0") + magic
    n = t - magic
    high, low = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
    power = (t.view(np.uint64) << np.uint64(52)).view(np.float64)
    return _polynomial64((x - n * high) - n * low, _EXP64) * power


def cos_sin(angle: _F64) -> tuple[_F64, _F64]:
    """Cosine and sine in f64, |angle| up to 1e8, within 1e-15."""
    t = angle * float.fromhex("0x1.45f306dc9c883p-1") + _ROUND64
    n = t - _ROUND64
    r = angle - n * float.fromhex("0x1.921fb5p+0")
    r = (r - n * float.fromhex("0x1.110b46p-26")) - n * float.fromhex("0x1.1a62633145c07p-54")
    square = r * r
    s, c = r * _polynomial64(square, _SIN64), _polynomial64(square, _COS64)
    quarter = t.view(np.int64)
    odd = quarter & 1 == 1
    cos, sin = np.where(odd, s, c), np.where(odd, c, s)
    return (
        np.where((quarter + 1) & 2, -cos, cos),
        np.where(quarter & 2, -sin, sin),
    )


def frequencies(theta: float, rotary: int, freq_factors: F32 | None = None) -> _F64:
    """theta ** (-2 * i / rotary) for each pair, divided by its factor."""
    index = 2 * np.arange(rotary // 2, dtype=np.float64)
    each = _exp64(-(index / float(rotary) * _log64(theta)))
    return each if freq_factors is None else each / freq_factors.astype(np.float64)


def rope(
    x: F32,
    positions: ArrayLike,
    *,
    theta: float = 10000.0,
    style: str = "half",
    rotary_dim: int | None = None,
    freq_factors: F32 | None = None,
    scale: float = 1.0,
) -> F32:
    """Rotate pairs (a, b) of x [tokens, heads, dim]: fma(a, cos, -(b sin)), fma(b, cos, a sin).

    Examples
    --------
    >>> import numpy as np
    >>> rope(np.float32([[[1, 0]]]), [1]).tolist()
    [[[0.5403022766113281, 0.8414709568023682]]]
    """
    rotary = x.shape[-1] if rotary_dim is None else rotary_dim
    places = np.asarray(positions).astype(np.float64) / float(scale)
    angles = places[:, None, None] * frequencies(float(theta), rotary, freq_factors)
    cos, sin = (f32(each) for each in cos_sin(angles))
    pairs = rotary // 2
    first, second = (
        (slice(0, pairs), slice(pairs, rotary))
        if style == "half"
        else (slice(0, rotary, 2), slice(1, rotary, 2))
    )
    a, b = x[..., first], x[..., second]
    out = x.copy()
    with np.errstate(all="ignore"):
        out[..., first] = canonical(fma(a, cos, -(b * sin)))
        out[..., second] = canonical(fma(b, cos, a * sin))
    return out


def embedding(data: U8, format: str, ids: ArrayLike) -> F32:
    """Decoded rows of a packed table [n, row_bytes] by number: [..., k].

    Examples
    --------
    >>> import numpy as np
    >>> embedding(np.zeros((3, 34), np.uint8), "q8_0", [[2, 0]]).shape
    (1, 2, 32)
    """
    from . import decode

    index: NDArray[Any] = np.asarray(ids)
    return decode(data[index.reshape(-1)], format).reshape(*index.shape, -1)
