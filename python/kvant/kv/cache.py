"""Caches of keys and values of many sequences, in pages under one budget."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kvant import _core
from kvant.errors import ShapeError
from kvant.kv.calibration import KVCalibration
from kvant.kv.codecs import RULES, KVSide, Table, codec_number, row_bits, side_of, signs_of
from kvant.kv.prefix import PrefixIndex
from kvant.kv.presets import KVPolicy, preset_of
from kvant.kv.sequence import KVSequence
from kvant.kv.spec import LayerShape, spec_of
from kvant.kv.state import load

__all__ = ["KVCache", "KVStats"]

PerLayer = int | Sequence[int]


class KVStats(NamedTuple):
    """What a cache holds.

    Attributes
    ----------
    used : int
        Bytes of all pages in use; the budget bounds them.
    reserved : int
        Bytes of the memory that pages come from.
    pages : int
        Pages in use, of 64 tokens of one head of one layer each.
    bits : float
        Bits for each number of a key or value in a full page, on average over the layers.
    """

    used: int
    reserved: int
    pages: int
    bits: float


class KVCache:
    """Keys and values of a decoder's layers, for any number of sequences.

    Pages hold 64 tokens of one head of one layer, codes of keys so that sixteen tokens, and codes
    of values so that sixteen channels are multiplied at once. Sequences that were forked share
    pages, and each is copied when one of them writes to it.

    Parameters
    ----------
    layers
        Their number.
    kv_heads, head_dim
        Heads of keys and elements of a key; one number, or one for each layer.
    k, v
        How keys and values are stored: a codec's name or a `KVSide`.
    value_dim
        Elements of a value; those of a key by default.
    policy
        What is kept better; nothing by default.
    window
        Keys a token sees at most, its own among them; one number or None, or one for each layer.
        What no token will see is let go of.
    budget
        Bytes that all pages may take; None for no bound.
    share
        Layers that attend over another layer's keys and values: number -> owner.
    calibration
        For sides that center or equalize.

    Attributes
    ----------
    fingerprint : str or None
        Of the model whose keys these are; states of another are refused.

    Raises
    ------
    ShapeError
        A size is out of range, or a calibration is missing or does not fit.
    FormatError
        There is no such codec.

    Examples
    --------
    >>> import numpy as np
    >>> cache = KVCache(layers=1, kv_heads=1, head_dim=32, k="q8_0", v="q8_0")
    >>> seq = cache.sequence()
    >>> x = np.ones((3, 1, 32), np.float32)
    >>> seq.append(0, x, 2 * x)
    >>> float(seq.attend(0, x[-1:])[0, 0, 0].round(3)), seq.length
    (2.0, 3)
    >>> cache.stats().bits
    8.5
    """

    def __init__(
        self,
        layers: int,
        kv_heads: PerLayer,
        head_dim: PerLayer,
        k: str | KVSide = "q8_0",
        v: str | KVSide = "q8_0",
        *,
        value_dim: PerLayer | None = None,
        policy: KVPolicy | None = None,
        window: int | Sequence[int | None] | None = None,
        budget: int | None = None,
        share: Mapping[int, int] | None = None,
        calibration: KVCalibration | None = None,
    ) -> None:
        if layers < 1:
            raise ShapeError(f"[KVCache] expected at least one layer, got {layers}")
        if budget is not None and budget < 1:
            raise ShapeError(f"[KVCache] expected a budget of at least one byte, got {budget}")
        self.policy = policy or KVPolicy()
        self.calibration = calibration
        self.budget = budget
        self.shapes = _shapes(layers, kv_heads, head_dim, value_dim, window)
        self.owners = _owners(layers, share or {}, self.shapes)
        for layer in self.policy.layers:
            if not 0 <= layer < layers or self.owners[layer] != layer:
                raise ShapeError(f"[KVCache] expected policies of layers with keys, got {layer}")
        self.sides = [self._sides(owner, k, v) for owner in self.owners]
        # Layers with pages of their own, in order; the native cache knows only those.
        owned = [layer for layer in range(layers) if self.owners[layer] == layer]
        self._places = [owned.index(owner) for owner in self.owners]
        self._core = _core.KvCache([self._native(layer) for layer in owned], budget or 0)
        self.fingerprint: str | None = None
        self._kept: list[Any] = []
        self._prefixes = PrefixIndex(self)

    @classmethod
    def from_model(
        cls,
        source: Any,
        preset: str = "balanced",
        *,
        budget: int | None = None,
        calibration: KVCalibration | None = None,
    ) -> KVCache:
        """A cache for the layers of a model.

        Parameters
        ----------
        source
            A `kvant.models.Model` or its `config`; the path of a GGUF file or a `config.json`, or
            a name that `kvant.plan.read` knows.
        preset
            `"lossless"`, `"balanced"`, `"compact"` or `"tiny"` (docs/kv.md has what each costs); a
            codec for keys and values, or one for each: `"q8_0/q4_0"`.
        budget, calibration
            As for the class.

        Raises
        ------
        ModelError
            The source describes no model, or one whose layers keep something else.
        FormatError
            There is no such preset or codec.

        Examples
        --------
        >>> cache = KVCache.from_model("Llama 3.1 8B", "q8_0/q4_0")
        >>> cache.layers, cache.stats().bits
        (32, 6.5)
        """
        spec, chosen = spec_of(source), preset_of(preset)
        shapes = spec.shapes
        cache = cls(
            len(shapes),
            [shape.kv_heads for shape in shapes],
            [shape.head_dim for shape in shapes],
            chosen.k,
            chosen.v,
            value_dim=[shape.value_dim for shape in shapes],
            policy=chosen.policy,
            window=[shape.window for shape in shapes],
            budget=budget,
            share=spec.share,
            calibration=calibration,
        )
        cache.fingerprint = getattr(source, "fingerprint", None)
        return cache

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages in use."""
        used, _, _ = self._usage()
        return used

    @property
    def prefixes(self) -> PrefixIndex:
        """Prefixes that were published, for sequences that begin with the same tokens."""
        return self._prefixes

    def sequence(self) -> KVSequence:
        """A new sequence without tokens."""
        return KVSequence(self, self._core.sequence())

    def load(self, path: str | os.PathLike[str], *, in_place: bool = False) -> KVSequence:
        """A sequence out of a file that `KVSequence.save` wrote, on whatever processor.

        Parameters
        ----------
        path
            The file.
        in_place
            Leave pages in the mapped file, which must not change while this cache lives; a page
            is copied when a token is appended to it.

        Raises
        ------
        StateError
            The file holds no state of such a cache and model, or was cut or changed.
        CacheFullError
            The budget has no room.
        OSError
            The file cannot be read.
        """
        return load(self, path, in_place)

    def keep(self, memory: Any) -> None:
        """Keep what pages lie in as long as the cache."""
        self._kept.append(memory)

    def stats(self) -> KVStats:
        """What the cache holds now."""
        bits, numbers = 0.0, 0
        for layer in sorted(set(self.owners)):
            shape, sides = self.shapes[layer], self.sides[layer]
            for side, dim in zip(sides, (shape.head_dim, shape.value_dim), strict=True):
                bits += shape.kv_heads * dim * row_bits(side.codec, dim)
                numbers += shape.kv_heads * dim
        return KVStats(*self._usage(), bits / numbers)

    def _usage(self) -> tuple[int, int, int]:
        used, reserved, pages = self._core.usage()
        return used, reserved, pages

    def place(self, layer: int) -> int:
        """The number that the native cache knows a layer by."""
        if not 0 <= layer < self.layers:
            raise ShapeError(f"[KVCache] expected a layer below {self.layers}, got {layer}")
        return self._places[layer]

    def _sides(self, layer: int, k: str | KVSide, v: str | KVSide) -> tuple[KVSide, KVSide]:
        own_k, own_v = self.policy.layers.get(layer, (k, v))
        sides = side_of(own_k), side_of(own_v, value=True)
        if sides[1].center or sides[1].equalize:
            raise ShapeError("[KVCache] expected values neither centered nor equalized")
        return sides

    def _native(self, layer: int) -> _core.KvLayer:
        shape, (k, v) = self.shapes[layer], self.sides[layer]
        exact = self.policy if k.quantized or v.quantized else KVPolicy()
        return _core.KvLayer(
            shape.kv_heads,
            self._native_side(layer, k, shape.head_dim),
            self._native_side(layer, v, shape.value_dim),
            shape.window or 0,
            exact.sink,
            exact.tail,
        )

    def _native_side(self, layer: int, side: KVSide, dim: int) -> _core.KvSide:
        block = side.rotation(dim)
        return _core.KvSide(
            codec_number(side.codec),
            RULES.index(side.scale),
            dim,
            block,
            None if side.signs is None or not block else signs_of(side.signs, block),
            self._table(layer, "center") if side.center else None,
            self._table(layer, "equalize") if side.equalize else None,
        )

    def _table(self, layer: int, name: str) -> Table:
        shape = self.shapes[layer]
        wanted = (shape.kv_heads, shape.head_dim)
        tables: Sequence[Any] = getattr(self.calibration, name, ())
        if len(tables) != self.layers:
            raise ShapeError(
                f"[KVCache] expected a calibration with {name} of {self.layers} layers, "
                f"got {len(tables)}"
            )
        table = np.require(tables[layer], np.float32, ["C", "ALIGNED"])
        if table.shape != wanted:
            raise ShapeError(
                f"[KVCache] expected {name} {wanted} of layer {layer}, got {table.shape}"
            )
        return table


def _each(name: str, value: Any, layers: int) -> list[Any]:
    if value is None or np.ndim(value) == 0:
        return [value] * layers
    if len(value) != layers:
        raise ShapeError(f"[KVCache] expected {name} of {layers} layers, got {len(value)}")
    return list(value)


def _shapes(
    layers: int,
    kv_heads: PerLayer,
    head_dim: PerLayer,
    value_dim: PerLayer | None,
    window: int | Sequence[int | None] | None,
) -> list[LayerShape]:
    columns = [
        _each("kv_heads", kv_heads, layers),
        _each("head_dim", head_dim, layers),
        _each("value_dim", head_dim if value_dim is None else value_dim, layers),
        _each("window", window, layers),
    ]
    shapes = []
    for heads, dim, value, seen in zip(*columns, strict=True):
        if heads < 1 or not 1 <= dim <= 1024 or not 1 <= value <= 1024:
            raise ShapeError(
                "[KVCache] expected at least one head and 1 to 1024 elements, "
                f"got {heads} of {dim} and {value}"
            )
        if seen is not None and seen < 1:
            raise ShapeError(f"[KVCache] expected a window of at least 1, got {seen}")
        # Sizes out of a file are NumPy's unsigned numbers, which wrap.
        reach = None if seen is None else int(seen)
        shapes.append(LayerShape(int(heads), int(dim), int(value), reach))
    return shapes


def _owners(layers: int, share: Mapping[int, int], shapes: Sequence[LayerShape]) -> list[int]:
    owners = list(range(layers))
    for layer, owner in share.items():
        known = 0 <= layer < layers and 0 <= owner < layers
        if not known or owner in share or shapes[layer] != shapes[owner]:
            raise ShapeError(
                f"[KVCache] expected layer {layer} to share a layer of its shape that has keys of "
                f"its own, got {owner}"
            )
        owners[layer] = owner
    return owners
