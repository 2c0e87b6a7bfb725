"""The formats of the reference by name."""

from __future__ import annotations

from .base import Format
from .fp4 import MXFP4, NVFP4
from .iq4 import IQ4NL, IQ4XS
from .iq_grids import IQ1M, IQ1S, IQ2S, IQ2XS, IQ2XXS, IQ3S, IQ3XXS
from .k_asymmetric import Q2_K, Q4_K, Q5_K
from .k_symmetric import Q3_K, Q6_K
from .legacy import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from .low_bit import Q1_0, Q2_0
from .plain import BF16Format, F16Format, F32Format
from .ternary import TQ1_0, TQ2_0

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


def find(function: str, name: str) -> Format:
    """The format of that name, or a ValueError on behalf of `function`."""
    if name not in FORMATS:
        raise ValueError(f"[{function}] expected one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]
