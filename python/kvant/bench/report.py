"""A report on a terminal: the machine, and one table for each section."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .machine import warnings
from .matmul import PEERS
from .result import Report, Row, Section

__all__ = ["head_lines", "print_head", "print_section", "table"]

_LEFT = ("isa", "format", "what", "pages", "weights")


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


def print_head(report: Report, console: Console) -> None:
    """The machine, and what makes numbers from it doubtful."""
    for key, value in head_lines(report.machine):
        console.print(Text(f"{key:>16}  {value}"))
    for text in warnings(report.machine):
        console.print(Text(f"note: {text}", style="yellow"))


def print_section(section: Section, console: Console) -> None:
    """The table of a section and its notes."""
    console.print()
    console.print(table(section))
    for note in section.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    if not section.complete:
        console.print(Text("interrupted: rows are missing", style="yellow"))


def table(section: Section) -> Table:
    """A section as a rich table; what is the same in all rows stands in its title."""
    same = [k for k in section.keys if len({r.case[k] for r in section.rows}) == 1]
    common = ", ".join(_word(key, section.rows[0].case[key]) for key in same)
    keys = [k for k in section.keys if k not in same]
    peers = [p for p in PEERS if any(p in r.more for r in section.rows)]
    title = f"{section.title}; {common}" if common else section.title
    found = Table(title=title, title_justify="left", pad_edge=False)
    for key in keys:
        found.add_column(key, justify="left" if key in _LEFT else "right", no_wrap=True)
    for name in ("rate", "spread"):
        found.add_column(name, justify="right", no_wrap=True)
    found.add_column("share of limit", no_wrap=True)
    for name in peers:
        found.add_column(name, justify="right", no_wrap=True)
        found.add_column("x", justify="right", no_wrap=True)
    firsts = [r.case[keys[0]] if keys else None for r in section.rows]
    # Lines between groups, unless every row would be one.
    grouped = sum(a != b for a, b in pairwise(firsts)) < len(set(firsts))
    for index, r in enumerate(section.rows):
        if index and grouped and firsts[index] != firsts[index - 1]:
            found.add_section()
        case = (str(r.case[key]) for key in keys)
        found.add_row(*map(Text, (*case, *_numbers(r), *_beside(r, peers))))
    return found


def _word(key: str, value: Any) -> str:
    """A value that must say by itself what it is.

    >>> _word("threads", 1), _word("threads", 2), _word("m", 8), _word("isa", "avx2")
    ('1 thread', '2 threads', 'm = 8', 'avx2')
    """
    if key == "threads":
        return f"{value} thread{'s' * (value > 1)}"
    return f"{key} = {value}" if isinstance(value, int) else str(value)


def _numbers(r: Row) -> tuple[str, ...]:
    return (
        f"{_short(r.value)} {r.unit}",
        f"±{50 * r.spread:.0f}%",
        f"{r.of_limit.median:.2f} of {_short(r.limit_value)} {r.limit}",
    )


def _beside(r: Row, peers: list[str]) -> list[str]:
    cells = []
    for name in peers:
        peer = r.more.get(name)
        cells += [_short(peer["value"]), f"{peer['times']['median']:.2f}"] if peer else ["", ""]
    return cells


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
