"""Values that are a view of keys: what such a layer takes, keeps and gives back."""

from __future__ import annotations

import numpy as np
import pytest

import kvant
from kvant import FormatError, KVCache, KVPolicy, KVSide, ShapeError, StateError
from kvant.kv import CODECS
from kvant.kv.codecs import row_bits
from support import words

DIM, VALUE_DIM, HEADS = 96, 64, 2
RNG = np.random.default_rng(0)
K = RNG.standard_normal((150, HEADS, DIM), dtype=np.float32)
Q = RNG.standard_normal((5, 3 * HEADS, DIM), dtype=np.float32)
FLOATS = ["f32", "f16", "bf16"]
# Keys that are coded by channel hold no values.
ROWS = [codec for codec in CODECS if not codec.startswith("kivi")]


def cache_of(k="q8_0", layers=1, **options):
    return KVCache(layers, HEADS, DIM, k, value_dim=VALUE_DIM, value_view=True, **options)


def filled(cache, k=K):
    seq = cache.sequence()
    seq.append(0, k)
    return seq


def same(a, b):
    return np.array_equal(words(a), words(b))


def plain(q, k, v, scale, begin=None):
    """Softmax attention of the last tokens in f64; query head h reads key head h * G // H."""
    out = np.empty((*q.shape[:2], v.shape[2]))
    for t in range(len(q)):
        end = len(k) - len(q) + t + 1
        first = 0 if begin is None else begin(end)
        for h in range(q.shape[1]):
            g = h * k.shape[1] // q.shape[1]
            scores = k[first:end, g].astype(np.float64) @ q[t, h].astype(np.float64) * scale
            p = np.exp(scores - scores.max())
            out[t, h] = p / p.sum() @ v[first:end, g]
    return out


# ---- what it takes ----


def test_values_are_given_where_they_are_stored():
    seq = cache_of().sequence()
    with pytest.raises(ShapeError, match=r"\[append\] expected no values, which are a view"):
        seq.append(0, K, K[..., :VALUE_DIM])
    with pytest.raises(ShapeError, match=r"\[from_ggml\] expected no values"):
        seq.from_ggml(0, *[filled(cache_of()).to_ggml(0)[0]] * 2)
    own = KVCache(1, HEADS, DIM).sequence()
    with pytest.raises(ShapeError, match=r"\[append\] expected values in layer 0, got None"):
        own.append(0, K)
    with pytest.raises(ShapeError, match=r"\[from_ggml\] expected values"):
        own.from_ggml(0, filled(cache_of()).to_ggml(0)[0])
    assert seq.length == own.length == 0


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"value_dim": DIM + 1}, f"a view of at most {DIM} elements"),
        ({"k": KVSide("q8_0", center=True)}, "neither centered nor equalized"),
        ({"k": KVSide("q8_0", equalize=True)}, "neither centered nor equalized"),
        (
            {"k": "q8_0", "v": "q4_0"},
            "values stored as the keys they are a view of, q8_0, got q4_0",
        ),
        ({"policy": KVPolicy(layers={0: ("q4_0", "q8_0")})}, "values stored as the keys"),
        ({"k": KVSide("q8_0", rotate=64), "value_dim": 32}, "a power of two .* that divides 32"),
        ({"value_view": [True, False]}, "value_view of 1 layers"),
    ],
)
def test_views_that_cannot_be(options, what):
    given = {"layers": 1, "kv_heads": HEADS, "head_dim": DIM, "value_view": True}
    with pytest.raises(ShapeError, match=what):
        KVCache(**{**given, **options})


def test_other_layers_have_values():
    cache = KVCache(2, HEADS, DIM, "q8_0", "q4_0", value_view=[True, False])
    assert [[side.codec for side in sides] for sides in cache.sides] == [
        ["q8_0"] * 2,
        ["q8_0", "q4_0"],
    ]
    seq = cache.sequence()
    seq.append(0, K)
    seq.append(1, K, K)
    assert not same(seq.attend(0, Q), seq.attend(1, Q))
    assert cache.stats().bits == pytest.approx((8.5 + 8.5 + 4.5) / 3)


def test_rotation_is_in_blocks_of_both():
    for dim, value_dim, block in ((576, 512, 64), (96, 64, 32), (640, 512, 128), (80, 80, 16)):
        side = KVSide("f32", rotate="auto", signs=3)
        k = RNG.standard_normal((70, 1, dim), dtype=np.float32)
        q = RNG.standard_normal((3, 16, dim), dtype=np.float32)
        cache = KVCache(1, 1, dim, side, value_dim=value_dim, value_view=True)
        exactly = KVSide("f32", rotate=block, signs=3)
        again = KVCache(1, 1, dim, exactly, value_dim=value_dim, value_view=True)
        out, wanted = (filled(c, k).attend(0, q) for c in (cache, again))
        assert same(out, wanted)
        assert np.allclose(out, plain(q, k, k[..., :value_dim], dim**-0.5), atol=2e-5)


# ---- what it keeps ----


@pytest.mark.parametrize("codec", ROWS)
def test_bytes_are_those_of_keys_alone(codec):
    cache = cache_of(codec)
    seq = filled(cache)
    page = HEADS * 64 * DIM * row_bits(codec, DIM) / 8
    assert page % 64 == 0
    assert cache.nbytes == 3 * page
    assert cache.stats().bits == row_bits(codec, DIM)
    exact = cache_of(codec, policy=KVPolicy(sink=4, tail=10))
    seq = filled(exact)
    halves = 0 if codec in FLOATS else HEADS * 64 * DIM * 2
    # Sinks lie in one page; long appends keep exact what their own tokens saw.
    assert exact.nbytes == 3 * page + 4 * halves
    del seq
    assert exact.nbytes == 0


@pytest.mark.parametrize("codec", ROWS)
def test_what_is_given_back(codec):
    side = KVSide(codec, rotate="auto", signs=1)
    seq = filled(cache_of(side))
    both = filled(KVCache(1, HEADS, DIM, KVSide(codec, rotate=32, signs=1), value_view=True))
    for head in range(HEADS):
        assert same(seq.keys(0, head), both.keys(0, head))
        assert same(seq.values(0, head, 3, 140), seq.keys(0, head)[3:140, :VALUE_DIM])
    rows, none = seq.to_ggml(0)
    assert none is None
    assert np.array_equal(rows, both.to_ggml(0)[0])
    copy = cache_of(side).sequence()
    for start, stop in ((0, 70), (70, 71), (71, 150)):
        copy.from_ggml(0, rows[start:stop])
    assert same(copy.attend(0, Q), seq.attend(0, Q))


@pytest.mark.parametrize("codec", ["q8_0", "q6_0", "lm4"])
def test_exact_attention_is_that_over_what_is_stored(codec):
    side = KVSide(codec, rotate="auto", signs=0)
    seq = filled(cache_of(side))
    k = np.stack([seq.keys(0, head) for head in range(HEADS)], 1)
    wanted = plain(Q, k, k[..., :VALUE_DIM], DIM**-0.5)
    assert np.allclose(seq.attend(0, Q, exact=True), wanted, atol=1e-5)
    assert np.allclose(seq.attend(0, Q), wanted, atol=0.02)


# ---- what sequences share ----


def test_forks_and_rollbacks():
    options = {"policy": KVPolicy(sink=4, tail=30), "window": 50}
    cache = cache_of("q4_0", **options)
    seq = cache.sequence()
    for at in range(150):
        seq.append(0, K[at : at + 1])
    fork, before = seq.fork(), seq.attend(0, Q)
    fork.truncate(86)
    fork.append(0, -K[:3])
    wanted = filled(cache_of("q4_0", **options), np.concatenate([K[:86], -K[:3]]))
    assert same(fork.attend(0, Q[:3]), wanted.attend(0, Q[:3]))
    assert same(seq.attend(0, Q), before)
    del seq, fork
    assert cache.nbytes == 0


def test_prefixes():
    cache = cache_of("q5_1")
    seq, tokens = filled(cache), np.arange(150)
    assert cache.prefixes.publish(seq, tokens) == 128
    other, found = cache.prefixes.match(tokens)
    assert found == 128
    other.append(0, K[128:])
    assert same(other.attend(0, Q), seq.attend(0, Q))


@pytest.mark.parametrize("codec", ["f16", "q5_1", "lm3", "q4_0"])
@pytest.mark.parametrize("in_place", [False, True])
def test_states(tmp_path, codec, in_place):
    options = {"policy": KVPolicy(sink=4, tail=30)}
    seq = filled(cache_of(codec, **options))
    seq.save(tmp_path / "state")
    again = cache_of(codec, **options).load(tmp_path / "state", in_place=in_place)
    assert same(again.attend(0, Q), seq.attend(0, Q))
    for s in (seq, again):
        s.append(0, -K[:70])
    assert same(again.attend(0, Q), seq.attend(0, Q))
    others = [
        KVCache(1, HEADS, DIM, codec, codec, value_dim=VALUE_DIM, **options),
        KVCache(1, HEADS, DIM, codec, value_dim=32, value_view=True, **options),
    ]
    for other in others:
        with pytest.raises(StateError, match="they differ in"):
            other.load(tmp_path / "state")


def test_a_state_with_a_key_that_is_not_finite_is_refused():
    """Keys are looked at to their last element, and nothing behind them."""
    seq, cache = filled(cache_of("f16")), cache_of("f16")
    state = bytearray(seq._core.save(0, 0))
    assert len(state) == 64 + 3 * 64 * DIM * 2
    cache.sequence()._core.load(0, 0, np.frombuffer(state, np.uint8), False)
    state[-2:] = b"\x00\x7c"
    with pytest.raises(ShapeError, match="not finite"):
        cache.sequence()._core.load(0, 0, np.frombuffer(state, np.uint8), False)


# ---- without a cache, and what decoders give ----


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_attention_without_values(dtype):
    k = K.astype(dtype)
    wanted = kvant.attention(Q, k, k[..., :VALUE_DIM], lse=True, window=70)
    got = kvant.attention(Q, k, value_dim=VALUE_DIM, lse=True, window=70)
    assert all(same(a, b) for a, b in zip(got, wanted, strict=True))
    assert same(kvant.attention(Q, k), kvant.attention(Q, k, k))
    with pytest.raises(ShapeError, match=r"\[attention\] expected value_dim without v"):
        kvant.attention(Q, k, k, value_dim=VALUE_DIM)
    with pytest.raises(ShapeError, match=r"\[attention\] expected k"):
        kvant.attention(Q, k[0])


def test_latent_rows_are_multi_head_attention():
    """MLA: queries go through the keys' up-projection, results through the values' (docs/kv.md)."""
    heads, latent, rope, nope, value = 8, 64, 16, 24, 20
    c, turned = RNG.standard_normal((70, latent)), RNG.standard_normal((70, rope))
    up_k, up_v = (RNG.standard_normal((heads, latent, n)) / 8 for n in (nope, value))
    q, q_turned = RNG.standard_normal((3, heads, nope)), RNG.standard_normal((3, heads, rope))
    scale = (nope + rope) ** -0.5
    keys = np.concatenate(
        [np.einsum("tl,hln->thn", c, up_k), np.repeat(turned[:, None], heads, 1)], 2
    )
    wanted = plain(np.concatenate([q, q_turned], 2), keys, np.einsum("tl,hln->thn", c, up_v), scale)
    cache = KVCache(1, 1, latent + rope, "f32", value_dim=latent, value_view=True)
    seq = filled(cache, np.concatenate([c, turned], 1)[:, None].astype(np.float32))
    absorbed = np.concatenate([np.einsum("thn,hln->thl", q, up_k), q_turned], 2)
    out = seq.attend(0, absorbed.astype(np.float32), scale)
    assert np.allclose(np.einsum("thl,hlv->thv", out, up_v), wanted, atol=1e-5)


def test_one_row_for_keys_that_are_values_times_factors():
    """Gemma 4: k = rope(w z) of a quarter of the elements, v = z (docs/kv.md)."""
    heads, dim, tokens = 4, 64, 70
    half, angles = dim // 2, dim // 8
    z = RNG.standard_normal((tokens, 1, dim)).astype(np.float32)
    w = np.exp(RNG.standard_normal(dim) / 4).astype(np.float32)
    q = RNG.standard_normal((3, heads, dim)).astype(np.float32)

    def rope(x, first):
        turn = np.zeros((len(x), half))
        turn[:, :angles] = (np.arange(len(x)) + first)[:, None] * 0.9 ** np.arange(angles)
        cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], 2).astype(np.float32)

    key, query = rope(w * z, 0), rope(q, tokens - 3)
    turned = np.r_[:angles, half : half + angles]
    row = np.concatenate([z, key[..., turned]], 2)
    asked = query * w
    asked[..., turned] = 0
    asked = np.concatenate([asked, query[..., turned]], 2)
    assert row.shape[2] == dim + dim // 4
    cache = KVCache(1, 1, row.shape[2], "f32", value_dim=dim, value_view=True)
    out = filled(cache, row).attend(0, asked, 1.0)
    assert np.allclose(out, plain(query, key, z, 1.0), atol=1e-5)


def test_keys_by_channel_are_refused():
    with pytest.raises(FormatError, match="a codec of rows for keys that hold values, got kivi4"):
        cache_of("kivi4")
