"""What a run measures: sizes, threads, formats; chosen for this machine where nobody says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .. import isa
from .. import threads as default_threads
from ..errors import Error, IsaError, ShapeError
from ..formats import format_info
from .machine import available_bytes, last_level_bytes

__all__ = ["Settings", "settings"]

_MIB = 1 << 20
# What no cache of today holds.
_LARGE, _QUICK = 320 * _MIB, 64 * _MIB
_FORMATS = ("q4_0", "q8_0", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4", "nvfp4")
_QUICK_FORMATS = ("q4_0", "q8_0", "q4_k", "q6_k")
_SHAPE = (14336, 4096)
_TOKENS = (1, 8, 32, 512)


@dataclass(frozen=True)
class Settings:
    """Sizes and cases of a run.

    Attributes
    ----------
    threads
        Numbers of threads, each measured.
    isas
        Instruction sets, each measured; empty for every one in `compute`, the one in use elsewhere.
    formats
        Weight formats of `codecs` and `matmul`.
    tokens
        Numbers m of rows of x in `matmul`.
    shape
        n and k: weights are [n, k].
    memory
        Bytes of a buffer that no cache holds.
    rounds
        Turns of every contender.
    sample
        Seconds that one sample should at least last.
    """

    threads: tuple[int, ...]
    isas: tuple[str, ...]
    formats: tuple[str, ...]
    tokens: tuple[int, ...]
    shape: tuple[int, int]
    memory: int
    rounds: int
    sample: float

    def isas_or_current(self) -> tuple[str, ...]:
        """The instruction sets named, or the one in use."""
        return self.isas or (isa.current(),)

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def settings(
    *,
    threads: Sequence[int] | None = None,
    isas: Sequence[str] = (),
    formats: Sequence[str] = (),
    tokens: Sequence[int] = (),
    shape: Sequence[int] = (),
    memory: int | None = None,
    rounds: int | None = None,
    quick: bool = False,
) -> Settings:
    """Check what was asked for and choose the rest.

    Parameters
    ----------
    threads, isas, formats, tokens, shape, memory, rounds
        As in `Settings`; nothing given means: threads 1, 2, 4, ... up to the library's default;
        a few usual formats; m = 1, 8, 32, 512 on 14336 x 4096; 320 MiB or four times the
        last-level cache, whichever is more.
    quick
        Smaller buffers, fewer formats, shorter samples: a look, not a measurement to keep.

    Raises
    ------
    FormatError, IsaError, ShapeError
        A format is unknown, an instruction set is unknown or not of this machine, a shape does
        not fit the blocks of a format.

    Examples
    --------
    >>> settings(threads=[1], formats=["q4_k"], quick=True).formats
    ('q4_k',)
    >>> settings(formats=["q4_x"])
    Traceback (most recent call last):
        ...
    kvant.errors.FormatError: [format_info] expected a format (..., got 'q4_x'
    """
    for name in isas:
        if name not in isa.available():
            raise IsaError(f"[bench] expected one of {', '.join(isa.available())}, got {name!r}")
    wanted = tuple(formats) or (_QUICK_FORMATS if quick else _FORMATS)
    n, k = shape or ((4096, 4096) if quick else _SHAPE)
    for name in wanted:
        info = format_info(name)
        if k % info.block:
            raise ShapeError(
                f"[bench] expected k to be a multiple of {info.block} ({name}), got {k}"
            )
    found = Settings(
        threads=tuple(threads) if threads else _doubling(default_threads()),
        isas=tuple(isas),
        formats=wanted,
        tokens=tuple(tokens) or ((1, 32) if quick else _TOKENS),
        shape=(n, k),
        memory=_rounded(memory if memory is not None else _memory(quick)),
        rounds=rounds or 7,
        sample=0.002 if quick else 0.01,
    )
    if min(*found.threads, *found.tokens, *found.shape, found.memory) < 1:
        raise Error("[bench] expected sizes and threads above 0")
    return found


def _doubling(most: int) -> tuple[int, ...]:
    counts = [1]
    while counts[-1] * 2 < most:
        counts.append(counts[-1] * 2)
    return tuple(counts) if most == 1 else (*counts, most)


def _memory(quick: bool) -> int:
    cache = last_level_bytes()
    wanted = max(_QUICK, 2 * cache) if quick else max(_LARGE, 4 * cache)
    # Several such buffers exist at once.
    free = available_bytes()
    return min(wanted, max(_QUICK, free // 8)) if free else wanted


def _rounded(nbytes: int) -> int:
    """Whole huge pages."""
    return max(2 * _MIB, nbytes // (2 * _MIB) * (2 * _MIB))
