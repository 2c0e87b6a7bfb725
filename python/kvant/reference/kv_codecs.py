"""Codecs of cached keys and values: rows [..., D] as small integers under scales, in NumPy alone.

A row is filled up with zeros to a multiple of 32, and x = scale * code + minimum for each 32. The
block formats are those of weights; q6_0 is one more, of ik_llama.cpp. lm4, lm3 and lm2 have one
scale per row and the levels of Lloyd (1982) and Max (1960) for coordinates of a point on the
sphere, rounded to int8: TurboQuant (Zandieh et al. 2025). Their scale is one of three: "nc" keeps
the norm of the row, "unb" the product <x, decoded> = <x, x> (EDEN, Vargaftik et al. 2022), "ls" has
the least error. kivi4 and kivi2 take rows so where they are values; keys go by channel (`kivi`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import BlockFormat, Groups, Weights
from .bits import pack_halves, unpack_halves
from .iq4 import IQ4NL
from .kivi import KEY_GROUP, MIDDLE, ByChannel, Kivi2, Kivi4
from .legacy import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from .numeric import (
    F32,
    I32,
    U8,
    f32,
    half_bytes,
    i8,
    i32,
    low_byte,
    peak,
    read_half,
    reciprocal,
    signed_byte,
    truncate,
)
from .ops import lane_sum
from .table import find

__all__ = [
    "BLOCK",
    "BY_CHANNEL",
    "CODECS",
    "FLOATS",
    "HALF_TABLES",
    "LEVELS",
    "Q6_0",
    "RULES",
    "THRESHOLDS",
    "Coded",
    "decode",
    "encode",
    "encode_channels",
    "filled",
    "q6_0_bytes",
    "q6_0_codes",
    "rounded",
]

BLOCK = 32
FLOATS = ("f32", "f16", "bf16")
RULES = ("nc", "unb", "ls")

HALF_TABLES = {
    "lm4": (0.12772, 0.38597, 0.65302, 0.93638, 1.24699, 1.60355, 2.04517, 2.68820),
    "lm3": (0.24437, 0.75320, 1.33643, 2.13132),
    "lm2": (0.45244, 1.50516),
}
"""Positive levels for rows of 128, in units of |x| / sqrt(128)."""

# Rows whose sum of squares is below this are zero.
_TINY = np.float32(2.0**-100)


class Coded(NamedTuple):
    """Rows as codes: x = scale * code + minimum.

    codes    int32 [..., D32], D32 being D filled up to a multiple of 32
    scale    float32 [..., D32 / 32], an f16 each
    minimum  float32 [..., D32 / 32], an f16 each, or None
    """

    codes: I32
    scale: F32
    minimum: F32 | None = None


class Q6_0(BlockFormat):  # noqa: N801
    """w = d * (code - 32): f16 d, the codes' upper two bits in 8 bytes, lower four in 16."""

    name = "q6_0"
    block = 32
    block_bytes = 26

    def encode_blocks(self, x: F32, weights: Weights | None) -> U8:
        _, signed = peak(np.ascontiguousarray(x.T))
        d = signed / np.float32(-32)
        shifted = x * reciprocal(d)[:, None] + np.float32(32.5)
        codes = np.minimum(signed_byte(truncate(f32(shifted))), 63)
        fours = (codes >> 4).reshape(-1, 2, 2, 8)
        pairs = fours[:, 0] | fours[:, 1] << 2
        upper = low_byte(pairs[:, 0] | pairs[:, 1] << 4)
        return np.hstack([half_bytes(d), upper, pack_halves(codes & 15)])

    def unpack_blocks(self, data: U8) -> Groups:
        upper = data[:, 2:10]
        parts = [upper & 3, upper >> 4 & 3, upper >> 2 & 3, upper >> 6]
        codes = i32(unpack_halves(data[:, 10:])) | i32(np.hstack(parts)) << 4
        return Groups(i8(codes - 32), read_half(data, 0)[:, None])


_BLOCKS: dict[str, BlockFormat] = {
    each.name: each for each in (Q8_0(), Q6_0(), Q5_1(), Q5_0(), Q4_1(), Q4_0(), IQ4NL())
}

CODECS = (*FLOATS, *_BLOCKS, *HALF_TABLES, *MIDDLE)

BY_CHANNEL = tuple(MIDDLE)
"""Codecs whose keys are coded channel by channel."""

_BLOCKS |= {each.name: each for each in (Kivi4(), Kivi2())}


def _levels(half: tuple[float, ...]) -> I32:
    positive = np.rint(127 * np.array(half) / half[-1])
    return i32(np.concatenate([-positive[::-1], positive]))


def _thresholds(half: tuple[float, ...]) -> F32:
    all_of = np.concatenate([-np.array(half)[::-1], half])
    return f32((all_of[:-1] + all_of[1:]) / 2)


LEVELS = {name: _levels(half) for name, half in HALF_TABLES.items()}
"""What the codes can be: int32 [2 ** bits], ascending."""

THRESHOLDS = {name: _thresholds(half) for name, half in HALF_TABLES.items()}
"""Where the next level begins: f32 [2 ** bits - 1], in units of the row's root mean square."""


def filled(x: F32) -> F32:
    """Rows [..., D] with zeros up to a multiple of 32.

    Examples
    --------
    >>> import numpy as np
    >>> filled(np.ones((2, 80), np.float32)).shape
    (2, 96)
    """
    missing = np.zeros((*x.shape[:-1], -x.shape[-1] % BLOCK), np.float32)
    return np.concatenate([f32(x), missing], axis=-1)


def _refuse(function: str, codec: str, *numbers: F32 | None) -> None:
    if not all(each is None or np.isfinite(each).all() for each in numbers):
        raise ValueError(f"[{function}] expected numbers that {codec} can hold, got larger or NaN")


def rounded(codec: str, x: F32) -> F32:
    """Numbers rounded to f32, f16 or bf16, ties to even.

    Parameters
    ----------
    codec : {"f32", "f16", "bf16"}
    x : float32 [...]

    Returns
    -------
    float32 [...]

    Raises
    ------
    ValueError
        Another codec; a NaN, or a number that is infinite once rounded.

    Examples
    --------
    >>> import numpy as np
    >>> rounded("f16", np.float32([0.1])).tolist()
    [0.0999755859375]
    """
    if codec not in FLOATS:
        raise ValueError(f"[rounded] expected one of {', '.join(FLOATS)}, got {codec!r}")
    fmt = find("rounded", codec)
    values = fmt.decode(fmt.encode(x[..., None]))[..., 0]
    _refuse("rounded", codec, values)
    return values


def encode(codec: str, x: F32, rule: str = "nc") -> Coded:
    """Quantize rows.

    Parameters
    ----------
    codec : str
        One of `CODECS` that is not of floats.
    x : float32 [..., D]
    rule : {"nc", "unb", "ls"}
        How lm4, lm3 and lm2 choose the scale.

    Returns
    -------
    Coded

    Raises
    ------
    ValueError
        Another codec or rule; a NaN, an infinity, or numbers whose scale is infinite.

    Examples
    --------
    >>> import numpy as np
    >>> encode("lm2", np.float32([[3, 1, -1, -3]])).codes[0, :4].tolist()
    [127, 38, -38, -127]
    """
    x = f32(x)
    _refuse("encode", codec, x)
    if codec in HALF_TABLES:
        return _encode_levels(codec, x, rule)
    if codec not in _BLOCKS:
        raise ValueError(f"[encode] expected one of {', '.join(CODECS[3:])}, got {codec!r}")
    fmt = _BLOCKS[codec]
    return _coded(codec, fmt.unpack(fmt.encode(filled(x))))


def _coded(codec: str, groups: Groups) -> Coded:
    minimum = None if groups.minimum is None else -groups.minimum
    _refuse("encode", codec, groups.scale, minimum)
    return Coded(i32(groups.codes), groups.scale, minimum)


def encode_channels(codec: str, keys: F32) -> ByChannel:
    """Quantize keys of whole groups channel by channel, after they were rounded to f16.

    Parameters
    ----------
    codec : {"kivi4", "kivi2"}
    keys : float32 [S, D]
        S is a multiple of 32.

    Returns
    -------
    ByChannel

    Raises
    ------
    ValueError
        Another codec or S; a NaN, or a number that is infinite as f16.

    Examples
    --------
    >>> import numpy as np
    >>> keys = np.zeros((32, 2), np.float32)
    >>> keys[:3, 1] = -1, 0, 2
    >>> coded = encode_channels("kivi2", keys)
    >>> coded.codes[:4, :2].tolist(), coded.scale[0, :2].tolist(), coded.minimum[0, :2].tolist()
    ([[0, 0], [0, 1], [0, 3], [0, 1]], [0.0, 1.0], [0.0, -1.0])
    """
    if codec not in BY_CHANNEL or len(keys) % KEY_GROUP:
        raise ValueError(
            f"[encode_channels] expected one of {', '.join(BY_CHANNEL)} and whole groups of "
            f"{KEY_GROUP} keys, got {codec!r} and {len(keys)}"
        )
    halves = filled(rounded("f16", keys))
    groups = halves.reshape(len(keys) // KEY_GROUP, KEY_GROUP, halves.shape[1])
    coded = encode(codec, np.ascontiguousarray(groups.swapaxes(1, 2)))
    assert coded.minimum is not None
    codes = coded.codes.swapaxes(1, 2).reshape(len(keys), groups.shape[2])
    return ByChannel(codes, coded.scale[..., 0], coded.minimum[..., 0], MIDDLE[codec])


def _encode_levels(codec: str, x: F32, rule: str) -> Coded:
    if rule not in RULES:
        raise ValueError(f"[encode] expected a rule of {', '.join(RULES)}, got {rule!r}")
    dim, y = x.shape[-1], filled(x)
    with np.errstate(all="ignore"):
        square = lane_sum(y * y)
        tiny = square < _TINY
        inverse = np.where(tiny, np.float32(0), np.sqrt(np.float32(dim) / square))
        index = np.searchsorted(THRESHOLDS[codec], y * f32(inverse), side="right")
        codes = LEVELS[codec][index]
        codes_square = f32(np.sum(codes[..., :dim] ** 2, axis=-1, keepdims=True))
        product = lane_sum(f32(codes) * y)
        if rule == "nc":
            scale = np.sqrt(square / codes_square)
        else:
            scale = square / product if rule == "unb" else product / codes_square
        scale = f32(np.where(tiny, np.float32(0), scale)).astype(np.float16).astype(np.float32)
    # With an infinite sum of squares all codes are alike and "ls" could be finite by chance.
    _refuse("encode", codec, square, scale)
    return Coded(codes, np.repeat(scale, y.shape[-1] // BLOCK, axis=-1))


def decode(coded: Coded, dim: int) -> F32:
    """The numbers that codes stand for, rounded after the product and after the sum.

    Parameters
    ----------
    coded : Coded
    dim : int
        D, at most the width of the codes.

    Returns
    -------
    float32 [..., D]

    Examples
    --------
    >>> import numpy as np
    >>> decode(encode("q4_0", np.float32([[8, -8, 1]])), 3).tolist()
    [[8.0, -7.0, 1.0]]
    """
    codes = f32(coded.codes).reshape(*coded.scale.shape, BLOCK)
    values = coded.scale[..., None] * codes
    if coded.minimum is not None:
        values = values + coded.minimum[..., None]
    return values.reshape(coded.codes.shape)[..., :dim]


def q6_0_bytes(x: F32) -> U8:
    """Rows [..., D] as bytes of q6_0, uint8 [..., 26 * D32 / 32].

    Examples
    --------
    >>> import numpy as np
    >>> q6_0_bytes(np.float32([[32, -32, 1]]))[0, :4].tolist()
    [0, 188, 168, 171]
    """
    return _BLOCKS["q6_0"].encode(filled(x))


def q6_0_codes(data: U8) -> Coded:
    """Codes and scales of bytes of q6_0, uint8 [..., 26 * D32 / 32].

    Examples
    --------
    >>> import numpy as np
    >>> q6_0_codes(q6_0_bytes(np.float32([[32, -32, 1]]))).codes[0, :4].tolist()
    [-32, 31, -1, 0]
    """
    return _coded("q6_0", _BLOCKS["q6_0"].unpack(data))
