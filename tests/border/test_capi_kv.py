"""A cache of keys and values through the C ABI: the bits of Python, codes and texts for misuse."""

from __future__ import annotations

import numpy as np
import pytest

from kvant import KVCache, KVPolicy, KVSide
from kvant.kv import CODECS
from kvant.kv.codecs import signs_of
from support import words

OK, BAD_SHAPE, BAD_FORMAT, BAD_ALIGNMENT, FULL = 0, -1, -2, -3, -8
TOKENS, HEADS, GROUP, DIM, VALUE_DIM = 70, 2, 3, 32, 20
K, V, Q = (
    np.random.default_rng(i).standard_normal((TOKENS, heads, dim), dtype=np.float32)
    for i, (heads, dim) in enumerate([(HEADS, DIM), (HEADS, VALUE_DIM), (HEADS * GROUP, DIM)])
)
SINKS = np.linspace(-1, 1, HEADS * GROUP, dtype=np.float32)
SIGNS = signs_of(3, DIM)
ODD = np.zeros(1 << 17, np.uint8)[1:]


class Native:
    """A cache of one layer and a sequence of it, with what their structs point to."""

    def __init__(self, c, call, codec=0, budget=0, side=None, layer=None):
        self.c, self.call = c, call
        self.layer = c.ffi.new("kvant_kv_layer*")
        self.layer.heads, self.layer.window = HEADS, 9
        self.layer.sink, self.layer.tail = 2, 3
        for part, dim in ((self.layer.k, DIM), (self.layer.v, VALUE_DIM)):
            part.codec, part.dim = codec, dim
        self.layer.k.rotate, self.layer.k.signs = DIM, self.floats(SIGNS)
        for name, value in (side or {}).items():
            setattr(self.layer.k, name, value)
        for name, value in (layer or {}).items():
            setattr(self.layer, name, value)
        self.cache, self.sequence = c.ffi.new("kvant_cache**"), c.ffi.new("kvant_sequence**")
        self.code = call("kvant_cache_new", self.layer, 1, budget, self.cache)
        if self.code == OK:
            assert call("kvant_sequence_new", self.cache[0], self.sequence) == OK

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.c.lib.kvant_sequence_free(self.sequence[0])
        self.c.lib.kvant_cache_free(self.cache[0])

    def floats(self, x):
        return self.c.ffi.cast("float*", x.ctypes.data)

    def append(self, **changes):
        given = {"layer": 0, "tokens": TOKENS, "k": K, "k_type": 0, "ks": HEADS * DIM, "kh": DIM}
        given |= {"v": V, "v_type": 0, "vs": HEADS * VALUE_DIM, "vh": VALUE_DIM, "threads": 0}
        bad = self.c.ffi.new("int64_t*")
        code = self.call(
            "kvant_sequence_append", self.sequence[0], *(given | changes).values(), bad
        )
        return code, bad[0]

    def query(self, **changes):
        out = np.full((TOKENS, HEADS * GROUP, VALUE_DIM), 7, np.float32)
        query = self.c.ffi.new("kvant_attention_query*")
        given = {"q": self.floats(Q), "tokens": TOKENS, "token_stride": HEADS * GROUP * DIM}
        given |= {"head_stride": DIM, "heads": HEADS * GROUP, "scale": 0.3, "causal": True}
        given |= {"sinks": self.floats(SINKS), "out": self.floats(out)}
        for name, value in (given | changes).items():
            setattr(query, name, value)
        return query, out

    def attend(self, layer=0, **changes):
        query, out = self.query(**changes)
        return self.call("kvant_sequence_attend", self.sequence[0], layer, query, 0), out

    def text(self):
        return self.c.ffi.string(self.c.lib.kvant_error_text()).decode()


@pytest.mark.parametrize("codec", range(len(CODECS)))
def test_the_bits_of_python(c, call, codec):
    name = CODECS[codec]
    assert c.ffi.string(c.lib.kvant_kv_codec_name(codec)).decode() == name
    cache = KVCache(
        1,
        HEADS,
        DIM,
        KVSide(name, rotate=DIM, signs=3),
        KVSide(name),
        value_dim=VALUE_DIM,
        window=9,
        policy=KVPolicy(2, 3),
    )
    seq = cache.sequence()
    seq.append(0, K, V)
    with Native(c, call, codec) as native:
        assert native.append() == (OK, -1)
        code, out = native.attend()
        assert code == OK
        assert np.array_equal(words(out), words(seq.attend(0, Q, 0.3, sinks=SINKS)))
        usage = c.ffi.new("kvant_cache_stats*")
        call("kvant_cache_usage", native.cache[0], usage)
        assert usage.used == cache.nbytes <= usage.reserved
        row = np.zeros(c.lib.kvant_kv_row_bytes(codec, DIM), np.uint8)
        read = call("kvant_sequence_read", native.sequence[0], 0, 0, 1, 69, 1, row)
        if name.startswith("kivi"):
            assert read == BAD_FORMAT
            assert native.text() == "keys that are coded by channel are no rows of a file"
            size = c.lib.kvant_kv_row_bytes(codec, VALUE_DIM)
            rows = [np.zeros((1, HEADS, count), np.uint8) for count in (len(row), size)]
            assert call("kvant_sequence_write", native.sequence[0], 0, 1, *rows) == BAD_FORMAT
        else:
            assert read == OK and np.array_equal(row, seq.to_ggml(0)[0][69, 1])


NO_VIEW = (
    "keys that hold values are neither centered nor equalized, and are rotated in blocks of both"
)
TOO_LONG = "values that are a view of keys have 1 to as many elements as these"
POWER = "rotate must be a power of two from 16 to 512 that divides the elements"


def test_values_that_are_a_view_and_chunks(c, call):
    cache = KVCache(
        1, HEADS, DIM, "q4_0", value_dim=VALUE_DIM, value_view=True, window=9, chunk=20,
        policy=KVPolicy(2, 3),
    )  # fmt: skip
    seq = cache.sequence()
    seq.append(0, K)
    with Native(c, call, 8, side={"rotate": 0}, layer={"view": True, "chunk": 20}) as native:
        assert native.append()[0] == BAD_SHAPE
        assert native.text() == "the layer's values are a view of its keys"
        none = c.ffi.cast("void*", 0)
        assert native.append(v=none) == (OK, -1)
        code, out = native.attend()
        assert code == OK and np.array_equal(words(out), words(seq.attend(0, Q, 0.3, sinks=SINKS)))
        usage = c.ffi.new("kvant_cache_stats*")
        call("kvant_cache_usage", native.cache[0], usage)
        assert usage.used == cache.nbytes
        floats = np.zeros((3, VALUE_DIM), np.float32)
        place = (native.sequence[0], 0, 1, 1, 60, 3)
        assert call("kvant_sequence_decode", *place, floats) == OK
        assert np.array_equal(words(floats), words(seq.values(0, 1, 60, 63)))
        rows = np.zeros(TOKENS * HEADS * 18, np.uint8)
        assert call("kvant_sequence_read", *place, rows) == BAD_SHAPE
        assert native.text() == "values are a view of keys: no rows of their own"
        written = (native.sequence[0], 0, TOKENS, rows)
        assert call("kvant_sequence_write", *written, rows) == BAD_SHAPE
        assert call("kvant_sequence_write", *written, none) == OK
        assert c.lib.kvant_sequence_length(native.sequence[0], 0) == 2 * TOKENS
    with Native(c, call) as native:
        assert native.append(v=none)[0] == BAD_SHAPE
        assert native.text() == "the layer has values of its own"


@pytest.mark.parametrize(
    ("given", "code", "what"),
    [
        ({"side": {"codec": 15}}, BAD_FORMAT, "no such codec"),
        ({"side": {"codec": -1}}, BAD_FORMAT, "no such codec"),
        ({"side": {"scale": 3}}, BAD_FORMAT, "no such rule for scales"),
        ({"side": {"dim": 0}}, BAD_SHAPE, "keys and values must have 1 to 1024 elements"),
        ({"side": {"dim": 1025}}, BAD_SHAPE, "keys and values must have 1 to 1024 elements"),
        ({"side": {"rotate": 24}}, BAD_SHAPE, POWER),
        ({"side": {"rotate": 64}}, BAD_SHAPE, POWER),
        ({"layer": {"heads": 0}}, BAD_SHAPE, "a layer must have 1 to 65536 heads"),
        ({"layer": {"window": -1}}, BAD_SHAPE, "window, chunk, sink and tail are not negative"),
        ({"layer": {"chunk": -1}}, BAD_SHAPE, "window, chunk, sink and tail are not negative"),
        ({"layer": {"view": True}}, BAD_SHAPE, NO_VIEW),
        ({"layer": {"view": True}, "side": {"rotate": 0, "dim": 19}}, BAD_SHAPE, TOO_LONG),
        ({"layer": {"tail": 1 << 60}}, BAD_SHAPE, "sink or tail is too large"),
        ({"budget": -1}, BAD_SHAPE, "the budget is negative"),
    ],
)
def test_caches_that_cannot_be(c, call, given, code, what):
    native = Native(c, call, **given)
    assert native.code == code
    assert native.text() == what


@pytest.mark.parametrize(
    ("change", "code", "what"),
    [
        ({"layer": 1}, BAD_SHAPE, "no such layer"),
        ({"layer": -1}, BAD_SHAPE, "no such layer"),
        ({"tokens": -1}, BAD_SHAPE, "too many tokens, or fewer than none"),
        ({"tokens": 1 << 62}, BAD_SHAPE, "too many tokens, or fewer than none"),
        ({"k_type": 3}, BAD_FORMAT, "no such element type"),
        ({"k": ODD}, BAD_ALIGNMENT, "floats are not aligned to their size"),
        ({"v": ODD}, BAD_ALIGNMENT, "floats are not aligned to their size"),
    ],
)
def test_appends_that_are_refused(c, call, change, code, what):
    with Native(c, call) as native:
        assert native.append(**change)[0] == code
        assert native.text() == what
        assert c.lib.kvant_sequence_length(native.sequence[0], 0) == 0


@pytest.mark.parametrize(
    ("change", "code", "what"),
    [
        ({"layer": 1}, BAD_SHAPE, "no such layer"),
        ({"heads": 5}, BAD_SHAPE, "heads of q are not a multiple of those of keys"),
        ({"heads": 0}, BAD_SHAPE, "heads of q are not a multiple of those of keys"),
        ({"tokens": -1}, BAD_SHAPE, "fewer tokens than none"),
        ({"tokens": 71}, BAD_SHAPE, "there are fewer keys than queries"),
        ({"softcap": -1.0}, BAD_SHAPE, "softcap must be finite and not negative"),
    ],
)
def test_queries_that_are_refused(c, call, change, code, what):
    with Native(c, call) as native:
        assert native.append()[0] == OK
        found, out = native.attend(**change)
        assert (found, native.text()) == (code, what)
        assert (out == 7).all()


def test_a_full_cache_and_a_row_that_cannot_be_stored(c, call):
    with Native(c, call, codec=3, budget=10000) as native:
        assert native.append()[0] == FULL
        assert c.lib.kvant_sequence_length(native.sequence[0], -1) == 0
    odd = K.copy()
    odd[11, 1, 5] = np.inf
    with Native(c, call, codec=3) as native:
        assert native.append(k=odd) == (BAD_SHAPE, 11 * HEADS + 1)
        assert native.append() == (OK, -1)
        assert call("kvant_sequence_truncate", native.sequence[0], 71) == BAD_SHAPE
        fork = c.ffi.new("kvant_sequence**")
        assert call("kvant_sequence_fork", native.sequence[0], fork) == OK
        assert call("kvant_sequence_truncate", native.sequence[0], 69) == OK
        lengths = [c.lib.kvant_sequence_length(s, 0) for s in (native.sequence[0], fork[0])]
        assert lengths == [69, 70]
        c.lib.kvant_sequence_free(fork[0])


def test_several_sequences(c, call):
    with Native(c, call, codec=3) as one, Native(c, call, codec=3) as other:
        two = c.ffi.new("kvant_sequence**")
        assert call("kvant_sequence_new", one.cache[0], two) == OK
        both = [one.sequence[0], two[0]]
        which, bad = c.ffi.new("int64_t*", 7), c.ffi.new("int64_t*", 7)

        def append(tokens, sequences=both, count=2, k=K, layer=0, everything=TOKENS):
            code = call(
                "kvant_cache_append", one.cache[0], c.ffi.new("kvant_sequence*[]", sequences),
                c.ffi.new("int64_t[]", tokens), count, layer, everything, k, 0, HEADS * DIM, DIM, V,
                0, HEADS * VALUE_DIM, VALUE_DIM, 0, which, bad,
            )  # fmt: skip
            return code, which[0], bad[0]

        odd = K.copy()
        odd[60, 1, 5] = np.inf
        assert append([50, 20], k=odd) == (BAD_SHAPE, -1, 60 * HEADS + 1)
        for refused, number, what in (
            (append([50, 20], [both[0], other.sequence[0]]), 1, "a sequence of another cache"),
            (append([50, 20], [both[0]] * 2), 1, "a sequence comes twice"),
            (append([71, -1]), 0, "more tokens than there are, or fewer than none"),
            (append([50, -1]), 1, "more tokens than there are, or fewer than none"),
            (append([50, 19]), -1, "tokens of no sequence"),
            (append([50, 20], count=-1), -1, "fewer sequences or tokens than none"),
            (append([50, 20], layer=1), -1, "no such layer"),
        ):
            assert refused == (BAD_SHAPE, number, -1), what
        assert one.text() == "no such layer"
        assert [c.lib.kvant_sequence_length(s, 0) for s in both] == [0, 0]
        assert append([50, 20]) == (OK, -1, -1)
        assert [c.lib.kvant_sequence_length(s, 0) for s in both] == [50, 20]

        def attend(tokens, **changes):
            query, out = one.query(tokens=sum(tokens), **changes)
            code = call(
                "kvant_cache_attend", one.cache[0], c.ffi.new("kvant_sequence*[]", both),
                c.ffi.new("int64_t[]", tokens), 2, 0, query, 0, which,
            )  # fmt: skip
            return code, which[0], out

        assert attend([3, 21])[:2] == (BAD_SHAPE, 1)
        assert one.text() == "there are fewer keys than queries"
        assert (attend([3, 21])[2] == 7).all()
        assert attend([3, 2], heads=5)[:2] == (BAD_SHAPE, -1)
        code, number, out = attend([3, 2])
        assert (code, number) == (OK, -1)
        wanted = [one.attend(tokens=3)[1][:3]]
        one.sequence[0] = both[1]
        wanted.append(one.attend(tokens=2, q=one.floats(Q[3:]))[1][:2])
        one.sequence[0] = both[0]
        assert np.array_equal(words(out[:5]), words(np.concatenate(wanted)))
        assert (out[5:] == 7).all()
        c.lib.kvant_sequence_free(two[0])


def test_rows_floats_and_states(c, call):
    assert call("kvant_kv_codec_count") == len(CODECS)
    assert c.lib.kvant_kv_codec_name(len(CODECS)) == c.ffi.NULL
    with Native(c, call, codec=3) as one, Native(c, call, codec=3) as two:
        assert one.append() == (OK, -1)
        sizes = [c.lib.kvant_kv_row_bytes(3, dim) for dim in (DIM, VALUE_DIM)]
        rows = [np.zeros((TOKENS, HEADS, size), np.uint8) for size in sizes]
        for side, size in enumerate(sizes):
            for head in range(HEADS):
                own = np.zeros((TOKENS, size), np.uint8)
                place = (one.sequence[0], 0, side, head, 0, TOKENS)
                assert call("kvant_sequence_read", *place, own) == OK
                rows[side][:, head] = own
        assert call("kvant_sequence_write", two.sequence[0], 0, TOKENS, *rows) == OK
        found = np.zeros((2, TOKENS, DIM), np.float32)
        for native, out in zip((one, two), found, strict=True):
            assert call("kvant_sequence_decode", native.sequence[0], 0, 0, 1, 0, TOKENS, out) == OK
        assert np.array_equal(words(found[0]), words(found[1]))
        assert np.abs(found[0] - K[:, 1]).max() < 0.05
        bad = (one.sequence[0], 0, 2, 0, 0, 1, rows[0])
        assert call("kvant_sequence_read", *bad) == BAD_SHAPE
        assert one.text() == "side must be 0 for keys or 1 for values"


@pytest.mark.parametrize("in_place", [False, True])
def test_states(c, call, in_place):
    with Native(c, call, codec=8) as one, Native(c, call, codec=8) as two:
        assert one.append() == (OK, -1)
        states = []
        for head in range(HEADS):
            bytes_ = c.lib.kvant_sequence_state_bytes(one.sequence[0], 0, head)
            room = np.zeros(bytes_ + 64, np.uint8)
            state = room[-room.ctypes.data % 64 :][:bytes_]
            assert (
                call("kvant_sequence_save", one.sequence[0], 0, head, state, bytes_ - 1)
                == BAD_SHAPE
            )
            assert call("kvant_sequence_save", one.sequence[0], 0, head, state, bytes_) == OK
            states.append(state)
        for head, state in enumerate(states):
            given = (two.sequence[0], 0, head, state)
            assert call("kvant_sequence_load", *given, len(state) - 1, in_place) == BAD_SHAPE
            assert call("kvant_sequence_load", *given, len(state), in_place) == OK
            assert call("kvant_sequence_load", *given, len(state), in_place) == BAD_SHAPE
            assert two.text() == "the head has tokens already"
        (code, wanted), (again, found) = one.attend(), two.attend()
        assert code == again == OK and np.array_equal(words(found), words(wanted))
        assert c.lib.kvant_sequence_state_bytes(one.sequence[0], 0, HEADS) == -1
