"""Which codec each layer's keys and values get, so that a cache loses least at a size.

All assignments of which none is both smaller and better are found side by side: the layers are
added one at a time, and sums that another beats are dropped (Nemhauser and Ullmann, "Discrete
dynamic programming and capital allocation", 1969). Goals only choose among them, so that more room
never makes a plan worse.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ShapeError
from ..kv import KVPolicy, KVSide
from .kv_result import KVRow, KVStudy

__all__ = ["KVPlan", "kv_optimize"]

# Sums that are kept after each layer: where there are more, the best of each of so many sizes.
_KEPT = 8192

Choice = tuple[KVRow, KVRow]


@dataclass(frozen=True)
class KVPlan:
    """How each layer's keys and values are stored.

    Attributes
    ----------
    k, v : KVSide
        Of most layers; arguments of `KVCache`, as is `policy`.
    policy : KVPolicy
        The other layers, and what is exact.
    bits : float
        For each number, over all layers.
    cost : float
        Nats: the mean over layers of what keys and values cost, see `KVRow.cost`.
    rows : tuple of (KVRow, KVRow)
        Keys and values of each layer, as they were measured.
    """

    k: KVSide
    v: KVSide
    policy: KVPolicy
    bits: float
    cost: float
    rows: tuple[Choice, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "kind": "kvant.kv.plan",
            "version": 1,
            "bits": self.bits,
            "cost": self.cost,
            "sink": self.policy.sink,
            "tail": self.policy.tail,
            "layers": [{"k": k.codec, "v": v.codec, "cost": k.cost + v.cost} for k, v in self.rows],
        }

    def text(self) -> str:
        """What most layers get, and who gets something else, in lines."""
        usual = Counter((k.codec, v.codec) for k, v in self.rows if self._usual(k, v))
        lines = [f"{self.bits:.3f} bits a number, cost {self.cost:.4g} nats a layer"]
        every = len(self.rows)
        lines += [
            f"keys {k}, values {v}: {count} of {every} layers" for (k, v), count in usual.items()
        ]
        others = [pair for pair in self.rows if not self._usual(*pair)]
        lines += [f"layer {k.layer}: keys {k.codec}, values {v.codec}" for k, v in others]
        return "\n".join(lines)

    def _usual(self, k: KVRow, v: KVRow) -> bool:
        return (k.stored, v.stored) == (self.k, self.v)


def kv_optimize(
    study: KVStudy,
    budget_bits: float | None = None,
    max_kl: float | None = None,
    *,
    context: int | None = None,
) -> KVPlan:
    """Choose a codec for the keys and one for the values of every layer.

    Parameters
    ----------
    study : KVStudy
        What can be chosen, and what it costs.
    budget_bits : float, optional
        At most so many bits for each number, on average over the cache: the plan of least cost.
    max_kl : float, optional
        At most so many nats, on average over layers (`KVRow.cost`): the smallest plan.
    context : int, optional
        Tokens of a sequence, for the size of layers with windows; without it they count as if they
        saw everything.

    Returns
    -------
    KVPlan

    Raises
    ------
    ShapeError
        Not exactly one goal, or one that no choice of these codecs reaches.

    Examples
    --------
    >>> import numpy as np
    >>> from kvant.lab import KVDump, kv_study
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((64, 2, 32), dtype=np.float32) for _ in range(3))
    >>> study = kv_study(KVDump([q, 9 * q], [k, 9 * k], [v, v]), ["q8_0", "q4_0"])
    >>> plan = kv_optimize(study, budget_bits=5.5)
    >>> print(plan.text().replace(f"{plan.cost:.4g}", "..."))
    5.500 bits a number, cost ... nats a layer
    keys q4_0, values q4_0: 1 of 2 layers
    layer 1: keys q8_0, values q4_0
    """
    goals = [goal for goal in (budget_bits, max_kl) if goal is not None]
    if len(goals) != 1 or not 0 <= goals[0] < math.inf:
        raise ShapeError(f"[kv_optimize] expected one goal, bits or KL, got {goals}")
    if context is not None and context < 1:
        raise ShapeError(f"[kv_optimize] expected a context of at least 1, got {context}")
    held = [_held(window, context) for window in study.window]
    choices = _choices(study)
    numbers = sum(row.numbers * held[row.layer] for row in (given[0] for given in choices.values()))
    steps = _frontier([(held[layer], given) for (layer, _), given in choices.items()])
    sizes, costs = steps[-1].size, steps[-1].cost / study.layers
    if budget_bits is not None:
        # Bits are sums over numbers; a budget that was computed from a plan must admit it.
        room = budget_bits * numbers / 8 * (1 + 1e-12)
        fitting = np.flatnonzero(sizes <= room)
        if not len(fitting):
            raise ShapeError(
                f"[kv_optimize] expected at least {8 * sizes[0] / numbers:g} bits with these "
                f"codecs, got {budget_bits:g}"
            )
        place = int(fitting[-1])
    else:
        assert max_kl is not None
        fitting = np.flatnonzero(costs <= max_kl)
        if not len(fitting):
            raise ShapeError(
                f"[kv_optimize] expected a KL of at least {costs[-1]:g}, which the best of these "
                f"codecs have, got {max_kl:g}"
            )
        place = int(fitting[0])
    rows = dict(zip(choices, _chosen(steps, choices, place), strict=True))
    pairs = tuple((rows[layer, "k"], rows[layer, "v"]) for layer in range(study.layers))
    return _plan(study, pairs, 8 * float(sizes[place]) / numbers)


def _held(window: int | None, context: int | None) -> int:
    """Tokens that a layer holds; 1 for every layer where no context is given."""
    if context is None:
        return 1
    return context if window is None else min(window, context)


def _choices(study: KVStudy) -> dict[tuple[int, str], list[KVRow]]:
    found: dict[tuple[int, str], list[KVRow]] = {}
    for row in study.rows:
        own = found.setdefault((row.layer, row.side), [])
        if math.isfinite(row.cost):
            own.append(row)
    for (layer, side), given in found.items():
        if not given:
            raise ShapeError(
                f"[kv_optimize] expected a codec that can hold {side} of layer {layer}, got none"
            )
    return found


class _Step(NamedTuple):
    """Sums that no other beats, by size; where each came from, and with which choice."""

    size: npt.NDArray[np.int64]
    cost: npt.NDArray[np.float64]
    parent: npt.NDArray[np.int64]
    choice: npt.NDArray[np.int64]


def _frontier(groups: Sequence[tuple[int, Sequence[KVRow]]]) -> list[_Step]:
    none = np.zeros(1, np.int64)
    steps = [_Step(none, np.zeros(1), none, none)]
    for tokens, given in groups:
        before = steps[-1]
        own_size = np.array([row.nbytes * tokens for row in given])
        own_cost = np.array([row.cost for row in given])
        size = np.add.outer(before.size, own_size).ravel()
        cost = np.add.outer(before.cost, own_cost).ravel()
        order = np.lexsort((cost, size))
        least = np.minimum.accumulate(cost[order])
        kept = order[np.concatenate([[True], least[1:] < least[:-1]])]
        if len(kept) > _KEPT:
            kept = kept[_thinned(size[kept])]
        steps.append(_Step(size[kept], cost[kept], kept // len(given), kept % len(given)))
    return steps


def _thinned(size: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The best, which is the last, of each of `_KEPT` ranges of size, and the smallest."""
    span = int(size[-1] - size[0])
    ranges = (size - size[0]) * _KEPT // (span + 1)
    last = np.flatnonzero(np.diff(ranges, append=_KEPT))
    return np.union1d([0], last)


def _chosen(
    steps: Sequence[_Step], choices: Mapping[tuple[int, str], Sequence[KVRow]], place: int
) -> list[KVRow]:
    found = []
    for step, given in zip(reversed(steps[1:]), reversed(list(choices.values())), strict=True):
        found.append(given[int(step.choice[place])])
        place = int(step.parent[place])
    return found[::-1]


def _plan(study: KVStudy, rows: tuple[Choice, ...], bits: float) -> KVPlan:
    pairs = [(k.stored, v.stored) for k, v in rows]
    # Of pairs that are as frequent, the one that comes first.
    usual = Counter(pairs).most_common(1)[0][0]
    others = {layer: pair for layer, pair in enumerate(pairs) if pair != usual}
    policy = KVPolicy(sink=study.sink, tail=study.tail, layers=others)
    cost = sum(k.cost + v.cost for k, v in rows) / study.layers
    return KVPlan(*usual, policy, bits, cost, rows)
