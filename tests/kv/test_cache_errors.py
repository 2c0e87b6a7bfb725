"""What a cache refuses: typed errors that name the place, and a sequence as it was."""

from __future__ import annotations

import re

import numpy as np
import pytest

from kvant import FormatError, KVCache, KVPolicy, KVSide, ShapeError
from kvant.kv import CODECS, KVCalibration
from support import words

HEADS, DIM, VALUE_DIM = 2, 32, 48
RNG = np.random.default_rng(0)
K = RNG.standard_normal((100, HEADS, DIM), dtype=np.float32)
V = RNG.standard_normal((100, HEADS, VALUE_DIM), dtype=np.float32)
Q = RNG.standard_normal((3, 2 * HEADS, DIM), dtype=np.float32)


def cache_of(k="q8_0", v="q4_0", **options):
    return KVCache(2, HEADS, DIM, k, v, value_dim=VALUE_DIM, **options)


def filled(cache, tokens=70):
    seq = cache.sequence()
    for layer in sorted(set(cache.owners)):
        seq.append(layer, K[:tokens], V[:tokens])
    return seq


def refuses(call, text, error=ShapeError):
    with pytest.raises(error, match=re.escape(text)):
        call()


MAKE = [
    ({"layers": 0}, "at least one layer, got 0"),
    ({"budget": 0}, "a budget of at least one byte, got 0"),
    ({"kv_heads": 0}, "expected a layer with keys, got none"),
    ({"kv_heads": [1, 1, 1]}, "expected kv_heads of 2 layers, got 3"),
    ({"head_dim": 1025}, "1 to 1024 elements, got 1 of 1025"),
    ({"value_dim": 0}, "1 to 1024 elements, got 1 of 32 and 0"),
    ({"window": 0}, "expected a window of at least 1, got 0"),
    ({"window": [None]}, "expected window of 2 layers, got 1"),
    ({"share": {1: 1}}, "expected layer 1 to share a layer of its shape"),
    ({"share": {2: 0}}, "expected layer 2 to share"),
    ({"share": {1: 0}, "window": [None, 5]}, "expected layer 1 to share"),
    ({"k": KVSide("q8_0", center=True)}, "a calibration with center of 2 layers, got 0"),
    ({"v": KVSide("q8_0", center=True)}, "values neither centered nor equalized"),
    ({"k": KVSide("q8_0", rotate=24)}, "a power of two from 16 to 512 that divides 32, got 24"),
    ({"k": KVSide("q8_0", rotate=64)}, "that divides 32, got 64"),
]


@pytest.mark.parametrize(("change", "text"), MAKE)
def test_a_cache_that_cannot_be(change, text):
    given = {"layers": 2, "kv_heads": 1, "head_dim": 32} | change
    refuses(lambda: KVCache(**given), text)


def test_a_calibration_that_does_not_fit():
    tables = [np.ones((1, 32), np.float32), np.ones((1, 31), np.float32)]
    side = KVSide("q8_0", equalize=True)
    given = KVCalibration(tables, tables)
    refuses(lambda: KVCache(2, 1, 32, side, calibration=given), "equalize (1, 32) of layer 1")


def test_codecs_that_are_not():
    refuses(lambda: KVCache(1, 1, 32, "q3_0"), "expected a codec of f32, f16", FormatError)
    refuses(lambda: KVSide("lm4", scale="most"), "norm, unbiased or least", FormatError)
    policy = KVPolicy(layers={0: ("q8_0", "q9")})
    refuses(lambda: KVCache(1, 1, 32, policy=policy), "got 'q9'", FormatError)


APPEND = [
    ((0, K[:, :1], V), "[append] expected keys [T, 2, 32], got (100, 1, 32)"),
    ((0, K[:, :, :16], V), "[append] expected keys [T, 2, 32], got (100, 2, 16)"),
    ((0, K, K), "[append] expected values [T, 2, 48], got (100, 2, 32)"),
    ((0, K[0], V[0]), "[append] expected keys [T, 2, 32], got (2, 32)"),
    ((0, K, V[:99]), "[append] expected 100 values as of keys, got 99"),
    ((0, K.astype(np.float64), V), "[append] expected keys f32, f16 or bf16, got float64"),
    ((0, K, V.astype(">f4")), "[append] expected values f32, f16 or bf16, got >f4"),
    ((0, K.astype(np.int8), V), "[append] expected keys f32, f16 or bf16, got int8"),
    ((1, K, V), "[append] expected a layer with keys of its own, got 1, which shares those of 0"),
    ((2, K, V), "expected a layer below 2, got 2"),
    ((-1, K, V), "expected a layer below 2, got -1"),
]


@pytest.mark.parametrize(("given", "text"), APPEND)
def test_an_append_that_does_not_fit(given, text):
    cache = cache_of(share={1: 0})
    seq = filled(cache)
    used, before = cache.nbytes, seq.attend(0, Q)
    refuses(lambda: seq.append(*given), text)
    assert (cache.nbytes, seq.length) == (used, 70)
    assert np.array_equal(words(seq.attend(0, Q)), words(before))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("tokens", "token", "head"), [(1, 0, 1), (5, 3, 0), (30, 17, 1)])
def test_the_first_number_that_is_none_is_named(codec, bad, tokens, token, head):
    cache = cache_of(codec, codec, policy=KVPolicy(sink=80, tail=20))
    seq = filled(cache)
    used, before = cache.nbytes, seq.attend(0, Q)
    for side in (0, 1):
        given = [K[:tokens].copy(), V[:tokens].copy()]
        given[side][token, head, 3] = bad
        given[1 - side][token + 1 :] = bad
        refuses(
            lambda given=given: seq.append(0, *given),
            f"[append] expected finite numbers in reach of {codec}/{codec}, got one that is not "
            f"at position {70 + token} (token {token}, head {head})",
        )
        assert (cache.nbytes, seq.length) == (used, 70)
    assert np.array_equal(words(seq.attend(0, Q)), words(before))
    # What was written of the rows before is no token's.
    seq.append(0, K[70:], V[70:])
    wanted = filled(cache_of(codec, codec, policy=KVPolicy(sink=80, tail=20)), 100)
    assert np.array_equal(words(seq.attend(0, Q)), words(wanted.attend(0, Q)))


@pytest.mark.parametrize(
    ("codec", "policy", "largest"),
    [
        ("f16", None, 65504.0),
        ("q8_0", None, 127 * 65504.0),
        ("q4_0", None, 8 * 65504.0),
        ("q4_0", KVPolicy(tail=1), 65504.0),
        ("q4_0", KVPolicy(sink=1), 65504.0),
        ("kivi4", None, 65504.0),
        ("kivi2", None, 65504.0),
    ],
)
def test_numbers_too_large_for_a_codec(codec, policy, largest):
    k = np.zeros((1, HEADS, DIM), np.float32)
    v = np.zeros((1, HEADS, VALUE_DIM), np.float32)
    for x in (k, v):
        seq = cache_of(codec, codec, policy=policy).sequence()
        x[0, 1, 7] = largest
        seq.append(0, k, v)
        x[0, 1, 7] = -1.01 * largest
        seq = seq.cache.sequence()
        refuses(lambda seq=seq: seq.append(0, k, v), "at position 0 (token 0, head 1)")
        x[:] = 0


def test_a_sink_holds_only_so_many_large_numbers_back():
    """Behind the exact tokens the codec's own reach counts."""
    seq = cache_of("q4_0", "q4_0", policy=KVPolicy(sink=2)).sequence()
    k = np.zeros((3, HEADS, DIM), np.float32)
    k[2, 0, 0] = 1e5
    seq.append(0, k, V[:3])
    k[1, 0, 0] = 1e5
    refuses(lambda: seq.cache.sequence().append(0, k, V[:3]), "at position 1 (token 1, head 0)")


ATTEND = [
    ((0, Q[:, :3]), {}, "[attend] expected q [T, a multiple of 2, 32], got (3, 3, 32)"),
    ((0, Q[:, :0]), {}, "[attend] expected q [T, a multiple of 2, 32], got (3, 0, 32)"),
    ((0, Q[:, :, :16]), {}, "[attend] expected q [T, a multiple of 2, 32], got (3, 4, 16)"),
    ((0, Q[0]), {}, "[attend] expected q [T, a multiple of 2, 32], got (4, 32)"),
    ((0, Q.astype(np.float16)), {}, "[attend] expected q of f32, got float16"),
    ((2, Q), {}, "expected a layer below 2, got 2"),
    ((0, Q), {"sinks": np.zeros(3, np.float32)}, "expected sinks of f32 (4,), got float32 (3,)"),
    ((0, Q), {"out": np.zeros((3, 4, 32), np.float32)}, "expected out of float32 (3, 4, 48)"),
    ((0, np.repeat(Q, 30, 0)), {}, "there are fewer keys than queries"),
    ((1, Q), {"causal": False}, "[attend] expected causal attention in a layer with a window"),
]


@pytest.mark.parametrize(("given", "options", "text"), ATTEND)
def test_queries_that_do_not_fit(given, options, text):
    seq = filled(cache_of(window=[None, 40]))
    refuses(lambda: seq.attend(*given, **options), text)


def test_what_a_window_has_let_go_of():
    seq = cache_of(window=[None, 30]).sequence()
    for _ in range(10):
        for layer in (0, 1):
            seq.append(layer, K[:30], V[:30])
    q = np.zeros((150, HEADS, DIM), np.float32)
    seq.attend(0, q)
    refuses(lambda: seq.attend(1, q), "[attend] the window has let go of keys that these queries")
    refuses(lambda: seq.truncate(150), "[truncate] a window has let go of tokens")
    refuses(lambda: seq.keys(1, 0, 0, 64), "there are not such tokens")
    assert seq.length == 300
    assert seq.keys(1, 0, 128).shape == (172, DIM)
    seq.truncate(236)
    assert seq.length == 236


@pytest.mark.parametrize("length", [-1, 71, 1 << 40])
def test_lengths_that_are_not(length):
    seq = filled(cache_of())
    refuses(lambda: seq.truncate(length), "[truncate] there are not so many tokens")
    assert seq.length == 70


def test_heads_that_are_not():
    seq = filled(cache_of())
    for read in (seq.keys, seq.values):
        for head in (-1, 2):
            refuses(lambda read=read, head=head: read(0, head), f"head below 2, got {head}")
        refuses(lambda read=read: read(5), "expected a layer below 2, got 5")


def test_rows_of_a_file_that_do_not_fit():
    cache = cache_of()
    seq = filled(cache)
    k, v = seq.to_ggml(0)
    refuses(lambda: seq.from_ggml(0, k[:, :1], v), "expected k uint8 (70, 2, 34), got uint8")
    refuses(lambda: seq.from_ggml(0, k, v[:, :, 1:]), "expected v uint8 (70, 2, 36), got uint8")
    refuses(lambda: seq.from_ggml(0, k, v[:9]), "expected v uint8 (70, 2, 36), got uint8 (9, 2")
    refuses(lambda: seq.from_ggml(0, k.view(np.int8), v), "got int8")
    used, before = cache.nbytes, seq.attend(0, Q)
    for half in (0x7C00, 0xFC00, 0x7E01, 0x8001, 0xBC00):
        broken = k.copy()
        broken[69, 1, :2] = np.array([half], "<u2").view(np.uint8)
        refuses(lambda broken=broken: seq.from_ggml(0, broken, v), "[from_ggml]")
    assert (cache.nbytes, seq.length) == (used, 70)
    assert np.array_equal(words(seq.attend(0, Q)), words(before))
