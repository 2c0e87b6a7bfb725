"""A report to be read: the machine and a table for each section, on a terminal or as markdown."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .result import Row, Section

__all__ = ["Grid", "grid", "head_lines", "markdown", "print_grid", "print_head", "table"]

_LEFT = ("isa", "format", "what", "pages", "weights")


class Grid(NamedTuple):
    """A table as texts.

    Attributes
    ----------
    title, heads
        Heading, and names of the columns.
    left
        Whether a column is aligned to the left.
    rows
        Cells.
    notes
        What stands below.
    breaks
        Rows that begin a group.
    """

    title: str
    heads: tuple[str, ...]
    left: tuple[bool, ...]
    rows: list[tuple[str, ...]]
    notes: list[str]
    breaks: frozenset[int] = frozenset()


def head_lines(machine: dict[str, Any]) -> list[tuple[str, str]]:
    """The machine as pairs of words and values.

    >>> from kvant.bench import machine
    >>> [key for key, _ in head_lines(machine())][:3]
    ['machine', 'cpu', 'instruction sets']
    """
    caches = ", ".join(
        f"L{c['level']} {_size(c['bytes'])}" + (f" for {c['shared_by']}" * (c["shared_by"] > 1))
        for c in machine["caches"]
    )
    names = (f"{n} (in use)" if n == machine["isa"] else n for n in machine["isas"])
    busy = machine["load"]
    return [
        ("machine", f"{machine['system']}, {_size(machine['available_bytes'])} free"),
        ("cpu", f"{machine['cpu']}, {machine['cpus_usable']} usable"),
        ("instruction sets", ", ".join(names)),
        ("threads", str(machine["threads"])),
        ("caches", caches or "unknown"),
        ("pages", machine["pages"]),
        ("clock", f"about {machine['clock_ghz']:.2f} GHz"),
        ("load", "unknown" if busy is None else f"{busy:.2f}"),
        ("kvant", f"{machine['kvant']}, NumPy {machine['numpy']}, Python {machine['python']}"),
        ("when", machine["date"]),
    ]


def print_head(lines: list[tuple[str, str]], notes: list[str], console: Console) -> None:
    """The machine, and what makes numbers from it doubtful."""
    for key, value in lines:
        console.print(Text(f"{key:>16}  {value}"))
    for text in notes:
        console.print(Text(f"note: {text}", style="yellow"))


def print_grid(found: Grid, console: Console, style: Callable[[str], str] = lambda _: "") -> None:
    """A table and its notes; `style` gives the colour of a cell by its text."""
    console.print()
    console.print(table(found, style))
    for note in found.notes:
        console.print(Text(note, style="yellow"))


def grid(section: Section) -> Grid:
    """A section as a table; what is the same in all rows stands in its title."""
    same = [k for k in section.keys if len({r.case[k] for r in section.rows}) == 1]
    common = ", ".join(_word(key, section.rows[0].case[key]) for key in same)
    keys = [k for k in section.keys if k not in same]
    peers = _peers(section.rows)
    under = any("of_roofline" in r.more for r in section.rows)
    heads = [*keys, "rate", "spread", "share of limit"] + ["of roof"] * under
    firsts = [r.case[keys[0]] if keys else None for r in section.rows]
    changes = {i for i, (a, b) in enumerate(pairwise(firsts), 1) if a != b}
    # Lines between groups, unless every row would be one.
    breaks = changes if len(changes) < len(set(firsts)) else set()
    notes = [f"note: {note}" for note in section.notes]
    if not section.complete:
        notes.append("interrupted: rows are missing")
    return Grid(
        title=f"{section.title}; {common}" if common else section.title,
        heads=(*heads, *(word for name in peers for word in (name, "x"))),
        left=tuple(h in (*_LEFT, "share of limit") for h in heads) + (False, False) * len(peers),
        rows=[_cells(r, keys, under, peers) for r in section.rows],
        notes=notes,
        breaks=frozenset(breaks),
    )


def table(found: Grid, style: Callable[[str], str] = lambda _: "") -> Table:
    """For a terminal."""
    made = Table(title=found.title, title_justify="left", pad_edge=False)
    for head, left in zip(found.heads, found.left, strict=True):
        made.add_column(head, justify="left" if left else "right", no_wrap=True)
    for index, row in enumerate(found.rows):
        if index in found.breaks:
            made.add_section()
        made.add_row(*(Text(cell, style=style(cell)) for cell in row))
    return made


def markdown(found: Grid) -> str:
    """For a file.

    >>> print(markdown(Grid("Speed", ("format", "GB/s"), (True, False), [("q4_0", "9.5")], [])))
    ## Speed
    <BLANKLINE>
    | format | GB/s |
    |---|---:|
    | q4_0 | 9.5 |
    """
    lines = [f"## {found.title}", "", _line(found.heads)]
    lines.append("|" + "|".join("---" if left else "---:" for left in found.left) + "|")
    lines += map(_line, found.rows)
    for note in found.notes:
        lines += ["", note]
    return "\n".join(lines)


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _peers(rows: list[Row]) -> list[str]:
    """Names of those that did the same work, in the order of their appearance."""
    found = {k: 1 for r in rows for k, v in r.more.items() if isinstance(v, dict) and "times" in v}
    return list(found)


def _word(key: str, value: Any) -> str:
    """A value that must say by itself what it is.

    >>> _word("threads", 1), _word("threads", 2), _word("m", 8), _word("isa", "avx2")
    ('1 thread', '2 threads', 'm = 8', 'avx2')
    """
    if key == "threads":
        return f"{value} thread{'s' * (value > 1)}"
    return f"{key} = {value}" if isinstance(value, int) else str(value)


def _cells(r: Row, keys: list[str], under: bool, peers: list[str]) -> tuple[str, ...]:
    cells = [str(r.case[key]) for key in keys]
    cells += [
        f"{_short(r.value)} {r.unit}",
        f"±{50 * r.spread:.0f}%",
        f"{r.of_limit.median:.2f} of {_short(r.limit_value)} {r.limit}",
    ]
    if under:
        cells.append(f"{r.more['of_roofline']['median']:.2f}" if "of_roofline" in r.more else "")
    for name in peers:
        peer = r.more.get(name)
        cells += [_short(peer["value"]), f"{peer['times']['median']:.2f}"] if peer else ["", ""]
    return tuple(cells)


def _short(value: float) -> str:
    """Three figures or so.

    >>> _short(0.0123), _short(1.234), _short(27.46), _short(465.2)
    ('0.012', '1.23', '27.5', '465')
    """
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}"


def _size(nbytes: int) -> str:
    """Bytes in the unit that people use.

    >>> _size(48 << 10), _size(5 << 18), _size(48 << 20), _size(24 << 30)
    ('48 KiB', '1.25 MiB', '48 MiB', '24 GiB')
    """
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.4g} {name}"
    return f"{nbytes / 1024:g} KiB"
