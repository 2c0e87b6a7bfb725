"""Which format each tensor gets, so that the whole costs least within a budget of bytes.

A multiple-choice knapsack: the lower convex hull of each tensor's choices is climbed in the order
of cost saved per byte, which is the solution of the Lagrangian for every multiplier at once (Sinha
and Zoltners, "The multiple-choice knapsack problem", 1979); then single changes and exchanges
between two tensors repair what the hull leaves over. Nothing is drawn, and ties go to the earlier
tensor.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from ..errors import ShapeError

__all__ = ["Choice", "assign", "smallest", "total"]


@dataclass(frozen=True)
class Choice:
    """A format for a tensor: its bytes, and what it costs in quality."""

    format: str
    nbytes: int
    cost: float


Choices = Mapping[str, list[Choice]]
Assignment = dict[str, Choice]


@dataclass(frozen=True)
class _Move:
    """One tensor's change to another choice; `saved` is cost, which may be negative."""

    tensor: str
    to: Choice
    nbytes: int
    saved: float


def assign(choices: Choices, budget: int) -> Assignment:
    """A cheap assignment of at most `budget` bytes, which no change of one tensor improves, nor one
    change down for one up.

    Parameters
    ----------
    choices : mapping of tensor names to their choices
    budget : int
        Bytes of all tensors together.

    Raises
    ------
    ShapeError
        Even the smallest choices exceed the budget, or a tensor has no choice.

    Examples
    --------
    >>> small, large = Choice("q4_0", 4, 9.0), Choice("q8_0", 8, 1.0)
    >>> found = assign({"a": [small, large], "b": [small, Choice("q8_0", 8, 8.0)]}, 12)
    >>> {name: choice.format for name, choice in found.items()}
    {'a': 'q8_0', 'b': 'q4_0'}
    """
    useful = {name: _useful(name, given) for name, given in choices.items()}
    chosen = {name: given[0] for name, given in useful.items()}
    need = sum(c.nbytes for c in chosen.values())
    if need > budget:
        raise ShapeError(f"[assign] expected a budget of at least {need} bytes, got {budget}")
    slack = budget - need
    for move in _hull_moves(useful):
        # Steps of one tensor come in order, so a step that did not fit ends that tensor's climb.
        if move.nbytes <= slack and _follows(chosen[move.tensor], move):
            chosen[move.tensor] = move.to
            slack -= move.nbytes
    return _repaired(useful, chosen, slack)


def smallest(choices: Choices, most: float) -> Assignment:
    """A small assignment whose costs add up to at most `most`; the best one if none does."""
    low = sum(min(c.nbytes for c in given) for given in choices.values())
    high = sum(max(c.nbytes for c in given) for given in choices.values())
    while low < high:
        middle = (low + high) // 2
        if total(assign(choices, middle))[1] <= most:
            high = middle
        else:
            low = middle + 1
    return assign(choices, high)


def total(assignment: Assignment) -> tuple[int, float]:
    """Bytes and cost of all tensors together."""
    nbytes = sum(choice.nbytes for choice in assignment.values())
    return nbytes, sum(choice.cost for choice in assignment.values())


def _useful(name: str, given: list[Choice]) -> list[Choice]:
    """Choices by size, without those that cost more than a smaller one."""
    if not given:
        raise ShapeError(f"[assign] expected a choice for every tensor, got none for {name}")
    kept: list[Choice] = []
    for choice in sorted(given, key=lambda c: (c.nbytes, c.cost)):
        if not kept or choice.cost < kept[-1].cost:
            kept.append(choice)
    return kept


def _hull_moves(useful: Choices) -> list[_Move]:
    """All steps along the hulls, the most cost saved per byte first."""
    moves = []
    for name, given in useful.items():
        hull: list[Choice] = []
        for choice in given:
            while len(hull) > 1 and _rate(hull[-2], hull[-1]) <= _rate(hull[-1], choice):
                hull.pop()
            hull.append(choice)
        moves += [_move(name, a, b) for a, b in pairwise(hull)]
    return sorted(moves, key=lambda m: -m.saved / m.nbytes)


def _rate(a: Choice, b: Choice) -> float:
    return (a.cost - b.cost) / (b.nbytes - a.nbytes)


def _move(tensor: str, a: Choice, b: Choice) -> _Move:
    return _Move(tensor, b, b.nbytes - a.nbytes, a.cost - b.cost)


def _follows(now: Choice, move: _Move) -> bool:
    """Whether a hull step starts from where the tensor stands."""
    return move.to.nbytes - move.nbytes == now.nbytes


def _repaired(useful: Choices, chosen: Assignment, slack: int) -> Assignment:
    """Improve by single changes, and by one change down for one up, while any helps."""
    while True:
        moves = [
            _move(name, now, choice)
            for name, now in chosen.items()
            for choice in useful[name]
            if choice is not now
        ]
        best = _best(moves, slack)
        if not best:
            return chosen
        for move in best:
            chosen[move.tensor] = move.to
            slack -= move.nbytes


def _best(moves: list[_Move], slack: int) -> list[_Move]:
    """The change, or the two changes of different tensors, that save most and fit; none if none."""
    saved, best = 0.0, list[_Move]()
    ups = sorted((m for m in moves if m.saved > 0), key=lambda m: m.nbytes)
    for move in ups:
        if move.nbytes <= slack and move.saved > saved:
            saved, best = move.saved, [move]
    # For each size, the two best ups of different tensors among those that are no larger.
    tops: list[tuple[_Move, ...]] = []
    for move in ups:
        tops.append(_top((*(tops[-1] if tops else ()), move)))
    sizes = [m.nbytes for m in ups]
    for down in (m for m in moves if m.saved <= 0 and m.nbytes < 0):
        place = bisect_right(sizes, slack - down.nbytes)
        for up in tops[place - 1] if place else ():
            if up.tensor != down.tensor and down.saved + up.saved > saved + 1e-15:
                saved, best = down.saved + up.saved, [down, up]
    return best


def _top(moves: tuple[_Move, ...]) -> tuple[_Move, ...]:
    first = max(moves, key=lambda m: m.saved)
    others = [m for m in moves if m.tensor != first.tensor]
    return (first, max(others, key=lambda m: m.saved)) if others else (first,)
