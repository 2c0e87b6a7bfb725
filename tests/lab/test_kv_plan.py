"""Which codec each layer gets: against all there are, and what must hold for any study."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant import KVCache, KVSide
from kvant.errors import ShapeError
from kvant.kv import KVCalibration
from kvant.kv.codecs import row_bits
from kvant.lab import KVDump, KVRow, KVStudy, KVTraits, kv_optimize, kv_plan, kv_study

CODECS = ("f16", "q8_0", "q5_0", "q4_0", "lm2")


def row(layer: int, side: str, codec: str, cost: float, heads: int = 2, dim: int = 64) -> KVRow:
    """A row that costs so much."""
    bits = row_bits(codec, dim)
    kl, output = (cost, 0.0) if side == "k" else (0.0, math.sqrt(2 * cost))
    nbytes = round(bits * dim / 8) * heads
    stored = KVSide.of(codec, side == "v")
    return KVRow(layer, side, codec, stored, bits, heads * dim, nbytes, 0, kl, 0, 0, 1, output)


def a_study(costs: np.ndarray, codecs=CODECS, window=None, sizes=None) -> KVStudy:
    """Costs [layers, 2, codecs]; sizes (heads, dim) of each layer."""
    layers = len(costs)
    rows = tuple(
        row(layer, "kv"[side], codec, float(costs[layer, side, c]), *(sizes or {}).get(layer, ()))
        for layer in range(layers)
        for side in range(2)
        for c, codec in enumerate(codecs)
    )
    traits = tuple(KVTraits(layer, 1.0, 0.0, 0.0, (), ()) for layer in range(layers))
    none = KVCalibration([], [])
    return KVStudy("", 8, 1, 0, 0, window or (None,) * layers, rows, traits, none)


def random_costs(layers: int, seed: int, codecs: int = len(CODECS)) -> np.ndarray:
    """Costs that mostly fall with bits, but not always."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.lognormal(-3, 2, (layers, 2, codecs)), axis=2) * rng.uniform(
        0.7, 1, (layers, 2, codecs)
    )


def every(study: KVStudy, sizes: list[int]) -> list[tuple[int, float]]:
    """Size and cost of all assignments."""
    groups = [
        [r for r in study.rows if (r.layer, r.side) == (layer, side)]
        for layer in range(study.layers)
        for side in "kv"
    ]
    return [
        (sum(r.nbytes * sizes[r.layer] for r in rows), sum(r.cost for r in rows) / study.layers)
        for rows in itertools.product(*groups)
    ]


@given(seed=st.integers(0, 1 << 20), bits=st.floats(2.25, 17))
def test_a_plan_is_the_best_of_all_that_fit(seed: int, bits: float) -> None:
    study = a_study(random_costs(2, seed), sizes={1: (1, 128)})
    numbers = sum(r.numbers for r in study.rows if r.codec == "f16")
    plan = kv_optimize(study, budget_bits=bits)
    fitting = [cost for size, cost in every(study, [1, 1]) if 8 * size <= bits * numbers]
    assert plan.bits <= bits
    assert plan.cost == pytest.approx(min(fitting), rel=1e-12)


@given(seed=st.integers(0, 1 << 20), at=st.floats(0, 1))
def test_a_plan_is_the_smallest_of_all_that_are_good_enough(seed: int, at: float) -> None:
    study = a_study(random_costs(2, seed))
    known = sorted(every(study, [1, 1]), key=lambda x: x[1])
    bound = known[int(at * (len(known) - 1))][1] * (1 + 1e-9)
    plan = kv_optimize(study, max_kl=bound)
    numbers = sum(r.numbers for r in study.rows if r.codec == "f16")
    smallest = min(size for size, cost in known if cost <= bound)
    assert plan.cost <= bound
    assert plan.bits == pytest.approx(8 * smallest / numbers)


@given(seed=st.integers(0, 1 << 20), layers=st.integers(1, 16))
def test_more_room_is_never_worse_and_plans_are_the_same_twice(seed: int, layers: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = {layer: (int(rng.integers(1, 9)), 64) for layer in range(layers)}
    study = a_study(random_costs(layers, seed), sizes=sizes)
    budgets = np.sort(rng.uniform(2.3, 16, 12))
    plans = [kv_optimize(study, budget_bits=bits) for bits in budgets]
    assert all(plan.bits <= bits for plan, bits in zip(plans, budgets, strict=True))
    costs = [plan.cost for plan in plans]
    assert costs == sorted(costs, reverse=True)
    assert plans == [kv_optimize(study, budget_bits=bits) for bits in budgets]
    # What a plan says of itself can be asked for again.
    for plan in plans[::4]:
        assert kv_optimize(study, budget_bits=plan.bits).cost == plan.cost
        assert kv_optimize(study, max_kl=plan.cost * (1 + 1e-12)).bits <= plan.bits


def test_thinning_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sizes = {layer: (int(rng.integers(1, 9)), 64) for layer in range(12)}
    study = a_study(random_costs(12, 0), sizes=sizes)
    budgets = (2.25, 3.0, 4.5, 6.0, 9.0, 16.0)
    whole = [kv_optimize(study, budget_bits=bits).cost for bits in budgets]
    monkeypatch.setattr(kv_plan, "_KEPT", 200)
    few = [kv_optimize(study, budget_bits=bits).cost for bits in budgets]
    assert few[0] == whole[0]
    assert few[-1] == whole[-1]
    assert few == pytest.approx(whole, rel=0.1)


def test_a_plan_is_what_a_cache_takes() -> None:
    costs = random_costs(5, 3)
    study = a_study(costs)
    plan = kv_optimize(study, budget_bits=6.0)
    cache = KVCache(5, 2, 64, plan.k, plan.v, policy=plan.policy)
    assert cache.stats().bits == pytest.approx(plan.bits)
    for layer, (k, v) in enumerate(plan.rows):
        assert cache.sides[layer] == (k.stored, v.stored)
    assert len(plan.policy.layers) < 5
    record = json.loads(json.dumps(plan.to_json()))
    assert [each["k"] for each in record["layers"]] == [k.codec for k, _ in plan.rows]
    shown = plan.text()
    assert f"{plan.bits:.3f} bits" in shown
    assert all(f"layer {layer}: keys" in shown for layer in plan.policy.layers)


def test_layers_with_windows_count_what_they_hold() -> None:
    """Of two layers alike the one with a window gets the bits where the text is long."""
    costs = np.repeat(random_costs(1, 0), 2, axis=0)
    study = a_study(costs, window=(None, 128))
    flat = kv_optimize(study, budget_bits=6.0)
    long = kv_optimize(study, budget_bits=6.0, context=8192)
    narrow = [sum(r.bits for r in plan.rows[1]) for plan in (flat, long)]
    assert narrow[1] == 32 > narrow[0]
    held = [8192, 128]
    bits = sum(r.bits * r.numbers * held[r.layer] for pair in long.rows for r in pair)
    assert long.bits == pytest.approx(bits / (256 * sum(held)))
    short = kv_optimize(study, budget_bits=6.0, context=100)
    assert short.rows == flat.rows


def test_what_nothing_reaches_is_refused() -> None:
    study = a_study(random_costs(2, 0))
    for goals in ({}, {"budget_bits": 4.0, "max_kl": 0.1}, {"max_kl": math.nan}, {"max_kl": -1}):
        with pytest.raises(ShapeError, match="one goal"):
            kv_optimize(study, **goals)
    with pytest.raises(ShapeError, match=r"at least 2\.25 bits"):
        kv_optimize(study, budget_bits=2.2)
    best = min(cost for _, cost in every(study, [1, 1]))
    with pytest.raises(ShapeError, match="KL of at least"):
        kv_optimize(study, max_kl=best / 2)
    with pytest.raises(ShapeError, match="context"):
        kv_optimize(study, budget_bits=4.5, context=0)
    costs = random_costs(2, 0)
    costs[1, 0] = math.inf
    with pytest.raises(ShapeError, match="can hold k of layer 1"):
        kv_optimize(a_study(costs), budget_bits=16)


def test_hard_layers_get_more_bits() -> None:
    """From keys and queries, not from made-up costs."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((128, 2, 64), dtype=np.float32) for _ in range(3))
    study = kv_study(KVDump([q, 4 * q, q], [k, k, k], [v] * 3), CODECS)
    plan = kv_optimize(study, budget_bits=6.0)
    bits = [k_row.bits for k_row, _ in plan.rows]
    assert bits[1] > max(bits[0], bits[2])
