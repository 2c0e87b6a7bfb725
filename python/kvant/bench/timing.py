"""Timing in turns: every contender once per round, so that a noisy minute hits them all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ratio", "Task", "Times", "fastest", "ratio", "spread", "turns", "waited"]


@dataclass(frozen=True)
class Task:
    """What is timed, and what must be set before (outside the clock)."""

    run: Callable[[], object]
    before: Callable[[], object] | None = None


@dataclass(frozen=True)
class Times:
    """Seconds of one call, one entry per round.

    `cpu` is the processor time of the process, all its threads. For one-threaded work on a shared
    machine it is the fairer clock: waiting for other programs hits long samples more often than
    short ones. A contender that starts threads of its own gains nothing by them.
    """

    wall: NDArray[np.float64]
    cpu: NDArray[np.float64]

    def seconds(self, clock: str) -> NDArray[np.float64]:
        """`"cpu"` or `"wall"` seconds per round."""
        return self.cpu if clock == "cpu" else self.wall

    def rate(self, amount: float, clock: str) -> float:
        """Amount per second at the median round."""
        return amount / float(np.median(self.seconds(clock)))


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles over the rounds of one contender's time to another's."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Distance of the quartiles, relative to the median."""
        return (self.high - self.low) / self.median

    def to_json(self) -> dict[str, float]:
        """Rounded numbers for a file."""
        return {k: round(v, 4) for k, v in vars(self).items()} | {"spread": round(self.spread, 4)}


def ratio(slower: Times, faster: Times, clock: str, *, work: float = 1.0) -> Ratio:
    """How many times faster `faster` is, round by round.

    Parameters
    ----------
    slower, faster
        Times of one `turns`.
    clock
        `"cpu"` or `"wall"`.
    work
        Work of `faster` divided by work of `slower`, when they did not do the same amount.

    Examples
    --------
    >>> a, b = (Times(np.array(t), np.array(t)) for t in ([2.0, 4.0, 6.0], [1.0, 1.0, 2.0]))
    >>> ratio(a, b, "wall").median
    3.0
    """
    each = slower.seconds(clock) / faster.seconds(clock) * work
    low, median, high = np.percentile(each, [25, 50, 75])
    return Ratio(float(median), float(low), float(high))


def spread(times: Times, clock: str = "wall") -> float:
    """Distance of the quartiles of the rates over the rounds, relative to the median.

    Examples
    --------
    >>> spread(Times(np.array([1.0, 1.0, 1.0]), np.zeros(3)))
    0.0
    """
    low, median, high = np.percentile(1 / times.seconds(clock), [25, 50, 75])
    return float((high - low) / median)


def fastest(*contenders: Times) -> Times:
    """The best contender of every round.

    Examples
    --------
    >>> a, b = (Times(np.array(t), np.array(t)) for t in ([2.0, 4.0], [3.0, 1.0]))
    >>> fastest(a, b).wall
    array([2., 1.])
    """
    return Times(
        np.min([t.wall for t in contenders], axis=0), np.min([t.cpu for t in contenders], axis=0)
    )


def waited(times: Mapping[str, Times]) -> float:
    """Share of the wall time in which one-threaded samples had no processor; 0 for no samples."""
    wall = sum(float(t.wall.sum()) for t in times.values())
    cpu = sum(float(t.cpu.sum()) for t in times.values())
    return max(0.0, 1 - cpu / wall) if wall else 0.0


def turns(tasks: Mapping[str, Task], *, rounds: int = 7, sample: float = 0.004) -> dict[str, Times]:
    """Time tasks in turns.

    Every task is called once to warm up and to learn how many calls fill `sample` seconds. Then
    each round times that many calls of every task; rounds start at another task each time, so
    that none always follows the same neighbour. Garbage collection is off meanwhile.
    """
    counts = {name: _calls(task, sample) for name, task in tasks.items()}
    names = list(tasks)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                w, c = _sample(tasks[name], counts[name])
                wall[name].append(w)
                cpu[name].append(c)
    finally:
        if collecting:
            gc.enable()
    return {name: Times(np.array(wall[name]), np.array(cpu[name])) for name in names}


def _calls(task: Task, sample: float) -> int:
    once = _sample(task, 1)[0]
    if once < sample:
        once = min(once, _sample(task, 1)[0])
    return max(1, round(sample / max(once, 1e-7)))


def _sample(task: Task, count: int) -> tuple[float, float]:
    if task.before:
        task.before()
    run: Any = task.run
    # One call outside the clock brings code, tables and inputs back into the caches, unless the
    # work is larger than any of them.
    if count > 1:
        run()
    repeat = range(count)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in repeat:
        run()
    return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count
