"""The mix of formats that loses least at a size, or is smallest at a loss."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from ..errors import ShapeError
from ..imatrix import Imatrix
from ..quantize_file import QuantizeSummary, quantize_file
from .assign import Assignment, Choice, assign, smallest, total
from .costs import Sensitivity
from .metrics import Divergence
from .study import Study, measured

__all__ = ["Plan", "optimize"]

_TRIES = 8
# Of sizes: how near the search for a divergence comes; how far apart its first two tries are.
_CLOSE, _NEAR = 0.005, 0.03


@dataclass(frozen=True)
class Plan:
    """A format for every tensor that may be quantized.

    Attributes
    ----------
    choices
        By tensor name, in the order of the file.
    nbytes
        Of all tensors, those that stay as they are among them.
    bits_per_weight
        Over all numbers of the file.
    predicted_kl
        Sum of the costs, nats of mean KL divergence.
    divergence
        What was measured on the study's text, or None.
    """

    choices: Mapping[str, Choice]
    nbytes: int
    bits_per_weight: float
    predicted_kl: float
    divergence: Divergence | None = None

    @property
    def formats(self) -> dict[str, str]:
        """Tensor name to format name."""
        return {name: choice.format for name, choice in self.choices.items()}

    def overrides(self) -> list[tuple[str, str]]:
        """The plan as patterns and formats for `kvant.quantize_file`."""
        return [(f"^{re.escape(name)}$", f) for name, f in self.formats.items()]

    def llama_quantize_lines(self) -> list[str]:
        """The plan as options of llama-quantize."""
        return [f"--tensor-type '{pattern}={format}'" for pattern, format in self.overrides()]

    def write(
        self,
        source: str,
        out: str,
        imatrix: Imatrix | str | None = None,
        threads: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> QuantizeSummary:
        """Write the quantized model; `source` is the model of the study."""
        return quantize_file(source, out, self.formats, imatrix, threads=threads, progress=progress)

    def as_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        measured_kl = None if self.divergence is None else self.divergence.kl_mean
        return {
            "kind": "kvant.plan.formats",
            "version": 1,
            "bytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "predicted_kl": self.predicted_kl,
            "measured_kl": measured_kl,
            "tensors": [
                {"name": name, "format": c.format, "bytes": c.nbytes, "cost": c.cost}
                for name, c in self.choices.items()
            ],
        }


def optimize(
    found: Sensitivity,
    *,
    target_bytes: int | None = None,
    target_bpw: float | None = None,
    max_kl: float | None = None,
    study: Study | None = None,
    executor: Executor | None = None,
) -> Plan:
    """Choose a format for every tensor.

    Parameters
    ----------
    found : Sensitivity
    target_bytes : int, optional
        Of all tensors together, padding of files aside.
    target_bpw : float, optional
        The same as bits for each number.
    max_kl : float, optional
        Nats of mean KL divergence on the study's text: the smallest mix that was found to keep
        it, by measuring eight or nine mixes at most.
    study : Study, optional
        To measure the plan; needed with `max_kl`.
    executor : Executor or None
        Carries the runs.

    Raises
    ------
    ShapeError
        Not exactly one goal, or one that no mix reaches.
    """
    goals = [goal for goal in (target_bytes, target_bpw, max_kl) if goal is not None]
    if len(goals) != 1 or not 0 < goals[0] < math.inf:
        raise ShapeError(
            f"[optimize] expected one goal above 0: bytes, bits per weight or KL, got {goals}"
        )
    if max_kl is not None:
        if study is None:
            raise ShapeError("[optimize] expected a study with max_kl, got none")
        return _within(found, max_kl, study, executor)
    if target_bpw is not None:
        target_bytes = int(target_bpw * found.weights / 8)
    assert target_bytes is not None
    room = target_bytes - found.fixed_bytes
    least = sum(min(c.nbytes for c in given) for given in found.choices.values())
    if room < least:
        raise ShapeError(
            f"[optimize] expected a target of at least {least + found.fixed_bytes} bytes with "
            f"these formats, got {target_bytes}"
        )
    chosen = assign(found.choices, room)
    return _plan(found, chosen, _measured(study, chosen, executor))


def _within(found: Sensitivity, max_kl: float, study: Study, executor: Executor | None) -> Plan:
    """Close in on the size at which the measured divergence reaches the bound.

    The first size is that of the predicted bound; then sizes are halved between the largest that
    exceeds it and the smallest that keeps it.
    """
    sizes = [[c.nbytes for c in given] for given in found.choices.values()]
    low, high = sum(map(min, sizes)), sum(map(max, sizes))
    budget = total(smallest(found.choices, max_kl))[0]
    best = None
    for attempt in range(_TRIES):
        plan = _measured_plan(found, budget, study, executor)
        if _kl(plan) <= max_kl:
            best = plan
            high = min(high, plan.nbytes - found.fixed_bytes)
        else:
            low = budget
        if high - low < _CLOSE * high:
            break
        # Predictions are mostly near: look beside the first before halving.
        near = budget * (1 - _NEAR if best is plan else 1 + _NEAR)
        budget = int(near) if attempt == 0 and low < near < high else (low + high) // 2
    if best is None:
        best = _measured_plan(found, sum(map(max, sizes)), study, executor)
        if _kl(best) > max_kl:
            raise ShapeError(
                f"[optimize] expected a KL of at least {_kl(best):.6g}, which the best of these "
                f"formats have, got {max_kl:g}"
            )
    return best


def _measured_plan(
    found: Sensitivity, budget: int, study: Study, executor: Executor | None
) -> Plan:
    chosen = assign(found.choices, budget)
    return _plan(found, chosen, _measured(study, chosen, executor))


def _kl(plan: Plan) -> float:
    assert plan.divergence is not None
    return plan.divergence.kl_mean


def _measured(
    study: Study | None, chosen: Assignment, executor: Executor | None
) -> Divergence | None:
    if study is None:
        return None
    formats = {name: choice.format for name, choice in chosen.items()}
    return next(measured(study, [formats], executor))


def _plan(found: Sensitivity, chosen: Assignment, divergence: Divergence | None) -> Plan:
    nbytes, cost = total(chosen)
    nbytes += found.fixed_bytes
    return Plan(chosen, nbytes, 8 * nbytes / found.weights, cost, divergence)
