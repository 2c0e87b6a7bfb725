"""Caches of keys and values of many sequences, in pages under one budget."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kvant import _core
from kvant.errors import FormatError, ShapeError
from kvant.kv.batches import Batches
from kvant.kv.calibration import KVCalibration
from kvant.kv.codecs import RULES, KVSide, Table, codec_number, row_bits, side_of, signs_of
from kvant.kv.prefix import PrefixIndex
from kvant.kv.presets import KVPolicy, preset_of
from kvant.kv.sequence import KVSequence
from kvant.kv.shapes import PerLayer, block_of, owners_of, shapes_of
from kvant.kv.spec import spec_of
from kvant.kv.state import load

__all__ = ["KVCache", "KVStats"]


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


class KVCache(Batches):
    """Keys and values of a decoder's layers, for any number of sequences.

    Pages hold 64 tokens of one head of one layer, codes of keys so that sixteen tokens, and codes
    of values so that sixteen channels are multiplied at once. Sequences that were forked share
    pages, and each is copied when one of them writes to it.

    Parameters
    ----------
    layers
        Their number.
    kv_heads, head_dim
        Heads of keys and elements of a key; one number, or one for each layer. A layer of 0 heads
        has neither keys nor pages: what it keeps instead is the caller's.
    k, v
        How keys and values are stored: a codec's name or a `KVSide`; q8_0 by default.
    value_dim
        Elements of a value; those of a key by default.
    value_view
        Values are the first `value_dim` elements of each key, as it is stored, and take no room of
        their own (the latent rows of MLA). Such layers have `k` alone, without centers and factors.
    policy
        What is kept better; nothing by default.
    window
        Keys a token sees at most, its own among them; one number or None, or one for each layer.
        What no token will see is let go of.
    chunk
        A token sees only keys of its own chunk of so many; as `window`.
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
        v: str | KVSide | None = None,
        *,
        value_dim: PerLayer | None = None,
        value_view: bool | Sequence[bool] = False,
        policy: KVPolicy | None = None,
        window: int | Sequence[int | None] | None = None,
        chunk: int | Sequence[int | None] | None = None,
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
        self.shapes = shapes_of(layers, kv_heads, head_dim, value_dim, value_view, window, chunk)
        self.owners = owners_of(share or {}, self.shapes)
        # Layers with pages of their own, in order; the native cache knows only those.
        owned = [i for i in range(layers) if self.owners[i] == i and self.shapes[i].kv_heads]
        if not owned:
            raise ShapeError("[KVCache] expected a layer with keys, got none")
        for layer in self.policy.layers:
            if layer not in owned:
                raise ShapeError(f"[KVCache] expected policies of layers with keys, got {layer}")
        self.owned = tuple(owned)
        views = all(self.shapes[layer].view for layer in owned)
        given = k if v is None and views else "q8_0" if v is None else v
        self.sides = [self._sides(owner, k, given, views) for owner in self.owners]
        places = {layer: place for place, layer in enumerate(owned)}
        self._places = [places.get(owner, -1) for owner in self.owners]
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
        views: bool = True,
        budget: int | None = None,
        calibration: KVCalibration | None = None,
    ) -> KVCache:
        """A cache for the layers of a model.

        Latent rows (MLA) are one key and its view; what a decoder gives for them is in docs/kv.md.
        Layers with a recurrent state have no pages: the state is the caller's.

        Parameters
        ----------
        source
            A `kvant.models.Model` or its `config`; the path of a GGUF file or a `config.json`, or
            a name that `kvant.plan.read` knows.
        preset
            `"lossless"`, `"balanced"`, `"compact"` or `"tiny"` (docs/kv.md has what each costs); a
            codec for keys and values, or one for each: `"q8_0/q4_0"`.
        views
            Store layers whose values are their keys before factors and rope (Gemma 4) as one row
            for both (docs/kv.md); else keys and values apart.
        budget, calibration
            As for the class.

        Raises
        ------
        ModelError
            The source describes no model, or one without keys.
        FormatError
            There is no such preset or codec.

        Examples
        --------
        >>> cache = KVCache.from_model("Llama 3.1 8B", "q8_0/q4_0")
        >>> cache.layers, cache.stats().bits
        (32, 6.5)
        """
        spec, chosen = spec_of(source, views), preset_of(preset)
        shapes = spec.shapes
        cache = cls(
            len(shapes),
            [shape.kv_heads for shape in shapes],
            [shape.head_dim for shape in shapes],
            chosen.k,
            chosen.v,
            value_dim=[shape.value_dim for shape in shapes],
            value_view=[shape.view for shape in shapes],
            policy=chosen.policy,
            window=[shape.window for shape in shapes],
            chunk=[shape.chunk for shape in shapes],
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

    def codecs(self, layer: int) -> str:
        """What is stored of a layer is coded by, as messages have it: `q8_0/q4_0`."""
        stored = self.shapes[layer].stored
        return "/".join(side.codec for side in self.sides[layer][: len(stored)])

    def keep(self, memory: Any) -> None:
        """Keep what pages lie in as long as the cache."""
        self._kept.append(memory)

    def stats(self) -> KVStats:
        """What the cache holds now."""
        bits, numbers = 0.0, 0
        for layer in self.owned:
            shape, sides = self.shapes[layer], self.sides[layer]
            for side, dim in zip(sides, shape.stored, strict=False):
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
        place = self._places[layer]
        if place < 0:
            raise ShapeError(f"[KVCache] expected a layer with keys, got {layer}, which has none")
        return place

    def _sides(
        self, layer: int, k: str | KVSide, v: str | KVSide, views: bool
    ) -> tuple[KVSide, KVSide]:
        """Of keys and of values; `views`: no layer has values of its own."""
        own = self.policy.layers.get(layer)
        first = self.policy.first if own is None and layer == self.owned[0] else None
        own_k, own_v = own or first or (k, v)
        sides = side_of(own_k), side_of(own_v, value=True)
        if self.shapes[layer].view:
            if sides[0].codec.startswith("kivi"):
                raise FormatError(
                    "[KVCache] expected a codec of rows for keys that hold values, "
                    f"got {sides[0].codec}"
                )
            # Where other layers have values, v is of those.
            meant = own or (views and not first)
            if sides[0].codec != sides[1].codec and meant:
                raise ShapeError(
                    f"[KVCache] expected values stored as the keys they are a view of, "
                    f"{sides[0].codec}, got {sides[1].codec}"
                )
            sides = sides[0], sides[0]
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
            shape.chunk or 0,
            self.policy.fine,
            shape.view,
        )

    def _native_side(self, layer: int, side: KVSide, dim: int) -> _core.KvSide:
        block = block_of(self.shapes[layer], side, dim)
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
