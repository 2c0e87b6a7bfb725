"""Every codec once more, in NumPy alone: the definition that faster code is compared with.

`encode` gives the bytes and `decode` the f32 bits that the compiled library must give. How each
format works is written down in docs/formats.md; the classes here follow it line by line.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from . import ops
from .base import Format
from .fp4 import MXFP4, NVFP4
from .iq4 import IQ4NL, IQ4XS
from .iq_grids import IQ1M, IQ1S, IQ2S, IQ2XS, IQ2XXS, IQ3S, IQ3XXS
from .k_asymmetric import Q2_K, Q4_K, Q5_K
from .k_symmetric import Q3_K, Q6_K
from .legacy import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from .low_bit import Q1_0, Q2_0
from .numeric import F32, U8
from .plain import BF16Format, F16Format, F32Format
from .quality import QuantError, quant_error
from .ternary import TQ1_0, TQ2_0

__all__ = ["FORMATS", "Format", "QuantError", "decode", "encode", "ops", "quant_error"]

_ALL: tuple[Format, ...] = (
    F32Format(),
    F16Format(),
    BF16Format(),
    Q4_0(),
    Q4_1(),
    Q5_0(),
    Q5_1(),
    Q8_0(),
    Q2_K(),
    Q3_K(),
    Q4_K(),
    Q5_K(),
    Q6_K(),
    IQ4NL(),
    IQ4XS(),
    MXFP4(),
    NVFP4(),
    TQ1_0(),
    TQ2_0(),
    Q1_0(),
    Q2_0(),
    IQ1S(),
    IQ1M(),
    IQ2XXS(),
    IQ2XS(),
    IQ2S(),
    IQ3XXS(),
    IQ3S(),
)

FORMATS: dict[str, Format] = {each.name: each for each in _ALL}


def _find(function: str, name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"[{function}] expected one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]


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
    return _find("encode", format).encode(x, importance)


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
    return _find("decode", format).decode(data)
