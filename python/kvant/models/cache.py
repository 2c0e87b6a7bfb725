"""Keys and values of one sequence, kept in pages and attended over where they lie."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvant import _core
from kvant.arrays import empty, float_dtype
from kvant.errors import ShapeError

__all__ = ["PAGE_TOKENS", "Cache"]

PAGE_TOKENS = 64
_NO_WINDOW = 1 << 60
_U8 = np.dtype(np.uint8)

Array = NDArray[np.float32]


class Cache:
    """Keys and values of every layer of a decoder, in pages of 64 tokens.

    A page of keys lies as [head_dim, 64], one of values as [64, head_dim], so that neither product
    of attention needs a sum across a vector. It grows by doubling; asked for its capacity at the
    start, it never moves. All layers have the same heads.

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

    Attributes
    ----------
    length : int
        Tokens that all layers hold; `advance` moves it once every layer has had its append.

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
    ) -> None:
        if dtype not in ("f16", "f32"):
            raise ShapeError(f"[Cache] expected dtype f16 or f32, got {dtype!r}")
        self.length = 0
        # Sizes out of a file are NumPy's unsigned numbers, which wrap.
        self.kv_heads, self.head_dim = int(kv_heads), int(head_dim)
        self.value_dim = self.head_dim if value_dim is None else int(value_dim)
        self._number_bytes = float_dtype("Cache", dtype)[1].itemsize
        # Values are padded to whole vectors.
        self._width = -(-self.value_dim // 16) * 16
        self._layers = [self._room(_pages(int(capacity))) for _ in range(int(layers))]

    @property
    def nbytes(self) -> int:
        """Bytes of all pages."""
        return sum(k.nbytes + v.nbytes for k, v, _ in self._layers)

    @property
    def capacity(self) -> int:
        """Tokens for which there is room."""
        return PAGE_TOKENS * int(self._layers[0][0].shape[1]) if self._layers else 0

    def append(self, layer: int, k: Array, v: Array, threads: int | None = None) -> None:
        """Add keys f32 [T, kv_heads, head_dim] and values [T, kv_heads, value_dim] to a layer.

        They are rounded to the cache's type and stand at `length` and after it.
        """
        if k.shape[1:] != (self.kv_heads, self.head_dim):
            raise ShapeError(
                f"[append] expected keys [T, {self.kv_heads}, {self.head_dim}], got {k.shape}"
            )
        if v.shape != (len(k), self.kv_heads, self.value_dim):
            raise ShapeError(
                f"[append] expected values {(len(k), self.kv_heads, self.value_dim)}, got {v.shape}"
            )
        self._grow(layer, self.length + len(k))
        _core.kv_append(self._layers[layer][2], self.length, k, v, threads or 0)

    def attend(
        self,
        layer: int,
        q: Array,
        scale: float,
        *,
        window: int | None = None,
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
        window
            Keys a token sees at most, its own among them; all by default.
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
            A shape does not fit.
        """
        if q.ndim != 3 or q.shape[1] % self.kv_heads or q.shape[2] != self.head_dim:
            raise ShapeError(
                f"[attend] expected q [T, a multiple of {self.kv_heads}, {self.head_dim}], "
                f"got {q.shape}"
            )
        if sinks is not None and sinks.shape != (q.shape[1],):
            raise ShapeError(f"[attend] expected sinks ({q.shape[1]},), got {sinks.shape}")
        shape = (*q.shape[:2], self.value_dim)
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape:
            raise ShapeError(f"[attend] expected out {shape}, got {out.shape}")
        reach = _NO_WINDOW if window is None else window
        pages = self._layers[layer][2]
        _core.kv_attend(pages, self.length, q, reach, scale, sinks, out, threads or 0)
        return out

    def advance(self, tokens: int) -> None:
        """Count tokens in, once every layer holds them."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on; ShapeError if there are not so many."""
        if not 0 <= length <= self.length:
            raise ShapeError(f"[truncate] expected 0 to {self.length} tokens, got {length}")
        self.length = length

    def _room(self, pages: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], _core.KvPages]:
        size = self._number_bytes
        k = empty((self.kv_heads, pages, self.head_dim, PAGE_TOKENS, size), _U8)
        v = empty((self.kv_heads, pages, PAGE_TOKENS, self._width, size), _U8)
        return k, v, _core.KvPages(k, v, self.value_dim)

    def _grow(self, layer: int, tokens: int) -> None:
        old_k, old_v, _ = self._layers[layer]
        have = old_k.shape[1]
        if tokens <= have * PAGE_TOKENS:
            return
        room = self._room(max(_pages(tokens), 2 * have))
        room[0][:, :have] = old_k
        room[1][:, :have] = old_v
        self._layers[layer] = room


def _pages(tokens: int) -> int:
    return -(-max(tokens, 1) // PAGE_TOKENS)
