"""What is stored how: policies, and presets chosen by measurement (docs/kv.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kvant.errors import FormatError
from kvant.kv.codecs import CODECS, KVSide, side_of

__all__ = ["PRESETS", "KVPolicy", "KVPreset", "preset_of"]


@dataclass(frozen=True)
class KVPolicy:
    """What is kept better than the rest.

    Attributes
    ----------
    sink : int
        So many first tokens are seen exactly (as f16), whatever the codec.
    tail : int
        So many tokens up to a query's own are seen exactly.
    layers : mapping
        Layers whose keys and values are stored otherwise: number -> (k, v).
    first : (k, v) or None
        How the first layer with keys is stored, unless `layers` says it: what is wrong there goes
        through all others.
    fine : bool
        Queries and weights are multiplied in sixteen bits instead of eight: twice the products,
        and nearly the results of `exact`. Queries of `kivi4` and `kivi2` keys stay in eight.
    """

    sink: int = 0
    tail: int = 0
    layers: Mapping[int, tuple[str | KVSide, str | KVSide]] = field(default_factory=dict)
    first: tuple[str | KVSide, str | KVSide] | None = None
    fine: bool = False


@dataclass(frozen=True)
class KVPreset:
    """How keys and values are stored, and what is kept better."""

    k: KVSide
    v: KVSide
    policy: KVPolicy = KVPolicy()


def _side(codec: str, value: bool = False) -> KVSide:
    """A codec as presets take it: rotated, unless it keeps floats."""
    side = KVSide.of(codec, value)
    return replace(side, rotate="auto") if side.quantized else side


def _kept(k: str, v: str, fine: bool = False) -> KVPolicy:
    """What comes just before matters most: this window does more for the divergence than two bits.

    The first layer gets codecs of its own: four times less divergence for two bits there.
    """
    first = _side(k), _side(v, value=True)
    return KVPolicy(sink=64, tail=128, first=first, fine=fine)


def _preset(codec: str, policy: KVPolicy) -> KVPreset:
    return KVPreset(_side(codec), _side(codec, value=True), policy)


PRESETS: Mapping[str, KVPreset] = {
    "lossless": _preset("q8_0", _kept("f16", "f16", fine=True)),
    "balanced": _preset("q5_1", _kept("q8_0", "q8_0", fine=True)),
    "compact": _preset("lm4", _kept("q5_1", "q6_0")),
    "tiny": _preset("lm3", _kept("lm4", "lm4")),
}
"""Presets by name."""


def preset_of(name: str) -> KVPreset:
    """A preset by its name, or codecs: one for keys and values, or one for each.

    Raises
    ------
    FormatError
        There is no preset and no codec of the name.

    Examples
    --------
    >>> preset_of("q8_0/lm3").v.codec
    'lm3'
    """
    known = PRESETS.get(name)
    if known is not None:
        return known
    k, _, v = name.partition("/")
    if k not in CODECS or (v or k) not in CODECS:
        raise FormatError(
            f"[KVCache] expected a preset ({', '.join(PRESETS)}) or codecs such as q8_0 or "
            f"q8_0/q4_0, got {name!r}"
        )
    return KVPreset(side_of(k), side_of(v or k, value=True))
