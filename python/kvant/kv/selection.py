"""Tokens taken out of a sequence, and keys turned to other positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kvant import _core
from kvant.errors import ShapeError
from kvant.kv.rope import KVRope, Ropes, ropes_of

if TYPE_CHECKING:
    from kvant.kv.sequence import KVSequence

__all__ = ["Tokens", "keep_only", "remove", "shift"]

Tokens = NDArray[np.int64]


def remove(seq: KVSequence, start: int, stop: int, rope: Ropes, threads: int | None) -> None:
    """Forget tokens of every layer; arguments are those of `KVSequence.remove`."""
    _check_range("remove", seq, start, stop)
    ropes = ropes_of("remove", seq.cache, rope)
    if start == stop:
        return
    selections = []
    for layer, head in _heads(seq):
        held, missing = _held(seq, layer, head)
        first = _slot("remove", start, missing)
        kept = np.concatenate([np.arange(first), np.arange(stop - missing, held)])
        how = ropes[layer] if first < len(kept) else None
        selections.append(
            _selection(seq, layer, head, held, kept, how, start - stop, first, len(kept))
        )
    _select(seq, "remove", selections, False, threads, start)


def shift(
    seq: KVSequence, by: int, rope: Ropes, start: int, stop: int | None, threads: int | None
) -> None:
    """Turn keys in their places; arguments are those of `KVSequence.shift`."""
    _check_range("shift", seq, start, seq.length if stop is None else stop)
    ropes = ropes_of("shift", seq.cache, rope)
    if by == 0 or start == stop:
        return
    selections = []
    for layer, head in _heads(seq):
        held, missing = _held(seq, layer, head)
        first = _slot("shift", start, missing) if start else 0
        last = held if stop is None else _slot("shift", stop, missing)
        kept = np.arange(held)
        how = ropes[layer] if first < last else None
        selections.append(_selection(seq, layer, head, held, kept, how, by, first, last))
    _select(seq, "shift", selections, False, threads, start)


def keep_only(
    seq: KVSequence,
    kept: Mapping[int, Sequence[Tokens]],
    held: Mapping[int, Sequence[int]] | None = None,
    threads: int | None = None,
) -> None:
    """Evict all tokens but those of each head, by layer; `held` are what they were chosen from."""
    selections = []
    for layer, heads in kept.items():
        for head, tokens in enumerate(heads):
            count = seq.held(layer, head) if held is None else held[layer][head]
            selections.append(_selection(seq, layer, head, count, tokens, None, 0, 0, 0))
    _select(seq, "evict", selections, True, threads, 0)


def _check_range(function: str, seq: KVSequence, start: int, stop: int) -> None:
    if not 0 <= start <= stop <= seq.length:
        raise ShapeError(
            f"[{function}] expected start and stop within {seq.length} tokens, got {start}, {stop}"
        )


def _heads(seq: KVSequence) -> list[tuple[int, int]]:
    shapes = seq.cache.shapes
    layers = seq.cache.owned
    return [(layer, head) for layer in layers for head in range(shapes[layer].kv_heads)]


def _held(seq: KVSequence, layer: int, head: int) -> tuple[int, int]:
    """Tokens of a head, and those that were evicted."""
    held = seq.held(layer, head)
    return held, seq.layer_length(layer) - held


def _slot(function: str, position: int, missing: int) -> int:
    """Where the token of a position is among those that a head holds."""
    if missing and position <= missing:
        raise ShapeError(
            f"[{function}] expected tokens that came after the last eviction, got {position}"
        )
    return position - missing


def _selection(
    seq: KVSequence,
    layer: int,
    head: int,
    held: int,
    kept: Tokens,
    rope: KVRope | None,
    by: int,
    begin: int,
    end: int,
) -> _core.KvSelection:
    dim = seq.cache.shapes[layer].head_dim
    turn = None if rope is None else _core.KvTurn(*rope.native(by, dim))
    kept = np.require(kept, np.int64, ["C", "ALIGNED"])
    return _core.KvSelection(seq.cache.place(layer), head, held, kept, turn, begin, end)


def _select(
    seq: KVSequence,
    name: str,
    selections: list[_core.KvSelection],
    evict: bool,
    threads: int | None,
    start: int,
) -> None:
    before = seq._changed
    # Before it is true, so that nobody takes what is changed for what it was.
    seq._changed = start if before is None else min(start, before)
    try:
        seq._grow(lambda: seq._core.select(name, selections, evict, threads or 0))
    except BaseException:
        seq._changed = before
        raise
