"""Cases that once went wrong."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from kvant import KVCache, KVPolicy, KVSide
from kvant.errors import ShapeError
from support import words


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_pages_are_not_taken_for_those_of_another_layout():
    policy = KVPolicy(layers={1: ("q4_1", "q4_1")})
    cache = KVCache(2, 1, 64, "q5_0", "q4_0", policy=policy)
    first = cache.sequence()
    first.append(0, normal(640, 1, 64), 100 * normal(640, 1, 64, seed=1))
    first.truncate(0)
    x, q = normal(5, 1, 64, seed=2), normal(1, 1, 64, seed=3)
    results = []
    for seq in (cache.sequence(), KVCache(2, 1, 64, "q5_0", "q4_0", policy=policy).sequence()):
        seq.append(1, x, x)
        results.append(words(seq.attend(1, q)))
    assert np.array_equal(*results)


@pytest.mark.parametrize("codec", ["q8_0", "q4_1", "q5_1", "lm4"])
def test_scales_below_zero_are_refused_where_no_encoder_makes_them(codec):
    seq = KVCache(1, 1, 64, codec, codec).sequence()
    seq.append(0, normal(3, 1, 64), normal(3, 1, 64))
    k, v = seq.to_ggml(0)
    v[2, 0, 1] |= 0x80
    with pytest.raises(ShapeError, match="not finite, or too large"):
        seq.from_ggml(0, k, v)
    assert seq.length == 3


def test_scores_of_minus_infinity_have_no_weight():
    cache = KVCache(1, 1, 16, "f32", "q4_1", window=70)
    seq = cache.sequence()
    k = np.full((80, 1, 16), 3e38, np.float32)
    k[64:] = 0
    seq.append(0, k, np.ones((80, 1, 16), np.float32))
    out = seq.attend(0, np.full((1, 1, 16), -1e3, np.float32), 1.0)
    assert np.allclose(out, 1, atol=1e-2)


def test_rotated_floats_that_overflow_are_refused():
    seq = KVCache(1, 1, 16, KVSide("f32", rotate=16), "f32").sequence()
    x = np.full((2, 1, 16), 3e38, np.float32)
    with pytest.raises(ShapeError, match="position 0"):
        seq.append(0, x, normal(2, 1, 16))


def test_shared_layers_take_no_rows_and_have_their_owners_codec():
    policy = KVPolicy(layers={0: ("q4_0", "q4_0")})
    seq = KVCache(2, 1, 32, policy=policy, share={1: 0}).sequence()
    seq.append(0, normal(3, 1, 32), normal(3, 1, 32))
    rows = seq.to_ggml(1)
    assert np.array_equal(rows[0], seq.to_ggml(0)[0])
    with pytest.raises(ShapeError, match="shares"):
        seq.from_ggml(1, *rows)
    for layer in (1, 2, -1):
        with pytest.raises(ShapeError, match="policies of layers"):
            KVCache(2, 1, 32, policy=KVPolicy(layers={layer: ("f16", "f16")}), share={1: 0})


def test_the_first_token_that_cannot_be_stored_is_named():
    for tokens in (4, 20):
        x = normal(tokens, 2, 32)
        x[2, 0, 0], x[0, 1, 5] = np.inf, np.nan
        with pytest.raises(ShapeError, match=r"token 0, head 1"):
            KVCache(1, 2, 32).sequence().append(0, x, x)
        y = normal(tokens, 2, 32)
        y[2, 0, 0], y[1, 1, 5] = 1e7, 1e7
        with pytest.raises(ShapeError, match=r"token 1, head 1"):
            KVCache(1, 2, 32, "f16", "f16").sequence().append(0, y, y)


def test_a_sequence_is_saved_while_it_grows(tmp_path):
    cache = KVCache(1, 2, 32, "q4_0", "q4_0")
    seq, x = cache.sequence(), normal(70, 2, 32)
    stop = threading.Event()

    def grow():
        while not stop.is_set():
            seq.append(0, x, x)
            if seq.length > 2000:
                seq.truncate(0)

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        for _ in range(40):
            seq.save(tmp_path / "a")
            assert cache.load(tmp_path / "a").length % 70 == 0
    finally:
        stop.set()
        thread.join()
