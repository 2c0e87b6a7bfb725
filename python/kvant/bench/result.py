"""What a run found: rows with a rate and its share of a limit, sections of rows, the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .. import isa
from .settings import Settings
from .timing import Ratio, Times, ratio, spread

__all__ = ["Part", "Report", "Row", "Section", "Step", "Update", "beside", "gather", "row"]

Update = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Row:
    """One rate, and the limit of this machine that was measured in turns with it.

    Attributes
    ----------
    case
        What was measured: `format`, `m`, `threads`, `isa`, `pages`, ... as the section has them.
    value, unit
        Median over the rounds, in `"GB/s"` or `"GOP/s"`.
    spread
        Distance of the quartiles over the rounds, relative to the median.
    limit, limit_value
        Name of the limit and its median, in the same unit.
    of_limit
        Share of the limit, taken round by round.
    rounds
        How often each was measured.
    more
        Further numbers: of peers, of other limits.
    """

    case: dict[str, Any]
    value: float
    unit: str
    spread: float
    limit: str
    limit_value: float
    of_limit: Ratio
    rounds: int
    more: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            **self.case,
            "value": round(self.value, 3),
            "unit": self.unit,
            "spread": round(self.spread, 4),
            "limit": self.limit,
            "limit_value": round(self.limit_value, 3),
            "of_limit": self.of_limit.to_json(),
            "rounds": self.rounds,
            **self.more,
        }


def row(
    case: dict[str, Any],
    own: tuple[Times, float],
    limit: tuple[str, Times, float],
    unit: str,
    more: dict[str, Any] | None = None,
) -> Row:
    """Make a row from times: the amounts are the bytes or operations of one call, in units of 10^9.

    Parameters
    ----------
    case, unit, more
        As in `Row`.
    own
        Times and amount.
    limit
        Name, times and amount, from the same turns.
    """
    times, amount = own
    name, limit_times, limit_amount = limit
    return Row(
        case=case,
        value=times.rate(amount, "wall"),
        unit=unit,
        spread=spread(times),
        limit=name,
        limit_value=limit_times.rate(limit_amount, "wall"),
        of_limit=ratio(limit_times, times, "wall", work=amount / limit_amount),
        rounds=len(times.wall),
        more=more or {},
    )


def beside(own: Times, peer: Times, amount: float) -> dict[str, Any]:
    """What a peer reached on the same bytes in the same turns, and how many times faster we are."""
    return {
        "value": round(peer.rate(amount, "wall"), 3),
        "spread": round(spread(peer), 4),
        "times": ratio(peer, own, "wall").to_json(),
    }


@dataclass(frozen=True)
class Step:
    """A part of a measurement that is shown as one in the progress."""

    label: str
    run: Callable[[], Iterable[Any]]


@dataclass
class Part:
    """Rows of one kind of measurement, which steps fill.

    Attributes
    ----------
    name, title
        Key in the file, and heading.
    keys
        Names of columns.
    rows
        What was measured so far.
    notes
        What a reader should know about this run.
    complete
        Whether every step was run.
    """

    name: str
    title: str
    keys: tuple[str, ...]
    rows: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = False

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            "title": self.title,
            "complete": self.complete,
            "notes": self.notes,
            "rows": [r.to_json() for r in self.rows],
        }


P = TypeVar("P", bound=Part)


@dataclass
class Section(Part):
    """Rates; `keys` are those of `Row.case`."""

    rows: list[Row] = field(default_factory=list)


@dataclass
class Report:
    """Sections measured in one run, and where."""

    machine: dict[str, Any]
    settings: Settings
    command: str = ""
    sections: list[Section] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing was cut short."""
        return all(s.complete for s in self.sections)

    def to_json(self) -> dict[str, Any]:
        """For a file; docs/bench.md lists the keys."""
        return {
            "kvant_bench": 1,
            "command": self.command,
            "complete": self.complete,
            "machine": self.machine,
            "settings": self.settings.to_json(),
            "sections": {s.name: s.to_json() for s in self.sections},
        }


def gather(section: P, steps: Sequence[Step], update: Update | None = None) -> P:
    """Run the steps and put their rows into a section as they come.

    Ctrl-C goes on to the caller; the section then holds the rows of the steps that were finished.
    The instruction set in use is put back.
    """
    before = isa.current()
    try:
        for done, step in enumerate(steps):
            if update:
                update(step.label, done, len(steps))
            section.rows.extend(step.run())
    finally:
        isa.use(before)
    section.complete = True
    return section
