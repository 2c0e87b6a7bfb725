"""One part of a report: rows for the file, cells for the terminal, bars that were checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import kvant
from kvant.bench.timing import Ratio

from .bars import Check

__all__ = ["Section", "cell", "mark", "names"]


@dataclass
class Section:
    """Results of one kind of measurement.

    Attributes
    ----------
    name, title, columns
        Key in the file, heading, and column headings of the table.
    rows
        Numbers, for the file.
    cells
        Texts, for the terminal; one line for each entry of `rows`.
    checks
        Bars met or missed.
    notes
        What a reader should know about this run.
    waited
        Shares of wall time that one-threaded samples spent waiting for a processor.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]] = field(default_factory=list)
    cells: list[tuple[str, ...]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)

    def add(self, row: dict[str, Any], checks: list[Check], *cells: str) -> None:
        """Append one line."""
        row["bars"] = [c.to_json() for c in checks]
        self.rows.append(row)
        self.checks.extend(checks)
        self.cells.append(cells)

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        busy = max(self.waited, default=0.0)
        return {"title": self.title, "notes": self.notes, "waited": busy, "rows": self.rows}


def names(wanted: Iterable[str], fits: Callable[[kvant.FormatInfo], bool]) -> list[str]:
    """Formats of the table's order that fit, all of them when none is named.

    Examples
    --------
    >>> names(["q8_0", "iq1_s"], lambda f: f.can_encode)
    ['q8_0']
    """
    chosen = set(wanted)
    return [f.name for f in kvant.formats() if fits(f) and (not chosen or f.name in chosen)]


def cell(r: Ratio | None) -> str:
    """Median, and half the distance of the quartiles.

    Examples
    --------
    >>> cell(Ratio(8.25, 8.0, 8.5)), cell(None)
    ('8.2 ±3%', '')
    """
    if r is None:
        return ""
    digits = 0 if r.median >= 100 else 1 if r.median >= 2 else 2
    return f"{r.median:.{digits}f} ±{50 * r.spread:.0f}%"


def mark(checks: list[Check]) -> str:
    """Pass or fail beside each bar.

    Examples
    --------
    >>> mark([Check("a", 2.0, 1.8), Check("b", 0.5, 0.8)])
    'pass >= 1.8, FAIL >= 0.8'
    """
    texts = []
    for c in checks:
        sign = "<=" if c.at_most else ">="
        texts.append(f"{'pass' if c.passed else 'FAIL'} {sign} {c.bar:g}")
    return ", ".join(texts)
