"""Keys and values of one sequence, kept in pages and attended over where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvant import _core
from kvant.arrays import checked_out, empty, f32_array, f32_vector, float_dtype, zeros
from kvant.errors import ShapeError

__all__ = ["BATCH_TOKENS", "PAGE_TOKENS", "Cache", "layer_tokens"]

PAGE_TOKENS = 64
BATCH_TOKENS = 512
"""Tokens that are appended at a time: enough for full speed, and what they need stays small."""
_CHUNK = 512
_NO_WINDOW = 1 << 60
_U8 = np.dtype(np.uint8)

Array = NDArray[np.float32]


class Cache:
    """Keys and values of every layer of a decoder, in pages of 64 tokens.

    A page of keys lies as [head_dim, 64], one of values as [64, head_dim], so that neither product
    of attention needs a sum across a vector. It grows by doubling; asked for its capacity at the
    start, it never moves. Layers with a window keep what it and a batch need, and let go of older
    tokens in steps of 512. All layers have the same heads.

    Parameters
    ----------
    layers, kv_heads, head_dim
        Shape of the decoder.
    value_dim
        Elements of a value; those of a key by default.
    capacity
        Tokens there is room for at first.
    dtype
        `"f16"`, or `"f32"` for validation.
    windows
        For each layer the tokens it sees at most, or None for all.

    Attributes
    ----------
    length : int
        Tokens that all layers hold; `advance` moves it once every layer has had its append.
    moves : int
        How often a layer's pages came to lie elsewhere.

    Examples
    --------
    >>> import numpy as np
    >>> cache = Cache(layers=1, kv_heads=1, head_dim=4)
    >>> ones = np.ones((3, 1, 4), np.float32)
    >>> cache.append(0, ones, 2 * ones)
    >>> cache.attend(0, ones, scale=0.5)[2]
    array([[2., 2., 2., 2.]], dtype=float32)
    >>> cache.advance(3)
    >>> cache.length, cache.nbytes
    (3, 2560)
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        capacity: int = PAGE_TOKENS,
        dtype: str = "f16",
        windows: Sequence[int | None] | None = None,
    ) -> None:
        if dtype not in ("f16", "f32"):
            raise ShapeError(f"[Cache] expected dtype f16 or f32, got {dtype!r}")
        # Native calls read it where it lies, so that they can be made again at another length.
        self._length = np.zeros(1, np.int64)
        self.moves = 0
        # Sizes out of a file are NumPy's unsigned numbers, which wrap.
        self.kv_heads, self.head_dim = int(kv_heads), int(head_dim)
        self.value_dim = self.head_dim if value_dim is None else int(value_dim)
        sizes = (int(layers), self.kv_heads, self.head_dim, self.value_dim, int(capacity))
        if min(sizes) < 1 or any(window is not None and window < 1 for window in windows or ()):
            raise ShapeError(f"[Cache] expected sizes of at least 1, got {sizes} and {windows}")
        if windows is not None and len(windows) != layers:
            raise ShapeError(f"[Cache] expected {layers} windows, got {len(windows)}")
        self._number_bytes = float_dtype("Cache", dtype)[1].itemsize
        # Values are padded to whole vectors.
        self._width = -(-self.value_dim // 16) * 16
        self._capacity = PAGE_TOKENS * _pages(int(capacity))
        self._layers = [
            _Layer(window, self._room(_pages(layer_tokens(self._capacity, window))))
            for window in (windows or [None] * int(layers))
        ]

    @property
    def length(self) -> int:
        return int(self._length[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all pages."""
        return sum(layer.room.k.nbytes + layer.room.v.nbytes for layer in self._layers)

    @property
    def capacity(self) -> int:
        """Tokens for which there is room."""
        return self._capacity

    def append(self, layer: int, k: Array, v: Array, threads: int | None = None) -> None:
        """Add keys f32 [T, kv_heads, head_dim] and values [T, kv_heads, value_dim] to a layer.

        They are rounded to the cache's type and stand at `length` and after it.
        """
        k, v = f32_array("append", "keys", k), f32_array("append", "values", v)
        if k.shape[1:] != (self.kv_heads, self.head_dim):
            raise ShapeError(
                f"[append] expected keys [T, {self.kv_heads}, {self.head_dim}], got {k.shape}"
            )
        if v.shape != (len(k), self.kv_heads, self.value_dim):
            raise ShapeError(
                f"[append] expected values {(len(k), self.kv_heads, self.value_dim)}, got {v.shape}"
            )
        own = self._layers[layer]
        if self.length + len(k) > own.end:
            self._make_room(own, len(k))
        _core.kv_append(own.room.pages, self._length, k, v, threads or 0)
        own.appended = len(k)

    def attend(
        self,
        layer: int,
        q: Array,
        scale: float,
        *,
        sinks: Array | None = None,
        out: Array | None = None,
        threads: int | None = None,
    ) -> Array:
        """Causal attention of the tokens whose keys were appended last.

        Parameters
        ----------
        layer
            Which one.
        q
            f32 [T, heads, head_dim]; query head h reads key head h * kv_heads // heads.
        scale
            Of the scores.
        sinks
            f32 [heads], for each head the score of a key without a value.
        out
            f32 [T, heads, value_dim], C-contiguous, to write to.
        threads
            At most this many; the set number by default.

        Returns
        -------
        ndarray
            f32 [T, heads, value_dim].

        Raises
        ------
        ShapeError
            A shape does not fit, or there are other tokens than were appended last.
        """
        q = f32_array("attend", "q", q)
        if q.ndim != 3 or q.shape[1] % self.kv_heads or q.shape[2] != self.head_dim:
            raise ShapeError(
                f"[attend] expected q [T, a multiple of {self.kv_heads}, {self.head_dim}], "
                f"got {q.shape}"
            )
        own = self._layers[layer]
        if len(q) != own.appended:
            raise ShapeError(
                f"[attend] expected q of the {own.appended} tokens appended last, got {len(q)}"
            )
        if sinks is not None:
            sinks = f32_vector("attend", "sinks", sinks, q.shape[1])
        shape = (*q.shape[:2], self.value_dim)
        if out is None:
            out = empty(shape, q.dtype)
        else:
            checked_out("attend", out, shape, q.dtype)
        reach = _NO_WINDOW if own.window is None else own.window
        _core.kv_attend(own.room.pages, self._length, q, reach, scale, sinks, out, threads or 0)
        return out

    def advance(self, tokens: int) -> None:
        """Count tokens in, once every layer holds them."""
        self._length += tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on.

        Raises
        ------
        ShapeError
            There are not so many, or a layer has let go of tokens that would be seen again.
        """
        # A layer that has let go of tokens needs what the next token sees.
        least = max(
            (o.first + o.window - 1 for o in self._layers if o.window and o.first), default=0
        )
        if not least <= length <= self.length:
            raise ShapeError(f"[truncate] expected {least} to {self.length} tokens, got {length}")
        self._length[0] = length

    def has_room(self, tokens: int) -> bool:
        """Whether so many tokens can be appended to every layer without moving its pages."""
        return self.length + tokens <= min(own.end for own in self._layers)

    def _room(self, pages: int, first: int = 0) -> _Room:
        size = self._number_bytes
        k = zeros((self.kv_heads, pages, self.head_dim, PAGE_TOKENS, size), _U8)
        v = zeros((self.kv_heads, pages, PAGE_TOKENS, self._width, size), _U8)
        return _Room(k, v, _core.KvPages(k, v, self.value_dim, first))

    def _make_room(self, own: _Layer, tokens: int) -> None:
        """Let go of what no token will see, and grow where that is not enough."""
        first = own.first
        if own.window is not None:
            # Attention merges chunks of 512: where those begin must not change.
            first = max(first, (self.length + 1 - own.window) // _CHUNK * _CHUNK)
        old, skipped = own.room, (first - own.first) // PAGE_TOKENS
        kept = _pages(self.length - first) if self.length > first else 0
        need, capacity = _pages(self.length + tokens - first), self._capacity
        if need > old.k.shape[1]:
            capacity = max(capacity, PAGE_TOKENS * max(need, 2 * old.k.shape[1]))
        # An interruption must find the old room or the new one, never half of it.
        room = self._room(max(need, _pages(layer_tokens(capacity, own.window))), first)
        for new, source in ((room.k, old.k), (room.v, old.v)):
            new[:, :kept] = source[:, skipped : skipped + kept]
        self.moves += 1
        own.place = (room, first)
        self._capacity = capacity


class _Room(NamedTuple):
    k: NDArray[np.uint8]
    v: NDArray[np.uint8]
    pages: _core.KvPages


class _Layer:
    """One layer's pages, and how many tokens were appended last."""

    def __init__(self, window: int | None, room: _Room) -> None:
        self.window = window
        self.place = (room, 0)
        self.appended = 0

    @property
    def room(self) -> _Room:
        """Keys and values."""
        return self.place[0]

    @property
    def first(self) -> int:
        """The token that stands in the first place."""
        return self.place[1]

    @property
    def end(self) -> int:
        """The first token for which there is no place."""
        return self.first + PAGE_TOKENS * int(self.room.k.shape[1])


def layer_tokens(capacity: int, window: int | None) -> int:
    """Tokens that a layer has room for in a cache of some capacity.

    >>> layer_tokens(8192, None), layer_tokens(8192, 128), layer_tokens(256, 128)
    (8192, 1152, 256)
    """
    if window is None:
        return capacity
    # What a batch's first token sees, the batch, and what is let go of only with its whole chunk.
    return min(capacity, PAGE_TOKENS * _pages(window - 1 + BATCH_TOKENS + _CHUNK - 1))


def _pages(tokens: int) -> int:
    return -(-max(tokens, 1) // PAGE_TOKENS)
