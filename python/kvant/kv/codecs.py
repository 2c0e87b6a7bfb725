"""How one side of a cache, keys or values, is stored: a codec and exact transforms before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kvant import _core
from kvant.errors import FormatError, ShapeError

__all__ = ["CODECS", "RULES", "KVSide", "codec_number", "row_bits", "side_of", "signs_of"]

CODECS: tuple[str, ...] = tuple(_core.kv_codecs())
"""Names: `f32 f16 bf16 q8_0 q6_0 q5_1 q5_0 q4_1 q4_0 iq4_nl lm4 lm3 lm2 kivi4 kivi2`."""
RULES = ("norm", "unbiased", "least")
_LARGEST_ROTATION = 512
_SMALLEST_ROTATION = 16

Table = NDArray[np.float32]


@dataclass(frozen=True)
class KVSide:
    """A codec for keys or for values.

    Attributes
    ----------
    codec : str
        One of `CODECS`. `q8_0` to `iq4_nl` are ggml's formats (`q6_0` of ik_llama.cpp), `lm4`,
        `lm3` and `lm2` the codebooks of Lloyd and Max with one scale a row, made for rotated
        vectors (TurboQuant, Zandieh et al. 2025). `kivi4` and `kivi2` have scale and minimum for
        each 32 elements of a value, and for each 32 tokens of a channel of keys (KIVI, Liu et al.
        2024): large channels need no rotation then. Such keys must be in reach of f16, and tokens
        are seen as f16 until the 32 of their group are there.
    rotate : int or "auto"
        The Hadamard transform is taken in blocks of so many elements; 0 for none, `"auto"` for the
        largest power of two up to 512 that divides a row.
    signs : int or None
        Seed of the signs that elements get before they are rotated. Codebooks want them: without,
        a row of a Hadamard matrix becomes one single large number.
    center : bool
        Keys only: a mean for each head and channel is taken off (from a calibration). Softmax does
        not see it.
    equalize : bool
        Keys only: channels are divided by a factor that queries are multiplied with (from a
        calibration).
    scale : str
        Of a codebook's row: `"norm"` keeps its norm, `"unbiased"` its projection on what it stands
        for (EDEN, Vargaftik et al. 2022), `"least"` has the least error.

    Examples
    --------
    >>> KVSide("q4_0").bits(128)
    4.5
    >>> KVSide.of("lm4", value=True)
    KVSide(codec='lm4', rotate='auto', signs=0, center=False, equalize=False, scale='unbiased')
    """

    codec: str
    rotate: int | str = 0
    signs: int | None = None
    center: bool = False
    equalize: bool = False
    scale: str = "norm"

    def __post_init__(self) -> None:
        codec_number(self.codec)
        if self.scale not in RULES:
            raise FormatError(
                f"[KVSide] expected scale norm, unbiased or least, got {self.scale!r}"
            )
        if self.rotate != "auto" and (not isinstance(self.rotate, int) or self.rotate < 0):
            raise ShapeError(
                f'[KVSide] expected rotate "auto" or a block size, got {self.rotate!r}'
            )

    @classmethod
    def of(cls, codec: str, value: bool = False) -> KVSide:
        """What a codec's name alone stands for: codebooks rotate, all others take rows as they are.

        Raises
        ------
        FormatError
            There is no such codec.
        """
        if not codec.startswith("lm"):
            return cls(codec)
        return cls(codec, rotate="auto", signs=0, scale="unbiased" if value else "norm")

    def rotation(self, dim: int) -> int:
        """The block that rows of `dim` elements are rotated in.

        Raises
        ------
        ShapeError
            It does not divide them.

        Examples
        --------
        >>> [KVSide("iq4_nl", rotate="auto").rotation(dim) for dim in (80, 128, 576)]
        [16, 128, 64]
        """
        if self.rotate == "auto":
            block = min(dim & -dim, _LARGEST_ROTATION)
            return block if block >= _SMALLEST_ROTATION else 0
        block = int(self.rotate)
        power = block & (block - 1) == 0
        fits = _SMALLEST_ROTATION <= block <= _LARGEST_ROTATION and power and dim % block == 0
        if block and not fits:
            raise ShapeError(
                f"[KVSide] expected rotate a power of two from 16 to 512 that divides {dim}, "
                f"got {block}"
            )
        return block

    def bits(self, dim: int) -> float:
        """Bits that an element of a row of `dim` elements takes."""
        return row_bits(self.codec, dim)

    @property
    def quantized(self) -> bool:
        """Whether the codec is none of floats."""
        return self.codec not in ("f32", "f16", "bf16")


@cache
def _numbers() -> Mapping[str, int]:
    return {name: i for i, name in enumerate(CODECS)}


def codec_number(codec: str) -> int:
    """The number of a codec in the library.

    >>> codec_number("q8_0")
    3
    """
    number = _numbers().get(codec)
    if number is None:
        raise FormatError(f"[KVSide] expected a codec of {', '.join(CODECS)}, got {codec!r}")
    return number


def row_bits(codec: str, dim: int) -> float:
    """Bits for each of the `dim` elements of a row, scales and filling included.

    >>> row_bits("lm3", 128), row_bits("q8_0", 80)
    (3.125, 10.2)
    """
    return _core.kv_row_bytes(codec_number(codec), dim) * 8 / dim


def side_of(side: str | KVSide, value: bool = False) -> KVSide:
    """A side given by a codec's name or as it is."""
    return side if isinstance(side, KVSide) else KVSide.of(side, value)


def signs_of(seed: int, count: int) -> Table:
    """`count` signs, +1 and -1, the same for a seed everywhere (SplitMix64, Steele et al. 2014).

    >>> signs_of(0, 4).tolist()
    [-1.0, 1.0, 1.0, -1.0]
    """
    mask = (1 << 64) - 1
    state, signs = seed & mask, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        signs.append(-1.0 if (z ^ (z >> 31)) >> 63 else 1.0)
    return np.array(signs, np.float32)


def plain(side: KVSide) -> KVSide:
    """The same codec without what needs a calibration."""
    return replace(side, center=False, equalize=False)
