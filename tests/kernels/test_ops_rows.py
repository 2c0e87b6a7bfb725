"""kvant.rms_norm and kvant.softmax: the bits of their twins on every ISA, and close to f64."""

from __future__ import annotations

import numpy as np
import pytest
from blocks import seeds
from hypothesis import example, given
from hypothesis import strategies as st

import kvant
from distributions import wild
from kvant.arithmetic import add, scale
from kvant.reference import ops
from support import every_isa, words

lengths = st.one_of(st.integers(1, 70), st.sampled_from([128, 255, 1000]))
shares = st.sampled_from([0.0, 0.0, 0.02, 0.3])
scales = st.sampled_from([1.0, 0.125, -0.7, 3.3, 0.0, 1e30])


@given(rows=st.integers(1, 5), cols=lengths, seed=seeds, share=shares, weighted=st.booleans())
def test_rms_norm_is_its_twin(rows, cols, seed, share, weighted):
    x = wild(rows, cols, seed, share)
    weight = wild(1, cols, seed + 1, share)[0] if weighted else None
    for eps in (1e-6, 0.0, 1e-5):
        wanted = words(ops.rms_norm(x, weight, eps))
        for isa in every_isa():
            assert np.array_equal(words(kvant.rms_norm(x, weight, eps)), wanted), isa


@given(rows=st.integers(1, 5), cols=lengths, seed=seeds, share=shares, scale=scales)
@example(rows=1, cols=1, seed=0, share=1.0, scale=1.0)
def test_softmax_is_its_twin(rows, cols, seed, share, scale):
    x = wild(rows, cols, seed, share)
    wanted = words(ops.softmax(x, scale))
    for isa in every_isa():
        assert np.array_equal(words(kvant.softmax(x, scale=scale)), wanted), isa


@pytest.mark.parametrize("rows", [1, 7, 200, 1000])
def test_threads_do_not_show(rows, isa):
    x = wild(rows, 333, rows, 0.001)
    norm, share = kvant.rms_norm(x, x[0], threads=1), kvant.softmax(x, threads=1)
    for threads in (2, 3, 4):
        assert np.array_equal(words(kvant.rms_norm(x, x[0], threads=threads)), words(norm))
        assert np.array_equal(words(kvant.softmax(x, threads=threads)), words(share))


def test_rows_know_nothing_of_each_other():
    x = wild(40, 100, 0)
    each = np.concatenate([kvant.softmax(row) for row in x]).reshape(x.shape)
    assert np.array_equal(words(kvant.softmax(x)), words(each))
    each = np.concatenate([kvant.rms_norm(row, None) for row in x]).reshape(x.shape)
    assert np.array_equal(words(kvant.rms_norm(x, None)), words(each))


def test_strides_and_leading_axes():
    x = wild(12, 64, 1, 0.0).reshape(3, 4, 64)
    wanted = kvant.softmax(x)
    assert wanted.shape == x.shape
    wide = np.concatenate([x, x], axis=-1)
    for view in (wide[..., :64], wide[..., 64:], np.ascontiguousarray(x[::-1])[::-1]):
        assert np.array_equal(kvant.softmax(view), wanted)
        assert np.array_equal(kvant.rms_norm(view, None), kvant.rms_norm(x, None))
    turned = np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2)
    assert np.array_equal(kvant.softmax(turned), wanted)


@pytest.mark.parametrize("cols", [64, 4096, 14336])
def test_rms_norm_is_close_to_f64(cols):
    x = np.random.default_rng(cols).standard_normal((20, cols)).astype(np.float32)
    weight = x[3]
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * weight
    # Sixteen sums of cols / 16 terms, half of whose relative error the root takes away; then five
    # roundings, of the mean, eps, the root, the reciprocal and the products.
    bound = (cols / 32 + 6) * 2.0**-24
    assert np.abs(kvant.rms_norm(x, weight) / exact - 1).max() < min(bound, 1e-6)


@pytest.mark.parametrize("cols", [1, 64, 4096, 50257])
@pytest.mark.parametrize("spread", [0.1, 1.0, 20.0])
def test_softmax_is_close_to_f64(cols, spread):
    rng = np.random.default_rng(cols)
    x = (rng.standard_normal((5, cols)) * spread).astype(np.float32)
    wide = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    exact = wide / wide.sum(-1, keepdims=True)
    found = kvant.softmax(x)
    seen = exact > 2.0**-126
    # The difference to the largest is rounded: half a unit of numbers below 128 is 2^-18.
    assert np.abs(found / exact - 1)[seen].max() < 2.0**-17
    assert np.abs(found.sum(-1, dtype=np.float64) - 1).max() < 2e-6


def test_known_rows(isa):
    inf, nan = np.inf, np.nan
    x = np.float32([[0, -inf, 0, 0], [-inf] * 4, [inf, 0, 0, 0], [nan, 0, 0, 0], [0, -200, 0, -88]])
    found = kvant.softmax(x)
    third = np.float32(1) / np.float32(3)
    assert found[0].tolist() == [third, 0, third, third]
    assert (words(found[1:4]) == 0x7FC00000).all()
    assert found[4].tolist() == [0.5, 0, 0.5, 0]
    assert kvant.softmax(np.float32([3.5])).tolist() == [1]
    assert kvant.rms_norm(np.zeros(5, np.float32), None).tolist() == [0] * 5
    # Without eps a row of zeros has no direction.
    assert (words(kvant.rms_norm(np.zeros(5, np.float32), None, 0.0)) == 0x7FC00000).all()
    # Squares that overflow leave nothing.
    assert kvant.rms_norm(np.float32([1e30, -1e30]), None).tolist() == [0, -0.0]


def test_scaling_by_powers_of_two_changes_nothing():
    x = np.random.default_rng(2).standard_normal((4, 200)).astype(np.float32)
    for power in (-20, -1, 5, 30):
        grown = np.ldexp(x, power)
        assert np.array_equal(kvant.rms_norm(grown, None, 0.0), kvant.rms_norm(x, None, 0.0))
        assert np.array_equal(kvant.softmax(grown, scale=2.0**-power), kvant.softmax(x))


@given(rows=st.integers(1, 5), cols=lengths, seed=seeds, share=shares, factor=scales)
def test_scale_and_add_are_their_twins(rows, cols, seed, share, factor):
    x, y = wild(rows, cols, seed, share), wild(rows, cols, seed + 1, share)
    scaled = words(ops.scale(x, factor))
    added, one_row = words(ops.add(y, x)), words(ops.add(y, x[0]))
    for isa in every_isa():
        found = x.copy()
        scale(found, factor)
        assert np.array_equal(words(found), scaled), isa
        assert np.array_equal(words(add(y.copy(), x)), added), isa
        assert np.array_equal(words(add(y.copy(), x[0])), one_row), isa


@given(rows=st.integers(1, 6), experts=st.integers(1, 40), seed=seeds, share=shares, data=st.data())
def test_route_is_its_twin(rows, experts, seed, share, data):
    scores = wild(rows, experts, seed, share)
    if data.draw(st.booleans(), "ties"):
        scores = np.round(np.float32(2) * np.random.default_rng(seed).random(scores.shape, "f4"))
    used = data.draw(st.integers(1, experts), "used")
    for how in ({}, {"norm": False}, {"among": "chosen"}):
        with np.errstate(all="ignore"):
            ids, wanted = ops.route(scores, used, **how)
        for isa in every_isa():
            chosen, found = kvant.route(scores, used, **how)
            assert np.array_equal(chosen, ids), (isa, how)
            assert np.array_equal(words(found), words(wanted)), (isa, how)


def test_more_experts_than_there_are_cannot_be_chosen():
    with pytest.raises(kvant.ShapeError, match="from 1 to 3 experts, got 4"):
        kvant.route(np.zeros((2, 3), np.float32), 4)
    with pytest.raises(kvant.ShapeError, match="'all' or 'chosen', got 'some'"):
        kvant.route(np.zeros((2, 3), np.float32), 2, among="some")
    ids, shares = kvant.route(np.zeros((0, 3), np.float32), 2)
    assert ids.shape == shares.shape == (0, 2)


def test_what_is_added_in_place_fits():
    y = np.zeros((4, 6), np.float32)
    with pytest.raises(kvant.ShapeError, match=r"\[add\] expected x of shape"):
        add(y, np.zeros((4, 5), np.float32))
    with pytest.raises(kvant.ShapeError, match="C-contiguous"):
        add(y[:, ::2], np.zeros((4, 3), np.float32))
    with pytest.raises(kvant.ShapeError, match="contiguous last axis"):
        add(y, np.zeros((4, 12), np.float32)[:, ::2])
