"""kvant.rope: the bits of its twin on every ISA, rotations by the right angles."""

from __future__ import annotations

import numpy as np
import pytest
from blocks import seeds
from hypothesis import given
from hypothesis import strategies as st

import kvant
from distributions import wild
from kvant.reference import ops
from support import every_isa, words

STYLES = ("half", "interleaved")


def heads(tokens, count, dim, seed, share=0.05):
    return wild(tokens * count, dim, seed, share).reshape(tokens, count, dim)


@given(
    tokens=st.integers(1, 4),
    count=st.integers(1, 3),
    pairs=st.one_of(st.integers(1, 36), st.just(64)),
    rest=st.sampled_from([0, 0, 1, 5]),
    style=st.sampled_from(STYLES),
    theta=st.sampled_from([1.0, 10000.0, 500000.0, 1e12]),
    scale=st.sampled_from([1.0, 4.0, 0.3]),
    factors=st.booleans(),
    seed=seeds,
)
def test_is_its_twin(tokens, count, pairs, rest, style, theta, scale, factors, seed):
    rng = np.random.default_rng(seed)
    x = heads(tokens, count, 2 * pairs + rest, seed)
    options = {"theta": theta, "style": style, "rotary_dim": 2 * pairs, "scale": scale}
    if factors:
        options["freq_factors"] = rng.uniform(0.5, 40, pairs).astype(np.float32)
    positions = rng.integers(-(10**7), 10**7, tokens)
    wanted = words(ops.rope(x, positions, **options))
    for isa in every_isa():
        assert np.array_equal(words(kvant.rope(x, positions, **options)), wanted), isa


@pytest.mark.parametrize("style", STYLES)
def test_threads_do_not_show(style, isa):
    x = heads(100, 8, 128, 0)
    positions = np.arange(100)[::-1]
    alone = words(kvant.rope(x, positions, style=style, threads=1))
    for threads in (2, 3, 4):
        found = kvant.rope(x, positions, style=style, threads=threads)
        assert np.array_equal(words(found), alone)
    each = [kvant.rope(x[t : t + 1], positions[t : t + 1], style=style) for t in range(100)]
    assert np.array_equal(words(np.concatenate(each)), alone)


@pytest.mark.parametrize("style", STYLES)
def test_strides_and_positions_of_any_kind(style):
    x = heads(6, 4, 32, 1)
    positions = np.array([3, 1, 4, 1, 5, 9])
    wanted = words(kvant.rope(x, positions, style=style))
    fused = np.concatenate([heads(6, 3, 32, 2), x, x], axis=1)
    turned = np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2)
    for view in (fused[:, 3:7], np.ascontiguousarray(x[::-1])[::-1], turned):
        assert np.array_equal(words(kvant.rope(view, positions, style=style)), wanted)
    for kind in (np.int32, np.uint8, np.int16, list):
        given = positions.tolist() if kind is list else positions.astype(kind)
        assert np.array_equal(words(kvant.rope(x, given, style=style)), wanted)
    place = fused[:, 3:7]
    kvant.rope(place, positions, style=style, out=place)
    assert np.array_equal(words(place), wanted)
    assert np.array_equal(words(fused[:, 7:]), words(x))


def test_the_styles_differ_in_order_only():
    x = heads(5, 2, 64, 3)
    order = np.arange(64).reshape(32, 2).T.reshape(-1)
    halves = kvant.rope(np.ascontiguousarray(x[..., order]), np.arange(5))
    assert np.array_equal(
        words(halves), words(kvant.rope(x, np.arange(5), style="interleaved")[..., order])
    )


@pytest.mark.parametrize("theta", [10000.0, 1e6])
def test_is_close_to_f64(theta):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 4, 128)).astype(np.float32)
    positions = np.concatenate([np.arange(25), rng.integers(0, 10**6, 25)])
    angle = np.outer(positions, theta ** (-np.arange(0, 128, 2) / 128))[:, None]
    turned = (x[..., :64] + 1j * x[..., 64:]) * np.exp(1j * angle)
    found = kvant.rope(x, positions, theta=theta)
    error = np.abs(found - np.concatenate([turned.real, turned.imag], -1))
    # Two numbers below 6, cosine and sine to half a unit of f32, two roundings.
    assert error.max() < 6 * 3 * 2.0**-24


def test_position_zero_changes_nothing_and_lengths_stay():
    x = heads(3, 2, 40, 4, 0.0)
    assert np.array_equal(kvant.rope(x, [0, 0, 0]), x)
    turned = kvant.rope(x, [7, -7, 12345]).astype(np.float64)
    before, after = (np.hypot(y[..., :20], y[..., 20:]) for y in (x.astype(np.float64), turned))
    assert np.abs(after / before - 1).max() < 4 * 2.0**-24
    back = kvant.rope(kvant.rope(x, [7, -7, 12345]), [-7, 7, -12345])
    assert np.abs(back - x).max() < 8 * 2.0**-24 * np.abs(x).max()


def test_factors_and_scale_divide():
    x = heads(2, 1, 8, 5, 0.0)
    wanted = kvant.rope(x, [5, 10])
    assert np.array_equal(kvant.rope(x, [20, 40], scale=4.0), wanted)
    fours = np.full(4, 4, np.float32)
    assert np.array_equal(kvant.rope(x, [20, 40], freq_factors=fours), wanted)
