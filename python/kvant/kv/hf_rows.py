"""Sequences of a batch whose rows have tokens that a mask leaves out, such as padding.

Those take a place in the length of a row but none in its sequence: positions are in the keys
already, so that leaving a key out is all that a mask does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvant.errors import Error, ShapeError
from kvant.kv.cache import KVCache
from kvant.kv.sequence import KVSequence

__all__ = ["Rows"]

Array = NDArray[np.float32]


class Rows:
    """Sequences of a batch.

    Attributes
    ----------
    sequences : list of KVSequence
        One for each row; none before `start`.
    lengths : list of int
        Tokens of each layer, those left out included.
    left_out : list of lists of int
        For each row, the places of tokens that are not in its sequence, in order.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.sequences: list[KVSequence] = []
        self.left_out: list[list[int]] = []
        self.lengths = [0] * cache.layers

    def start(self, batch: int) -> None:
        """Make the rows, if there are none yet."""
        if not self.sequences:
            self.sequences = [self.cache.sequence() for _ in range(batch)]
            self.left_out = [[] for _ in range(batch)]
        if len(self.sequences) != batch:
            raise ShapeError(
                f"[TransformersCache] expected {len(self.sequences)} rows as before, got {batch}"
            )

    def append(self, layer: int, k: Array, v: Array, seen: NDArray[np.bool_] | None = None) -> None:
        """Add keys and values [batch, T, heads, dim] of tokens; `seen` [batch, T before and now].

        After an error all layers are as long as the shortest, which is how they were before the
        model was called.
        """
        try:
            kept = np.stack(
                [self._kept(layer, row, k.shape[1], seen) for row in range(len(self.sequences))]
            )
            self.cache.append_many(layer, self.sequences, k[kept], v[kept], kept.sum(1))
        except Error:
            self.crop(self._shortest())
            raise
        self.lengths[layer] += k.shape[1]

    def attend(self, layer: int, q: Array, **options: Any) -> Array:
        """Attention of the last tokens, [batch, T, heads, dim]; zeros for those left out."""
        tokens, shape = q.shape[1], self.cache.shapes[layer]
        first = self.lengths[layer] - tokens
        out = np.zeros((*q.shape[:3], shape.value_dim), np.float32)
        kept = np.ones(q.shape[:2], np.bool_)
        for row, places in enumerate(self.left_out):
            kept[row, [place - first for place in places if place >= first]] = False
        counts = kept.sum(1)
        out[kept] = self.cache.attend_many(layer, self.sequences, q[kept], counts, **options)
        return out

    def decode(self, layer: int, first: int) -> tuple[Array, Array]:
        """Keys and values from a place on: [batch, heads, T, dim] each."""
        heads = range(self.cache.shapes[layer].kv_heads)
        k = [[row.keys(layer, head, first) for head in heads] for row in self.sequences]
        v = [[row.values(layer, head, first) for head in heads] for row in self.sequences]
        return np.array(k), np.array(v)

    def crop(self, length: int) -> None:
        """Forget what comes from a place on, in every layer."""
        if length < 0:
            raise ShapeError(f"[TransformersCache] expected a length of at least 0, got {length}")
        left_out = [[place for place in places if place < length] for places in self.left_out]
        for row, places in zip(self.sequences, left_out, strict=True):
            row.truncate(length - len(places))
        self.left_out = left_out
        self.lengths = [min(length, own) for own in self.lengths]

    def selected(self, indices: Iterable[int]) -> Rows:
        """Rows by their numbers, each as often as it is named, sharing pages."""
        rows, chosen = Rows(self.cache), list(indices)
        rows.sequences = [self.sequences[row].fork() for row in chosen]
        rows.left_out = [list(self.left_out[row]) for row in chosen]
        rows.lengths = list(self.lengths)
        return rows

    def _shortest(self) -> int:
        return min(self.lengths[layer] for layer in set(self.cache.owners))

    def _kept(
        self, layer: int, row: int, tokens: int, seen: NDArray[np.bool_] | None
    ) -> NDArray[np.bool_]:
        """Which of the new tokens the row's sequence gets; notes the others."""
        past, kept = self.lengths[layer], np.ones(tokens, np.bool_)
        if seen is None:
            gaps: list[int] = []
        elif seen.shape != (len(self.sequences), past + tokens):
            raise ShapeError(
                f"[TransformersCache] expected a mask of {past + tokens} tokens for each of "
                f"{len(self.sequences)} rows, got {seen.shape}"
            )
        else:
            gaps = np.flatnonzero(~seen[row]).tolist()
        if [place for place in gaps if place < past] != [
            place for place in self.left_out[row] if place < past
        ]:
            raise ShapeError(
                "[TransformersCache] expected a mask that hides the same tokens as before"
            )
        if self.cache.shapes[layer].window is not None and gaps != list(range(len(gaps))):
            raise ShapeError(
                "[TransformersCache] expected padding on the left only, in a layer with a window"
            )
        self.left_out[row] = gaps
        kept[[place - past for place in gaps if place >= past]] = False
        return kept
