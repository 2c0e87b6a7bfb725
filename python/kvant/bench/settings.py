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
# Of a layer of Qwen3-30B-A3B.
_EXPERTS, _QUICK_EXPERTS = (128, 8, 768, 2048), (32, 8, 768, 2048)


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
        Weight formats of `codecs`, `matmul` and `experts`.
    tokens
        Numbers m of rows of x in `matmul` and `experts`.
    unpacked
        Those of them for which `matmul` takes weights as in a file, too.
    shape
        n and k: weights are [n, k].
    experts
        Experts, how many of them each row of x asks, their f, and k: gate and up are [f, k].
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
    unpacked: tuple[int, ...]
    shape: tuple[int, int]
    experts: tuple[int, int, int, int]
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
    unpacked: Sequence[int] | None = None,
    shape: Sequence[int] = (),
    experts: Sequence[int] = (),
    memory: int | None = None,
    rounds: int | None = None,
    quick: bool = False,
) -> Settings:
    """Check what was asked for and choose the rest.

    Parameters
    ----------
    threads, isas, formats, tokens, unpacked, shape, experts, memory, rounds
        As in `Settings`; nothing given means: threads 1, 2, 4, ... up to the library's default;
        a few usual formats; m = 1, 8, 32, 512 on 14336 x 4096, packed and not; 8 of 128 experts,
        768 x 2048; 320 MiB or four times the last-level cache, whichever is more.
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
    count, top, f, cols = experts or (_QUICK_EXPERTS if quick else _EXPERTS)
    if top > count:
        raise ShapeError(f"[bench] expected at most {count} experts to be chosen, got {top}")
    many = tuple(tokens) or ((1, 32) if quick else _TOKENS)
    found = Settings(
        threads=tuple(threads) if threads else _doubling(default_threads()),
        isas=tuple(isas),
        formats=wanted,
        tokens=many,
        unpacked=many if unpacked is None else tuple(unpacked),
        shape=(n, k),
        experts=(count, top, f, cols),
        memory=_rounded(memory if memory is not None else _memory(quick)),
        rounds=rounds or 7,
        sample=0.002 if quick else 0.01,
    )
    sizes = (*found.shape, *found.experts, found.memory)
    if min(*found.threads, *found.tokens, *sizes) < 1:
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
