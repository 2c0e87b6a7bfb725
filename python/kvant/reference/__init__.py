"""Codecs and products once more, in NumPy alone: the definition that faster code is compared with.

`encode` gives the bytes, `decode` and `matmul` the f32 bits that the compiled library must give.
How each format works is written down in docs/formats.md; the classes here follow it line by line.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from . import ops
from .base import BlockFormat, Format, Groups
from .fma import fma
from .matmul import Activations, ffn, matmul, matmul_experts, moe_ffn, quantize_activations
from .numeric import F32, U8
from .quality import QuantError, quant_error
from .table import FORMATS, find

__all__ = [
    "FORMATS",
    "Activations",
    "BlockFormat",
    "Format",
    "Groups",
    "QuantError",
    "decode",
    "encode",
    "ffn",
    "fma",
    "matmul",
    "matmul_experts",
    "moe_ffn",
    "ops",
    "quant_error",
    "quantize_activations",
]


def encode(x: ArrayLike, format: str, importance: ArrayLike | None = None) -> U8:
    """Encode rows of numbers.

    Parameters
    ----------
    x : float32 [..., cols]
        Finite numbers; `cols` must be a multiple of the format's block.
    format : str
        A key of `FORMATS` whose format can encode.
    importance : float32 [cols], optional
        Weight of each column's squared error, shared by all rows; formats without a search
        ignore it.

    Returns
    -------
    uint8 [..., row_bytes]

    Raises
    ------
    ValueError
        Unknown or decode-only format, wrong dtype, or a shape that does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> encode(np.arange(32, dtype=np.float32), "q8_0").shape
    (34,)
    """
    return find("encode", format).encode(x, importance)


def decode(data: ArrayLike, format: str) -> F32:
    """Decode rows of bytes.

    Parameters
    ----------
    data : uint8 [..., row_bytes]
        `row_bytes` must be a multiple of the format's block size in bytes.
    format : str
        A key of `FORMATS`.

    Returns
    -------
    float32 [..., cols]

    Raises
    ------
    ValueError
        Unknown format, wrong dtype, or a shape that does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[0.0, 1.0, -2.0, 0.5] * 8], np.float32)
    >>> bool((decode(encode(x, "q4_0"), "q4_0") == x).all())
    True
    """
    return find("decode", format).decode(data)
