"""What formats cost tensors: candidates of a file, estimates against measured runs, and plans."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvant import gguf
from kvant.errors import FormatError, ShapeError
from kvant.lab import optimize
from kvant.lab.costs import Sensitivity, candidates, sensitivity
from kvant.lab.scoring import windows
from kvant.lab.study import Study, forget
from kvant.quantize_file import quantize_file

FORMATS = ("q3_k", "q4_k", "q8_0")


@pytest.fixture(scope="module")
def study(dense: Path) -> Study:
    return Study.of(str(dense), windows([i * i * 7 % 250 for i in range(64)], 32, bos=0))


@pytest.fixture(scope="module")
def found(study: Study) -> Sensitivity:
    return sensitivity(study, FORMATS)


def test_candidates_count_bytes_as_quantizing_does(moe: Path, tmp_path: Path) -> None:
    with gguf.open(moe) as file:
        given = candidates(file, ["q4_k"], [("attn_v", "q8_0"), ("attn", "q5_k")])
    assert given.sizes["blk.0.attn_v.weight"] == {"q8_0": 128 * 256 * 34 // 32}
    assert list(given.sizes["blk.1.attn_q.weight"]) == ["q5_k"]
    overrides = [("attn_v", "q8_0"), ("attn", "q5_k")]
    summary = quantize_file(moe, None, "q4_k", overrides=overrides, dry_run=True)
    assert (given.least_bytes, given.weights) == (summary.bytes, summary.weights)
    with gguf.open(moe) as file, pytest.raises(FormatError, match="got iq2_xs"):
        candidates(file, ["q4_k"], [("attn", "iq2_xs")])


def test_runs_may_come_from_many_threads(study: Study, found: Sensitivity) -> None:
    forget()  # so that threads meet where the study is opened
    with ThreadPoolExecutor(4) as executor:
        assert sensitivity(study, FORMATS, executor=executor) == found


def test_estimates_are_near_what_is_measured(study: Study, found: Sensitivity) -> None:
    every = sensitivity(study, FORMATS, measure="all")
    assert (found.runs, every.runs) == (15, 45)
    for name, choices in found.choices.items():
        measured = {choice.format: choice for choice in every.choices[name]}
        for choice in choices:
            other = measured[choice.format]
            assert choice.nbytes == other.nbytes
            if choice.format == "q4_k":  # the one that is measured for the estimates
                assert choice.cost == pytest.approx(other.cost, rel=1e-12)
            elif choice.format == "q3_k":
                assert choice.cost == pytest.approx(other.cost, rel=0.4)
            else:  # activations of eight bits cost something that estimates leave out
                assert 0.2 < choice.cost / other.cost < 1


def test_a_plan_is_measured_and_refuses_goals_that_are_none(
    study: Study, found: Sensitivity
) -> None:
    plan = optimize(found, target_bpw=5.0, study=study)
    assert 4.8 < plan.bits_per_weight <= 5.0
    assert plan.divergence is not None
    assert plan.divergence.kl_mean == pytest.approx(plan.predicted_kl, rel=1.0)
    for goal in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ShapeError, match="one goal"):
            optimize(found, target_bpw=goal)
    with pytest.raises(ShapeError, match="at least"):
        optimize(found, target_bpw=1.0)
