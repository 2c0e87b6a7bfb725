"""Attention over coded keys and values: against float64, and against itself put in other ways."""

from __future__ import annotations

import numpy as np
import pytest

from kvant.reference import fma, kivi, kv_codecs
from kvant.reference import kv_attention as module
from kvant.reference.attention import attention, mix_floats
from kvant.reference.kv_attention import cap_scores, kv_attention
from kvant.reference.kv_codecs import BY_CHANNEL, CODECS, FLOATS
from support import words

CODED = [codec for codec in CODECS if codec not in FLOATS]
SCALE = 128**-0.5


def normal(tokens, heads, dim, seed):
    return np.random.default_rng(seed).standard_normal((tokens, heads, dim), dtype=np.float32)


def case(tokens=5, seen=150, heads=4, groups=2, dim=128, value_dim=128):
    """q, k, v of Gaussian numbers."""
    return (
        normal(tokens, heads, dim, 0),
        normal(seen, groups, dim, 1),
        normal(seen, groups, value_dim, 2),
    )


def exact64(
    q, k, v, scale, window=None, causal=True, sinks=None, softcap=0.0, bias=None, positions=None
):
    """Softmax attention in float64, and the logarithm of the sum."""
    tokens, heads, _ = q.shape
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = (x.repeat(heads // x.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("thd,shd->ths", q, k)
    scores = (scores + (0 if bias is None else bias[:, :, None])) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    places = np.arange(len(k) - tokens, len(k)) if positions is None else np.asarray(positions)
    key, row = np.arange(len(k)), places[:, None]
    hidden = (key > row) if causal else np.zeros((tokens, len(k)), bool)
    if window is not None:
        hidden |= key <= row - window
    scores[hidden[:, None].repeat(heads, axis=1)] = -np.inf
    sinks = np.full(heads, -np.inf) if sinks is None else sinks
    top = np.maximum(scores.max(-1), sinks)
    share = np.exp(scores - top[..., None])
    total = share.sum(-1) + np.exp(sinks - top)
    return np.einsum("ths,shd->thd", share / total[..., None], v), top + np.log(total)


def apart(x, y):
    """The norm of the difference over the norm of y."""
    return np.linalg.norm(x.astype(np.float64) - y) / np.linalg.norm(y)


def through(codec, x, rule):
    if codec in FLOATS:
        return kv_codecs.rounded(codec, x)
    return kv_codecs.decode(kv_codecs.encode(codec, x, rule), x.shape[-1])


def keys_through(codec, k, rule):
    """Where keys go by channel, those of no full group are f16."""
    if codec not in BY_CHANNEL:
        return through(codec, k, rule)
    full, out = len(k) // 32 * 32, kv_codecs.rounded("f16", k)
    for head in range(k.shape[1]):
        coded = kv_codecs.encode_channels(codec, k[:full, head])
        out[:full, head] = coded.decode(k.shape[2])
    return out


def values_through(codec, v, rule, k_codec):
    """Beside such keys values are f16 where those are."""
    out = through(codec, v, rule)
    if k_codec in BY_CHANNEL:
        full = len(v) // 32 * 32
        out[full:] = kv_codecs.rounded("f16", v[full:])
    return out


OPTIONS = {
    "plain": {},
    "window": {"window": 70},
    "short window": {"window": 3},
    "softcap": {"softcap": 2.5},
    "sinks": {"sinks": np.float32([0.5, -1, 3, 6])},
    "bias": {"bias": normal(5, 4, 1, 7)[:, :, 0] * np.float32(9)},
    "both ways": {"causal": False},
    "places": {"positions": [3, 64, 63, 149, 20], "window": 40},
}
OPTIONS["most"] = {**OPTIONS["window"], **OPTIONS["softcap"], **OPTIONS["sinks"], **OPTIONS["bias"]}


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("options", [{}, {"window": 70}, {"sinks": np.float32([1, 2, 3, 4])}])
def test_float_codecs_are_attention(dtype, options):
    q, k, v = case(seen=600, dim=20, value_dim=33)
    codec = "f16" if dtype is np.float16 else "f32"
    wanted = attention(q, k, v, 0.3, dtype=dtype, **options)
    for also in ({}, {"sink": 4, "tail": 9}):
        got = kv_attention(q, k, v, 0.3, k_codec=codec, v_codec=codec, **options, **also)
        assert np.array_equal(words(got), words(wanted))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_floats_are_close_to_f64(options):
    q, k, v = case()
    got, sums = kv_attention(q, k, v, SCALE, k_codec="f32", v_codec="f32", lse=True, **options)
    wanted, wanted_sums = exact64(q, k, v, SCALE, **options)
    assert np.abs(got - wanted).max() < 2e-6
    assert np.abs(sums - wanted_sums).max() < 2e-6


@pytest.mark.parametrize("codec", ["bf16", *CODED])
def test_exact_attention_is_that_of_decoded_numbers(codec):
    for seen, options in ((150, OPTIONS["most"]), (600, {})):
        q, k, v = case(seen=seen)
        codecs = {"k_codec": codec, "v_codec": codec}
        got, sums = kv_attention(q, k, v, SCALE, **codecs, exact=True, lse=True, **options)
        decoded = keys_through(codec, k, "nc"), values_through(codec, v, "unb", codec)
        wanted, wanted_sums = exact64(q, *decoded, SCALE, **options)
        assert apart(got, wanted) < 1e-5 and np.abs(sums - wanted_sums).max() < 1e-5


@pytest.mark.parametrize("codec", CODED)
@pytest.mark.parametrize("dim", [128, 80])
def test_coded_attention_is_close_to_that_of_decoded_numbers(codec, dim):
    q, k, v = case(seen=600, dim=dim, value_dim=dim)
    rules = {"k_rule": "unb", "v_rule": "ls"}
    decoded = keys_through(codec, k, "unb"), values_through(codec, v, "ls", codec)
    for options in ({}, {"sinks": OPTIONS["sinks"]["sinks"], "softcap": 3.0}):
        got = kv_attention(q, k, v, SCALE, k_codec=codec, v_codec=codec, **rules, **options)
        wanted = exact64(q, *decoded, SCALE, **options)[0]
        # Queries of eight bits and weights of eight bits; three steps are few for those.
        assert apart(got, wanted) < (0.012 if codec == "kivi2" else 0.01)


@pytest.mark.parametrize("codec", ["q8_0", "q4_0"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_coded_attention_is_close_to_f64(codec, options):
    q, k, v = case()
    got = kv_attention(q, k, v, SCALE, k_codec=codec, v_codec=codec, **options)
    wanted = exact64(q, k, v, SCALE, **options)[0]
    lost = exact64(q, through(codec, k, "nc"), through(codec, v, "unb"), SCALE, **options)[0]
    assert apart(got, wanted) < apart(lost, wanted) + 0.01


@pytest.mark.parametrize("codec", CODED)
def test_whole_numbers_add_little_error(codec, monkeypatch):
    for seen, sharpness in ((512, 1), (2048, 3), (4096, 1)):
        q, k, v = case(1, seen, 4, 1)
        options = {"k_codec": "f32", "v_codec": codec}
        got = kv_attention(q, k, v, SCALE * sharpness, **options)
        with monkeypatch.context() as patch:
            patch.setattr(module, "mix_codes", lambda x, fine: mix_floats(kv_codecs.decode(x, 128)))
            wanted = kv_attention(q, k, v, SCALE * sharpness, **options)
        # Three steps are few.
        assert 0 < apart(got, wanted) < (0.01 if codec == "kivi2" else 0.008)


def mixed_by_hand(weights, coded, state):
    """A page of values for one row, block by block, in scalars of f32."""
    one, out = np.float32, state.copy()
    for block in range(coded.scale.shape[1]):
        w = [p * abs(s) for p, s in zip(weights, coded.scale[:, block], strict=True)]
        most = max(one(0), *w)
        factor, unit = (one(255) / most, most / one(255)) if most >= 2.0**-100 else (one(0),) * 2
        u = [round(float(each * factor)) for each in w]
        for d in range(32 * block, min(32 * block + 32, len(out))):
            signs = np.where(coded.scale[:, block] < 0, -1, 1) * coded.codes[:, d]
            whole = sum(a * int(b) for a, b in zip(u, signs, strict=True))
            out[d] = fma(one(whole), unit, out[d])
        if coded.minimum is not None:
            lanes = [one(0)] * 16
            for j, p in enumerate(weights):
                lanes[j % 16] = lanes[j % 16] + p * coded.minimum[j, block]
            while len(lanes) > 1:
                half = len(lanes) // 2
                lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
            out[32 * block : 32 * block + 32] += lanes[0]
    return out


@pytest.mark.parametrize("codec", CODED)
@pytest.mark.parametrize("count, factor", [(64, 1.0), (11, 1.0), (64, 2.0**-110)])
def test_a_page_of_whole_numbers_by_hand(codec, count, factor):
    rng = np.random.default_rng(count)
    v = normal(count, 1, 40, 3)[:, 0] * rng.random((count, 1), np.float32)
    p = np.zeros((1, 64), np.float32)
    p[0, :count] = rng.random(count, np.float32) ** 4 * np.float32(factor)
    seen = np.arange(64)[None] < count
    if count == 64:
        seen[0, 5:9] = False
    coded = module.centered(codec, kv_codecs.encode(codec, v, "unb"))
    state = normal(1, 1, 40, 4)[0]
    got = module.mix_codes(coded)(0, np.array([0]), p, seen, state)
    wanted = mixed_by_hand(np.where(seen, p, np.float32(0))[0, :count], coded, state[0])
    assert np.array_equal(words(got[0]), words(wanted))


@pytest.mark.parametrize("codec", ["q8_0", "q4_1", "iq4_nl", "lm3"])
def test_tokens_of_the_window_are_exact(codec):
    q, k, v = case(seen=150)
    codecs = {"k_codec": codec, "v_codec": codec}
    wanted = kv_attention(q, k, v, SCALE)
    for options in ({"tail": 150}, {"sink": 150}, {"sink": 100, "tail": 60}):
        assert np.array_equal(kv_attention(q, k, v, SCALE, **codecs, **options), wanted)
    # One side: the other is f16 by its codec.
    for side in ("k_codec", "v_codec"):
        assert np.array_equal(kv_attention(q, k, v, SCALE, **{side: codec}, tail=150), wanted)
    coded = kv_attention(q, k, v, SCALE, **codecs)
    none = kv_attention(q, k, v, SCALE, **codecs, tail=150, exact_from=150)
    assert np.array_equal(coded, none) and not np.array_equal(coded, wanted)


@pytest.mark.parametrize("codec", ["q8_0", "q4_1", "lm2"])
@pytest.mark.parametrize("exact", [False, True])
def test_which_tokens_are_exact(codec, exact):
    """Those of the sink, and those of the tail that `exact_from` does not take away."""
    q, k, v = case(tokens=3, seen=140)
    options = {"k_codec": codec, "v_codec": codec, "exact": exact, "sink": 4, "tail": 20}
    for exact_from in (0, 130):
        got = kv_attention(q, k, v, SCALE, **options, exact_from=exact_from)
        for t in range(3):
            place = 137 + t
            near = np.arange(140) < 4
            near |= (np.arange(140) > place - 20) & (np.arange(140) >= exact_from)
            mixed = [
                np.where(near[:, None, None], kv_codecs.rounded("f16", x), through(codec, x, rule))
                for x, rule in ((k, "nc"), (v, "unb"))
            ]
            wanted = exact64(q[t : t + 1], *mixed, SCALE, positions=[place])[0][0]
            assert apart(got[t], wanted) < (1e-5 if exact else 0.01)


@pytest.mark.parametrize("codec", BY_CHANNEL)
def test_scores_of_channels_by_hand(codec):
    q, k = normal(3, 1, 40, 0)[:, 0], normal(64, 1, 40, 1)[:, 0]
    keys = kv_codecs.encode_channels(codec, k)
    got = kivi.channel_scores(kv_codecs.filled(q), keys)
    middle, one = keys.middle, np.float32
    for row, token in ((0, 0), (1, 31), (2, 32), (0, 63)):
        scale, minimum = keys.scale[token // 32], keys.minimum[token // 32]
        x = [*q[row], *[one(0)] * 24]
        lanes = [one(0)] * 16
        for d, value in enumerate(x):
            lanes[d % 16] = lanes[d % 16] + value * (scale[d] * one(middle) + minimum[d])
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
        score = lanes[0]
        for block in (0, 32):
            scaled = [x[d] * scale[d] for d in range(block, block + 32)]
            most = max(abs(each) for each in scaled)
            eight = [round(float(each * (one(127) / most))) for each in scaled]
            codes = keys.codes[token, block : block + 32] - middle
            whole = sum(a * int(b) for a, b in zip(eight, codes, strict=True))
            score = fma(most / one(127), one(whole), score)
        assert words(score[None]) == words(got[row, token : token + 1])
    close = q.astype(np.float64) @ keys.decode(40).T
    assert apart(got, close) < 0.01


@pytest.mark.parametrize("codec", BY_CHANNEL)
def test_an_open_group_is_exact(codec):
    """Alone all is; then what comes before the last multiple of 32 is coded."""
    q, k, v = case(tokens=2, seen=33)
    codecs = {"k_codec": codec, "v_codec": "q8_0"}
    got, wanted = kv_attention(q, k, v, SCALE, **codecs), kv_attention(q, k, v, SCALE)
    # The first row sees 32, all of them coded; one token less, none.
    assert not np.array_equal(got[0], wanted[0]) and not np.array_equal(got[1], wanted[1])
    alone = kv_attention(q[:1], k[:31], v[:31], SCALE, **codecs)
    assert np.array_equal(alone, kv_attention(q[:1], k[:31], v[:31], SCALE))
    mixed = [keys_through(codec, k, "nc"), values_through("q8_0", v, "nc", codec)]
    assert apart(got[1], exact64(q[1:], *mixed, SCALE)[0][0]) < 0.01
    # Copies take the place of what was exact.
    other = kv_attention(q, k, v, SCALE, **codecs, copies=(-k, -v))
    assert np.array_equal(other[0], got[0]) and not np.array_equal(other[1], got[1])


@pytest.mark.parametrize("options", [{}, {"tail": 30, "sink": 2}, {"window": 50, "tail": 8}])
@pytest.mark.parametrize("codec", ["q5_1", "lm3", "kivi4"])
def test_a_row_does_not_know_its_neighbours(codec, options):
    q, k, v = case(tokens=70, seen=140, dim=32, value_dim=48)
    codecs = {"k_codec": codec, "v_codec": codec}
    got = kv_attention(q, k, v, 0.2, **codecs, **options)
    for t in range(0, 70, 9):
        alone = kv_attention(q[t : t + 1], k[: 71 + t], v[: 71 + t], 0.2, **codecs, **options)
        assert np.array_equal(words(alone[0]), words(got[t]))
        placed = kv_attention(q[t : t + 1], k, v, 0.2, positions=[70 + t], **codecs, **options)
        assert np.array_equal(words(placed[0]), words(got[t]))
    one = kv_attention(q[:, 2:], k[:, 1:], v[:, 1:], 0.2, **codecs, **options)
    assert np.array_equal(words(one), words(got[:, 2:]))


def test_both_ways_is_causal_for_the_last_token():
    q, k, v = case()
    options = {"k_codec": "q8_0", "v_codec": "q8_0", "tail": 7, "sink": 1}
    wanted = kv_attention(q, k, v, SCALE, **options)
    got = kv_attention(q, k, v, SCALE, causal=False, **options)
    assert np.array_equal(got[-1], wanted[-1]) and not np.array_equal(got[0], wanted[0])
    with pytest.raises(ValueError, match="window"):
        kv_attention(q, k, v, SCALE, causal=False, window=8)


def test_sums_join_parts():
    q, k, v = case(tokens=1, seen=700)
    codecs = {"k_codec": "q8_0", "v_codec": "q8_0", "lse": True, "causal": False}
    parts = [kv_attention(q, k[cut], v[cut], SCALE, **codecs) for cut in (np.s_[:256], np.s_[256:])]
    shares = np.exp([sums.astype(np.float64) for _, sums in parts])
    joined = sum(
        out * s[..., None] for (out, _), s in zip(parts, shares / shares.sum(0), strict=True)
    )
    assert apart(joined, kv_attention(q, k, v, SCALE, **codecs)[0]) < 1e-6


@pytest.mark.parametrize("codec", ["f16", "q8_0", "q4_1"])
def test_a_row_that_sees_nothing(codec):
    q, k, v = case(tokens=2)
    out, sums = kv_attention(
        q, k, v, SCALE, k_codec=codec, v_codec=codec, positions=[-1, 0], lse=True,
        sinks=np.full(4, 3, np.float32),
    )  # fmt: skip
    assert (out[0] == 0).all() and (sums[0] == 3).all()
    assert (out[1] != 0).any(axis=1).all() and np.isfinite(sums[1]).all()


@pytest.mark.parametrize("codec", ["f32", *CODED])
def test_a_query_that_is_no_number_spoils_its_own_row(codec):
    q, k, v = case(tokens=3)
    wanted = kv_attention(q, k, v, SCALE, k_codec=codec, v_codec=codec)
    q[1, 2, 40] = np.nan
    got, sums = kv_attention(q, k, v, SCALE, k_codec=codec, v_codec=codec, lse=True)
    assert np.isnan(got[1, 2]).all() and np.isnan(sums[1, 2])
    got[1, 2] = wanted[1, 2]
    assert np.array_equal(words(got), words(wanted))


def test_keys_and_values_no_codec_holds_are_refused():
    q, k, v = case()
    k[3, 1, 5] = 1e5
    for options in (
        {},
        {"k_codec": "f32", "v_codec": "q2"},
        {"k_codec": "q8_0", "tail": 1},
        {"k_codec": "q8_0", "sink": 4},
        {"k_codec": "lm4", "k_rule": "most"},
    ):
        with pytest.raises(ValueError, match="expected"):
            kv_attention(q, k, v, SCALE, **options)
    kv_attention(q, k, v, SCALE, k_codec="q8_0", sink=3)


def test_a_cap_is_a_tangent():
    x = np.float32([-1e30, -7, -0.01, -0.0, 0, 1e-6, 0.5, 30, np.inf, np.nan])
    got = cap_scores(x, 5.0)
    assert np.allclose(
        got, 5 * np.tanh(x.astype(np.float64) / 5), rtol=1e-5, atol=1e-6, equal_nan=True
    )
    assert np.signbit(got).tolist()[:5] == [True, True, True, True, False]
    assert cap_scores(x, 0.0) is x
