"""The array operations against plain loops in f64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant.models import ops

seeds = st.integers(0, 2**32 - 1)


def test_rms_norm_is_the_definition() -> None:
    x = np.random.default_rng(1).standard_normal((3, 5, 16)).astype(np.float32)
    weight = np.linspace(0.5, 2, 16, dtype=np.float32)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(ops.rms_norm(x, weight, 1e-5), expected, rtol=2e-6)


def test_swiglu_survives_extreme_gates() -> None:
    gate = np.array([-1e4, -100, 0, 100, 1e4], dtype=np.float32)
    got = ops.swiglu(gate, np.full(5, 2, dtype=np.float32))
    np.testing.assert_allclose(got, [0, 0, 0, 200, 2e4], atol=1e-30)


@given(seeds)
def test_softmax_sums_to_one_and_ignores_a_shift(seed: int) -> None:
    x = np.random.default_rng(seed).uniform(-50, 50, (4, 9)).astype(np.float32)
    x[:, 3] = -np.inf
    y = ops.softmax(x)
    np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-6)
    assert (y[:, 3] == 0).all()
    np.testing.assert_allclose(ops.softmax(x + np.float32(64)), y, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("rope", [ops.rope_half, ops.rope_interleaved])
@given(seeds, st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 100))
def test_rope_products_depend_on_distance_only(
    rope: object, seed: int, a: int, b: int, shift: int
) -> None:
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, 1, 1, 8)).astype(np.float32)

    def product(i: int, j: int) -> float:
        turned = [
            rope(x, *ops.rope_angles(at, 1, 8, 10000.0, None, 1.0))  # type: ignore[operator]
            for x, at in ((q, i), (k, j))
        ]
        return float((turned[0].astype(np.float64) * turned[1]).sum())

    assert product(a, b) == pytest.approx(product(a + shift, b + shift), abs=1e-4)


def test_rope_orders_are_permutations_of_each_other() -> None:
    x = np.random.default_rng(2).standard_normal((7, 3, 10)).astype(np.float32)
    angles = ops.rope_angles(5, 7, 10, 10000.0, None, 1.0)
    paired = x.reshape(7, 3, 2, 5).swapaxes(2, 3).reshape(7, 3, 10)
    expected = ops.rope_half(x, *angles).reshape(7, 3, 2, 5).swapaxes(2, 3).reshape(7, 3, 10)
    np.testing.assert_array_equal(ops.rope_interleaved(paired, *angles), expected)


def test_rope_factors_and_scale_slow_the_rotation() -> None:
    plain = ops.rope_angles(0, 8, 6, 100.0, None, 1.0)
    scaled = ops.rope_angles(0, 8, 6, 100.0, None, 2.0)
    divided = ops.rope_angles(0, 8, 6, 100.0, np.full(3, 2, dtype=np.float32), 1.0)
    for a, b, c in zip(plain, scaled, divided, strict=True):
        np.testing.assert_array_equal(b[::2], a[:4])
        np.testing.assert_array_equal(c, b)


@given(seeds, st.integers(1, 12), st.integers(0, 9), st.sampled_from([(4, 2), (3, 3), (6, 1)]))
def test_attention_is_the_definition(
    seed: int, tokens: int, before: int, heads: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    count, groups = heads
    q = rng.standard_normal((tokens, count, 8)).astype(np.float32)
    k = rng.standard_normal((groups, before + tokens, 8)).astype(np.float32)
    v = rng.standard_normal((groups, before + tokens, 5)).astype(np.float32)
    np.testing.assert_allclose(ops.attention(q, k, v), _attention(q, k, v), atol=2e-6)


def test_attention_in_chunks_is_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_QUERY_CHUNK", 4)
    rng = np.random.default_rng(3)
    q = rng.standard_normal((11, 4, 8)).astype(np.float32)
    k, v = rng.standard_normal((2, 2, 14, 8)).astype(np.float32)
    np.testing.assert_allclose(ops.attention(q, k, v), _attention(q, k, v), atol=2e-6)


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    tokens, heads, dim = q.shape
    groups, seen, width = v.shape
    out = np.zeros((tokens, heads, width))
    for t in range(tokens):
        end = seen - tokens + t + 1
        for h in range(heads):
            g = h * groups // heads
            scores = k[g, :end].astype(np.float64) @ q[t, h] / np.sqrt(dim)
            shares = np.exp(scores - scores.max())
            out[t, h] = shares / shares.sum() @ v[g, :end]
    return out.reshape(tokens, heads * width)
