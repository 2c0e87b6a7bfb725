"""Choosing experts, grouping tokens by expert, and layers with experts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import random_model

from kvant import KVCache, route
from kvant.models.routing import by_expert
from kvant.models.step import Settings, Step
from kvant.models.weights import WeightTable

_PARTS = ("gate", "up", "down")


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 6))
def test_route_takes_the_best_and_shares_sum_to_one(seed: int, tokens: int, used: int) -> None:
    scores = np.random.default_rng(seed).standard_normal((tokens, 6)).astype(np.float32)
    chosen, shares = route(scores, used)
    plain = route(scores, used, norm=False)
    among = route(scores, used, among="chosen")
    for t, row in enumerate(scores.astype(np.float64)):
        expected = sorted(range(6), key=lambda e: -row[e])[:used]
        weight = np.exp(row)
        for ids, share, total in (
            (chosen, shares, weight[expected].sum()),
            (*plain, weight.sum()),
            (*among, weight[expected].sum()),
        ):
            assert list(ids[t]) == expected
            np.testing.assert_allclose(share[t], weight[expected] / total, rtol=1e-5)


def test_route_prefers_the_lower_id_on_a_tie() -> None:
    chosen, shares = route(np.zeros((1, 5), dtype=np.float32), 2)
    assert chosen.tolist() == [[0, 1]]
    assert shares.tolist() == [[0.5, 0.5]]


@given(st.lists(st.permutations(range(5)), min_size=1, max_size=20))
def test_by_expert_meets_every_choice_once(choices: list[list[int]]) -> None:
    chosen = np.array(choices, dtype=np.int64)[:, :3]
    seen = np.full(chosen.shape, -1)
    last = -1
    for expert, rows, slots in by_expert(chosen):
        assert expert > last
        last = expert
        assert (seen[rows, slots] == -1).all()
        seen[rows, slots] = expert
    np.testing.assert_array_equal(seen, chosen)


@pytest.mark.parametrize("pack", [True, False])
def test_a_layer_of_experts_is_the_weighted_sum_of_its_experts(pack: bool) -> None:
    model = random_model("qwen3moe")
    x = np.random.default_rng(4).standard_normal((9, 32)).astype(np.float32)
    sequence = KVCache(2, 2, 12, "f16", "f16").sequence()
    step = Step(model.config, WeightTable(model.tensors, pack), sequence, 9, Settings())
    wide = {k: np.asarray(v, dtype=np.float64) for k, v in model.tensors.items()}
    chosen, shares = route((x @ wide["blk.0.ffn_gate_inp.weight"].T).astype(np.float32), 2)
    expected = np.zeros((9, 32))
    for t in range(9):
        for e, share in zip(chosen[t], shares[t], strict=True):
            gate, up, down = (wide[f"blk.0.ffn_{part}_exps.weight"][e] for part in _PARTS)
            inner = gate @ x[t]
            expected[t] += share * (down @ (inner / (1 + np.exp(-inner)) * (up @ x[t])))
    np.testing.assert_allclose(step.experts("blk.0", x, chosen, shares), expected, atol=1e-5)
