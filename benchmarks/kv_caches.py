"""Caches of random keys and values whose layers take turns, as a decoder's do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvant.bench.timing import Task
from kvant.kv import KVCache, KVSide

__all__ = ["HEADS", "Layers", "cycle", "layers_for", "rotated"]

HEADS = 8
# So many bytes of layers in turn: more than caches hold, so keys and values come from memory.
BYTES = 160e6


def rotated(codec: str, value: bool = False) -> KVSide:
    """A quantized codec with its rotation, as presets use it."""
    made = KVSide.of(codec, value)
    return made if not made.quantized or made.rotate else KVSide(codec, rotate="auto")


def layers_for(nbytes: float) -> int:
    """How many layers of so many bytes fill what caches do not hold."""
    return max(1, math.ceil(BYTES / nbytes))


def cycle(count: int) -> Iterator[int]:
    """0, 1, ... count - 1, 0, 1, ...: without an end."""
    number = 0
    while True:
        yield number
        number = (number + 1) % count


class Layers:
    """A cache of eight key heads and queries that ask its layers one after another.

    Parameters
    ----------
    k, v
        How keys and values are stored.
    tokens, queries
        Keys of a layer, and how many of its tokens ask.
    group
        Query heads that read one key head.
    dim
        Elements of a key, and of a value.
    view
        Elements of a value that is a view of its key; 0 for values that are stored.

    Attributes
    ----------
    nbytes : float
        Of one layer's keys and values.
    operations : float
        Multiplications and additions of a call: those of keys that a query sees.

    Examples
    --------
    >>> layers = Layers("q8_0", "q8_0", 64, 1, 32)
    >>> layers.nbytes == 2 * 8 * 64 * 34, layers.operations == 4 * 8 * 64 * 32
    (True, True)
    """

    def __init__(
        self,
        k: str | KVSide,
        v: str | KVSide,
        tokens: int,
        group: int,
        dim: int,
        *,
        queries: int = 1,
        view: int = 0,
    ) -> None:
        sides = [side if isinstance(side, KVSide) else KVSide.of(side) for side in (k, v)]
        stored = sides[:1] if view else sides
        self.nbytes = HEADS * tokens * dim * sum(side.bits(dim) for side in stored) / 8
        elements = dim + (view or dim)
        seen = queries * (tokens - (queries - 1) / 2)
        self.operations = 2 * seen * HEADS * group * elements
        self.count = layers_for(self.nbytes) if queries == 1 else 1
        how: dict[str, Any] = {"value_dim": view, "value_view": True} if view else {"v": sides[1]}
        self.sequence = KVCache(self.count, HEADS, dim, sides[0], **how).sequence()
        rng = np.random.default_rng(0)
        x, y = (rng.standard_normal((tokens, HEADS, dim), dtype=np.float32) for _ in range(2))
        for layer in range(self.count):
            self.sequence.append(layer, x, None if view else y)
        self.q: NDArray[np.float32]
        self.q = rng.standard_normal((queries, HEADS * group, dim), dtype=np.float32)
        self.out = np.empty((*self.q.shape[:2], view or dim), np.float32)

    def task(self, threads: int) -> Task:
        """Attention over one layer, at each call the next."""
        turn = cycle(self.count)

        def run() -> None:
            self.sequence.attend(next(turn), self.q, out=self.out, threads=threads)

        return Task(run)
