"""One part of a report: lines of numbers and texts, and the bars that were checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import kvant
from kvant.bench.report import Grid
from kvant.bench.result import Part
from kvant.bench.timing import Ratio

from .bars import Check

__all__ = ["Line", "Section", "cell", "mark", "names"]


@dataclass(frozen=True)
class Line:
    """Numbers for the file, bars met or missed, and texts for the table."""

    numbers: dict[str, Any]
    checks: list[Check]
    cells: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return self.numbers | {"bars": [c.to_json() for c in self.checks]}


@dataclass
class Section(Part):
    """Results of one kind of measurement; `keys` are the headings of all columns.

    Attributes
    ----------
    waited
        Shares of wall time that one-threaded samples spent waiting for a processor.
    """

    rows: list[Line] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return super().to_json() | {"waited": max(self.waited, default=0.0)}

    def grid(self) -> Grid:
        """As a table, without columns in which nothing stands, such as that of an absent peer.

        >>> lines = [Line({}, [], ("q4_0", "", "9")), Line({}, [], ("q8_0", "", "7"))]
        >>> found = Section("encode", "Encode", ("format", "x peer", "MB/s"), lines).grid()
        >>> found.heads, found.rows
        (('format', 'MB/s'), [('q4_0', '9'), ('q8_0', '7')])
        """
        cells = [line.cells for line in self.rows]
        kept = [i for i in range(len(self.keys)) if not cells or any(c[i] for c in cells)]
        heads = tuple(self.keys[i] for i in kept)
        firsts = [c[0] for c in cells]
        breaks = {i for i, (a, b) in enumerate(pairwise(firsts), 1) if a != b}
        notes = list(self.notes)
        if max(self.waited, default=0.0) > 0.05:
            share = f"{100 * max(self.waited):.0f} %"
            notes.append(f"samples waited for a processor up to {share} of their wall time")
        if not self.complete:
            notes.append("interrupted: rows are missing")
        return Grid(
            title=self.title,
            heads=heads,
            left=tuple(i == 0 or heads[i] in ("isa", "bar") for i in range(len(heads))),
            rows=[tuple(c[i] for i in kept) for c in cells],
            notes=notes,
            breaks=frozenset(breaks if len(breaks) + 1 < len(cells) else ()),
        )


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
