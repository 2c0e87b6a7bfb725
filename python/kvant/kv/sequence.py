"""One sequence of a cache: tokens appended, attended over, shared and taken back."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvant import _core
from kvant.errors import ShapeError
from kvant.kv.arguments import check_values, own_place, query_of, rows_of
from kvant.kv.changes import Changes
from kvant.kv.state import save

if TYPE_CHECKING:
    from kvant.kv.cache import KVCache

__all__ = ["KVSequence"]

Array = NDArray[np.float32]
T = TypeVar("T")


class KVSequence(Changes):
    """Keys and values of one sequence; made by `KVCache.sequence`.

    Results depend on the tokens that were appended and on the queries only: not on how many were
    appended at a time, on threads, on other sequences or on the processor.

    Attributes
    ----------
    cache : KVCache
        Whose pages it has; it lives as long.
    tokens : int64 [T] or None
        The tokens that were saved with it, of a sequence out of a file.
    """

    def __init__(self, cache: KVCache, core: _core.KvSequence) -> None:
        self.cache = cache
        self.tokens: NDArray[np.int64] | None = None
        self._core = core
        # Tokens from here on are not what a new sequence would compute; None for no such.
        self._changed: int | None = None

    @property
    def length(self) -> int:
        """Tokens of every layer: where the next one stands. Those that were evicted count."""
        return self._core.length(-1)

    def layer_length(self, layer: int) -> int:
        """Tokens of one layer; more than `length` while layers are appended in turn."""
        return self._core.length(self.cache.place(layer))

    def held(self, layer: int, head: int = 0) -> int:
        """Tokens that one head holds: those of its layer less what was evicted."""
        return self._core.held(self.cache.place(layer), self._head("held", layer, head))

    def append(self, layer: int, k: Any, v: Any = None, *, threads: int | None = None) -> None:
        """Add keys and values of the next tokens to a layer.

        Parameters
        ----------
        layer
            Which one; it has keys of its own.
        k, v
            f32, f16 or bf16 [T, kv_heads, head_dim] and [T, kv_heads, value_dim]; no v where values
            are a view of keys.
        threads
            At most this many; the set number by default.

        Raises
        ------
        ShapeError
            A shape does not fit, or a number is NaN, infinite or too large for its codec.
        CacheFullError
            The budget has no room, with all published prefixes let go of. The sequence is then as
            it was, as after all errors.
        """
        cache = self.cache
        given = rows_of("append", cache, layer, k, v)
        bad = self._grow(lambda: _core.kv_append(self._core, *given, threads or 0))
        if bad >= 0:
            token, head = divmod(bad, cache.shapes[layer].kv_heads)
            raise ShapeError(
                f"[append] expected finite numbers in reach of {cache.codecs(layer)}, got one "
                f"that is not at position {self.layer_length(layer) + token} "
                f"(token {token}, head {head})"
            )

    def attend(
        self,
        layer: int,
        q: Any,
        scale: float | None = None,
        causal: bool = True,
        lse: bool = False,
        out: Array | None = None,
        *,
        softcap: float = 0.0,
        sinks: Array | None = None,
        exact: bool = False,
        threads: int | None = None,
    ) -> Any:
        """Attention of the last tokens of a layer over its keys.

        Parameters
        ----------
        layer
            Which one.
        q
            f32 [T, heads, head_dim] of the last T tokens; query head h reads key head
            h * kv_heads // heads. Where the policy has a tail they see it exactly as long as T is
            at most 64 more than were appended last; before, what is kept of it is seen as coded.
        scale
            Of the scores; head_dim ** -0.5 by default.
        causal
            A token sees keys up to its own, else all.
        lse
            Return the logarithm of the sum of all exp(score), too.
        out
            f32 [T, heads, value_dim], C-contiguous, to write to.
        softcap
            Scores become cap * tanh(score / cap); 0 for none.
        sinks
            f32 [heads], for each head the score of a key without a value.
        exact
            Decode keys and values and multiply floats, instead of eight-bit integers.
        threads
            At most this many; the set number by default.

        Returns
        -------
        ndarray or (ndarray, ndarray)
            f32 [T, heads, value_dim], and with `lse` f32 [T, heads].

        Raises
        ------
        ShapeError
            A shape does not fit, a window has let go of keys that the queries see, or they come
            before tokens were evicted.
        """
        given = query_of("attend", self.cache, layer, q, scale, causal, lse, out, sinks)
        _core.kv_attend(
            self._core,
            given.place,
            given.q,
            given.scale,
            softcap,
            causal,
            exact,
            given.sinks,
            given.out,
            given.sums,
            threads or 0,
        )
        return given.result

    def fork(self) -> KVSequence:
        """A sequence with the same tokens, sharing all pages until one of the two writes."""
        fork = KVSequence(self.cache, self._core.fork())
        fork._changed = self._changed
        return fork

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on, in every layer.

        The last 64 tokens can always be taken back as if they had never been. Before them, tokens
        that were exact (the policy's tail) are seen as they are coded. Where keys are coded channel
        by channel (`kivi4`, `kivi2`) and the cut is no multiple of 64, the page it lies in goes on
        from copies: what its codes stand for, as f16.

        Raises
        ------
        ShapeError
            There are not so many, a window has let go of tokens that would be seen again, or tokens
            before it were evicted.
        CacheFullError
            Such copies have no room: all pages that the cut lets go of are shared.
        """
        self._grow(lambda: self._core.truncate(length))
        if self._changed is not None and length <= self._changed:
            self._changed = None

    def save(self, path: str | os.PathLike[str], tokens: Any = None) -> None:
        """Write all pages to a file, whole or not at all.

        Parameters
        ----------
        path
            The file; one that is there is replaced.
        tokens : integers [T], optional
            The ids that the keys are of, to go with them.
        """
        save(self, path, tokens)

    def keys(self, layer: int, head: int = 0, start: int = 0, stop: int | None = None) -> Array:
        """Keys of one head as they are stored, decoded, without transforms: f32 [T, head_dim].

        Of the tokens that the head holds: where some were evicted, start and stop count the others.
        Of a group of `kivi4` or `kivi2` that is not full they are f16.
        """
        return self._decode(layer, 0, head, start, stop)

    def values(self, layer: int, head: int = 0, start: int = 0, stop: int | None = None) -> Array:
        """Values of one head as they are stored, decoded: f32 [T, value_dim]. As for `keys`."""
        return self._decode(layer, 1, head, start, stop)

    def to_ggml(self, layer: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Rows of all keys and values as they are stored: uint8 [T, kv_heads, row bytes] each.

        Blocks are those of ggml where the codec is one of its formats, made of transformed rows.
        Values that are a view of keys have no rows: None.

        Raises
        ------
        FormatError
            Keys are coded channel by channel (`kivi4`, `kivi2`) and have no rows.
        ShapeError
            Heads hold different numbers of tokens, or a window has let go of some.
        """
        place, shape = self.cache.place(layer), self.cache.shapes[layer]
        first, length = 0, self.held(layer)
        lengths = {self.held(layer, head) for head in range(shape.kv_heads)}
        if len(lengths) > 1:
            raise ShapeError(
                f"[to_ggml] expected heads with as many tokens each, got {sorted(lengths)}"
            )
        rows = []
        for side, dim in enumerate(shape.stored):
            codec = _number(self.cache, layer, side)
            out = np.empty((shape.kv_heads, length, _core.kv_row_bytes(codec, dim)), np.uint8)
            for head in range(shape.kv_heads):
                self._core.read(place, side, head, first, out[head])
            rows.append(np.ascontiguousarray(out.swapaxes(0, 1)))
        return rows[0], None if shape.view else rows[1]

    def from_ggml(
        self, layer: int, k: NDArray[np.uint8], v: NDArray[np.uint8] | None = None
    ) -> None:
        """Append rows as `to_ggml` gives them.

        Raises
        ------
        FormatError
            Keys are coded channel by channel.
        ShapeError
            A shape does not fit, or a scale is not a number that the codec makes.
        CacheFullError
            The budget has no room.
        """
        place, shape = own_place("from_ggml", self.cache, layer), self.cache.shapes[layer]
        check_values("from_ggml", self.cache, layer, v)
        given = [np.ascontiguousarray(rows) for rows in (k, v) if rows is not None]
        for side, (rows, dim) in enumerate(zip(given, shape.stored, strict=True)):
            wanted = (
                len(k),
                shape.kv_heads,
                _core.kv_row_bytes(_number(self.cache, layer, side), dim),
            )
            if rows.dtype != np.uint8 or rows.shape != wanted:
                raise ShapeError(
                    f"[from_ggml] expected {'kv'[side]} uint8 {wanted}, "
                    f"got {rows.dtype} {rows.shape}"
                )
        values = None if shape.view else given[1]
        self._grow(lambda: self._core.write(place, given[0], values))

    def _head(self, function: str, layer: int, head: int) -> int:
        heads = self.cache.shapes[layer].kv_heads
        if not 0 <= head < heads:
            raise ShapeError(f"[{function}] expected a head below {heads}, got {head}")
        return head

    def _grow(self, call: Callable[[], T]) -> T:
        """What the call gives, with published prefixes let go of where they take the room."""
        return self.cache.prefixes.with_room(call)

    def _decode(self, layer: int, side: int, head: int, start: int, stop: int | None) -> Array:
        place, shape = self.cache.place(layer), self.cache.shapes[layer]
        start, stop, _ = slice(start, stop).indices(
            self.held(layer, self._head("keys", layer, head))
        )
        dim = shape.value_dim if side else shape.head_dim
        out = np.empty((max(stop - start, 0), dim), np.float32)
        self._core.decode(place, side, head, start, out)
        return out


def _number(cache: KVCache, layer: int, side: int) -> int:
    from kvant.kv.codecs import codec_number

    return codec_number(cache.sides[layer][side].codec)
