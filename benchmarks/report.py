"""`python -m benchmarks.report`: the tables, with a mark beside each bar; and a file of numbers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import kvant

from . import cases, decode, encode, machine, threads, wheel
from .section import Section

__all__ = ["main"]

_PARTS = ("encode", "threads", "decode", "wheel")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; returns 0 whether or not the bars are met."""
    options = _options(arguments)
    settings = cases.QUICK if options.quick else cases.Settings()
    if options.wall:
        settings = dataclasses.replace(settings, clock="wall")
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    head = machine.describe(settings)
    warnings = machine.warnings(head)
    for key, value in head.items():
        console.print(Text(f"{key:>26}  {value}"))
    for text in warnings:
        console.print(Text(f"warning: {text}", style="yellow"))
    sections = []
    for part in options.only or _PARTS:
        console.print()
        section = _measure(part, settings, options.formats)
        _print(console, section)
        sections.append(section)
    _summary(console, sections)
    if options.json:
        result = {"machine": head, "warnings": warnings}
        _write(options.json, result | {s.name: s.to_json() for s in sections})
        console.print(f"wrote {options.json}")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds")
    parser.add_argument("--only", choices=_PARTS, action="append", help="this part (repeatable)")
    parser.add_argument(
        "--formats", nargs="+", default=[], metavar="F", choices=[f.name for f in kvant.formats()]
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    parser.add_argument(
        "--wall",
        action="store_true",
        help="wall clock for one-threaded work too, instead of the thread's processor time",
    )
    return parser.parse_args(arguments)


def _measure(part: str, settings: cases.Settings, formats: list[str]) -> Section:
    if part == "encode":
        return encode.run(settings, formats)
    if part == "threads":
        return threads.run(settings, formats)
    if part == "decode":
        return decode.run(settings, formats)
    return wheel.run(settings)


def _print(console: Console, section: Section) -> None:
    table = Table(title=section.title, title_justify="left", pad_edge=False)
    for index, column in enumerate(section.columns):
        left = index == 0 or column in ("isa", "bar")
        table.add_column(column, justify="left" if left else "right")
    previous = None
    for cells in section.cells:
        shown = list(cells)
        if cells[0] == previous:
            shown[0] = ""
        elif previous is not None and len(section.cells) > len({c[0] for c in section.cells}):
            table.add_section()
        previous = cells[0]
        style = "red" if "FAIL" in cells[-1] else "green" if "pass" in cells[-1] else ""
        table.add_row(*map(Text, shown[:-1]), Text(shown[-1], style=style))
    console.print(table)
    if section.waited and max(section.waited) > 0.05:
        share = f"{100 * max(section.waited):.0f} %"
        section.notes.append(f"samples waited for a processor up to {share} of their wall time")
    for note in section.notes:
        console.print(Text(note, style="yellow"))


def _summary(console: Console, sections: list[Section]) -> None:
    checks = [c for s in sections for c in s.checks]
    missed = [c for c in checks if not c.passed]
    console.print(f"\n{len(checks) - len(missed)} of {len(checks)} bars met")
    for c in missed:
        sign = "at most" if c.at_most else "at least"
        console.print(Text(f"missed: {c.what}: {c.value:.2f}, {sign} {c.bar:g}", style="red"))


def _write(path: Path, result: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(main())
