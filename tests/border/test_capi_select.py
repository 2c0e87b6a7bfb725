"""Selections of tokens through the C ABI: the bits of Python, codes and texts for misuse."""

from __future__ import annotations

import numpy as np
import pytest
from test_capi_kv import BAD_SHAPE, DIM, HEADS, OK, TOKENS, VALUE_DIM, K, Native, V

from kvant import KVCache, KVPolicy, KVSide
from kvant.kv import KVRope
from kvant.kv.selection import keep_only
from support import words

FULL = {"layer": {"window": 0}}


class Selection:
    """An array of structs and what they point to."""

    def __init__(self, c, heads, **changes):
        self.kept = [np.array(kept, np.int64) for kept in heads]
        self.c, self.structs = c, c.ffi.new("kvant_selection[]", len(heads))
        self.turn = c.ffi.new("kvant_turn*")
        for number, kept in enumerate(self.kept):
            each = self.structs[number]
            each.layer, each.head, each.held, each.count = 0, number, TOKENS, len(kept)
            each.kept = c.ffi.cast("int64_t*", kept.ctypes.data)
            for name, value in changes.items():
                setattr(each, name, value)

    def turned(self, **how):
        given = {"by": -3, "theta": 100.0, "scale": 1.0, "rotary": DIM} | how
        for name, value in given.items():
            setattr(self.turn, name, value)
        for number, kept in enumerate(self.kept):
            each = self.structs[number]
            each.turn, each.turn_begin, each.turn_end = self.turn, 5, len(kept)
        return self


def python(codec):
    cache = KVCache(
        1,
        HEADS,
        DIM,
        KVSide(codec, rotate=DIM, signs=3),
        KVSide(codec),
        value_dim=VALUE_DIM,
        policy=KVPolicy(2, 3),
    )
    seq = cache.sequence()
    seq.append(0, K, V)
    return cache, seq


def keys(native, head, count):
    out = np.zeros((count, DIM), np.float32)
    assert native.call("kvant_sequence_decode", native.sequence[0], 0, 0, head, 0, count, out) == OK
    return words(out)


def select(native, selection, evict, count=None):
    given = (native.sequence[0], selection.structs, len(selection.kept) if count is None else count)
    return native.call("kvant_sequence_select", *given, evict, 0)


@pytest.mark.parametrize(("codec", "name"), [(0, "f32"), (3, "q8_0")])
def test_the_bits_of_python(c, call, codec, name):
    cache, seq = python(name)
    kept = [np.arange(0, TOKENS, 2), np.arange(9, 30)]
    with Native(c, call, codec, **FULL) as native:
        native.append()
        assert select(native, Selection(c, kept), True) == OK
        keep_only(seq, {0: kept})
        for head, own in enumerate(kept):
            place = (native.sequence[0], 0, head)
            assert c.lib.kvant_sequence_held(*place) == len(own) == seq.held(0, head)
            assert np.array_equal(keys(native, head, len(own)), words(seq.keys(0, head)))
        assert c.lib.kvant_sequence_length(native.sequence[0], 0) == TOKENS
        usage = c.ffi.new("kvant_cache_stats*")
        call("kvant_cache_usage", native.cache[0], usage)
        assert usage.used == cache.nbytes
        assert c.lib.kvant_sequence_held(native.sequence[0], 0, HEADS) == -1
    cache, seq = python(name)
    rest = [[*range(5), *range(8, TOKENS)]] * HEADS
    with Native(c, call, codec, **FULL) as native:
        native.append()
        assert select(native, Selection(c, rest).turned(), False) == OK
        seq.remove(5, 8, KVRope(100.0))
        assert c.lib.kvant_sequence_length(native.sequence[0], -1) == TOKENS - 3
        assert np.array_equal(keys(native, 1, TOKENS - 3), words(seq.keys(0, 1)))


ASCENDING = "what is kept must be ascending tokens that are there"
REFUSED = [
    ([[0], [0]], {"layer": 1}, True, "no such layer"),
    ([[0], [0]], {"head": -1}, True, "no such head"),
    ([[0], [0]], {"head": 1}, True, "a head is given twice"),
    ([[0], [0]], {"count": -1}, True, "there are not such tokens"),
    ([[0], [0]], {"held": TOKENS - 1}, True, "the head holds another number of tokens"),
    ([[0, 70], [0]], {}, True, ASCENDING),
    ([[3, 3], [0]], {}, True, ASCENDING),
    ([[-1, 3], [0]], {}, True, ASCENDING),
    ([[0], []], {}, True, "at least one token of a head is kept"),
    ([[0, 1], [0]], {}, False, "the heads of a layer lose as many tokens each"),
    ([[0, 1]], {}, False, "the heads of a layer lose as many tokens each"),
]


@pytest.mark.parametrize(("heads", "changes", "evict", "what"), REFUSED)
def test_selections_that_are_refused(c, call, heads, changes, evict, what):
    with Native(c, call, 3, **FULL) as native:
        native.append()
        before = keys(native, 1, TOKENS)
        assert select(native, Selection(c, heads, **changes), evict) == BAD_SHAPE
        assert native.text() == what
        assert np.array_equal(keys(native, 1, TOKENS), before)
        assert select(native, Selection(c, heads), evict, -1) == BAD_SHAPE
        assert select(native, Selection(c, heads), evict, 0) == OK


TURNS = [
    ({"rotary": 0}, "rotary must be even, from 2 to head_dim"),
    ({"rotary": DIM + 2}, "rotary must be even, from 2 to head_dim"),
    ({"theta": 0.5}, "theta must be a finite number of at least 1"),
    ({"scale": 0.0}, "scale must be a finite number above 0"),
    ({"by": 1 << 62}, "a position makes an angle above 1e8"),
]


@pytest.mark.parametrize(("how", "what"), TURNS)
def test_turns_that_are_refused(c, call, how, what):
    with Native(c, call, 3, **FULL) as native:
        native.append()
        selection = Selection(c, [np.arange(TOKENS)] * HEADS).turned(**how)
        assert select(native, selection, False) == BAD_SHAPE
        assert native.text() == what


def test_a_window_is_left_alone(c, call):
    with Native(c, call, 3) as native:
        native.append()
        assert select(native, Selection(c, [[0], [0]]), True) == BAD_SHAPE
        assert native.text() == "a layer with a window or chunks lets go by itself"
        rest = [[*range(60), *range(65, TOKENS)]] * HEADS
        assert select(native, Selection(c, rest), False) == OK
        assert c.lib.kvant_sequence_length(native.sequence[0], 0) == TOKENS - 5
