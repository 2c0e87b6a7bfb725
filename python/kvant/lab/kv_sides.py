"""Short names for how keys or values are stored: a codec and its transforms, `iq4_nl+rot+mean`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..errors import FormatError
from ..kv import KVSide
from ..kv.codecs import plain

__all__ = ["DEFAULT_CODECS", "key_side", "name_of", "value_sides"]

DEFAULT_CODECS = (
    "f16",
    "q8_0",
    "q8_0+rot+mean+eq",
    "q6_0+rot+mean+eq",
    "q5_0+rot+mean+eq",
    "q4_0",
    "q4_0+rot",
    "iq4_nl+rot",
    "iq4_nl+rot+mean+eq",
    "lm4+mean+eq",
    "lm3+mean+eq",
    "lm2+mean+eq",
    "kivi4",
    "kivi2",
)
"""What a study tries; values are neither centered nor equalized and leave those words out."""

_WORDS = ("rot", "signs", "mean", "eq")


def key_side(name: str | KVSide, value: bool = False) -> KVSide:
    """The side of a name: a codec, then any of `+rot +signs +mean +eq`.

    Raises
    ------
    FormatError
        There is no such codec or word.

    Examples
    --------
    >>> key_side("iq4_nl+rot+mean")
    KVSide(codec='iq4_nl', rotate='auto', signs=None, center=True, equalize=False, scale='norm')
    """
    if isinstance(name, KVSide):
        return name
    codec, *words = name.split("+")
    unknown = [word for word in words if word not in _WORDS]
    if unknown:
        raise FormatError(f"[kv_study] expected words of {', '.join(_WORDS)}, got {name!r}")
    side = KVSide.of(codec, value)
    if "rot" in words:
        side = replace(side, rotate="auto")
    if "signs" in words:
        side = replace(side, signs=0)
    return replace(side, center="mean" in words, equalize="eq" in words)


def value_sides(names: Iterable[str | KVSide]) -> list[KVSide]:
    """The same for values, each once: without centering and equalizing.

    Examples
    --------
    >>> [name_of(side, value=True) for side in value_sides(["q4_0+rot", "q4_0+rot+eq", "lm2"])]
    ['q4_0+rot', 'lm2']
    """
    return list(dict.fromkeys(plain(key_side(name, value=True)) for name in names))


def name_of(side: KVSide, value: bool = False) -> str:
    """The name of a side; what its codec does anyway is left out.

    Examples
    --------
    >>> name_of(KVSide("q4_0", rotate=64, signs=3, equalize=True))
    'q4_0+rot64+signs3+eq'
    """
    usual = KVSide.of(side.codec, value)
    words = [side.codec]
    if side.rotate != usual.rotate:
        words.append("rot" if side.rotate == "auto" else f"rot{side.rotate}")
    if side.signs != usual.signs:
        words.append("nosigns" if side.signs is None else f"signs{side.signs or ''}")
    words += ["mean"] * side.center + ["eq"] * side.equalize
    if side.scale != usual.scale:
        words.append(side.scale)
    return "+".join(words)
