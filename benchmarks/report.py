"""`python -m benchmarks.report`: everything that is measured, as tables, numbers and a roofline.

With `--out FOLDER` it writes bench.json, bench.md and roofline.png there, anew after each part.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

import kvant
from kvant.bench import Report
from kvant.bench.parts import measure
from kvant.bench.plot import roofline_png
from kvant.bench.report import Grid, grid, markdown, print_grid, print_head
from kvant.bench.result import Update, gather
from kvant.cli.bench import add_sizes, settings_of
from kvant.cli.console import bar
from kvant.gguf.replace import replacing

from . import cases, decode, encode, machine, peers, threads, wheel
from .section import Section

__all__ = ["main"]

_OWN = {"encode": encode.plan, "threads": threads.plan, "decode": decode.plan, "wheel": wheel.plan}
_PARTS = ("bandwidth", "compute", "encode", "threads", "decode", "matmul", "experts", "wheel")
_TOKENS, _EXPERT_TOKENS = (1, 8, 32, 512), (1, 32, 512)
_EXPERT_FORMATS = ("q4_0", "q4_k")
_FILES = ("bench.json", "bench.md", "roofline.png")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; 0 whether or not the bars are met, 2 for an error, 130 for Ctrl-C."""
    words = sys.argv[1:] if arguments is None else arguments
    options = _options(words)
    try:
        return _run(options, shlex.join(["python", "-m", "benchmarks.report", *words]))
    except (kvant.Error, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--only", choices=_PARTS, action="append", help="this part (repeatable)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the three files there")
    parser.add_argument(
        "--wall",
        action="store_true",
        help="wall clock for one-threaded encoding and decoding, instead of processor time",
    )
    add_sizes(parser)
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace, command: str) -> int:
    most = kvant.threads()
    wanted = settings_of(
        options,
        threads=sorted({1, most}),
        formats=[f.name for f in kvant.formats()],
        tokens=_TOKENS,
        unpacked=[1],
    )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    whole = _Whole(Report(machine.describe(), wanted, command), _codec_settings(options))
    print_head(machine.lines(whole.about), whole.warnings, console)
    interrupted = False
    for name in dict.fromkeys(options.only or _PARTS):
        try:
            with _progress(name) as update:
                whole.measure(name, options, update)
        except KeyboardInterrupt:
            interrupted = True
        print_grid(_grid(whole.parts[-1]), console, _colour)
        if options.out:
            whole.write(options.out)
        if interrupted:
            raise KeyboardInterrupt
    _summary(console, [part for part in whole.parts if isinstance(part, Section)])
    if options.out:
        console.print(Text(f"wrote {options.out}: {', '.join(_FILES)}"))
    return 0


def _codec_settings(options: argparse.Namespace) -> cases.Settings:
    found = cases.QUICK if options.quick else cases.Settings()
    rounds = options.rounds or found.rounds
    return dataclasses.replace(found, rounds=rounds, clock="wall" if options.wall else "cpu")


class _Whole:
    """What was measured so far, of parts of kvant.bench and of those beside this file."""

    def __init__(self, report: Report, codec_settings: cases.Settings) -> None:
        self.report = report
        self.about = report.machine
        self.codec_settings = codec_settings
        self.warnings = machine.warnings(self.about)
        self.parts: list[Any] = []

    def measure(self, name: str, options: argparse.Namespace, update: Update) -> None:
        """Measure a part; it is kept from the start, so that Ctrl-C loses no rows."""
        if name in _OWN:
            section, steps = _OWN[name](self.codec_settings, options.formats)
            self.parts.append(section)
            gather(section, steps, update)
            return
        chosen = self.report.settings
        if name == "experts":
            few = tuple(f for f in chosen.formats if f in _EXPERT_FORMATS)
            many = tuple(options.tokens) or _EXPERT_TOKENS
            chosen = dataclasses.replace(chosen, formats=few, tokens=many)
        try:
            measure(name, self.report, chosen, peers.ggml(), update)
        finally:
            self.parts.append(self.report.sections[-1])

    def to_json(self) -> dict[str, Any]:
        """The layout of `kvant bench --json`, with more parts in it."""
        result = self.report.to_json()
        result["complete"] = all(part.complete for part in self.parts)
        result["warnings"] = self.warnings
        result["settings"]["encode_decode"] = dataclasses.asdict(self.codec_settings)
        result["sections"] = {part.name: part.to_json() for part in self.parts}
        return result

    def to_markdown(self) -> str:
        """The tables."""
        head = [f"# {machine.heading(self.about)}", "", "| | |", "|---|---|"]
        head += [f"| {key} | {value} |" for key, value in machine.lines(self.about)]
        head += [f"| command | `{self.report.command}` |"]
        head += [f"\n{text}" for text in self.warnings]
        tables = [markdown(_grid(part)) for part in self.parts]
        return "\n".join(head) + "\n\n" + "\n\n".join(tables) + "\n"

    def write(self, folder: Path) -> None:
        """Numbers, tables and the roofline; each file is complete or as it was."""
        contents = (
            (json.dumps(self.to_json(), indent=1) + "\n").encode(),
            self.to_markdown().encode(),
            roofline_png(self.report),
        )
        for name, content in zip(_FILES, contents, strict=True):
            with replacing(folder / name) as file:
                file.write(content)


@contextmanager
def _progress(part: str) -> Iterator[Update]:
    """A bar on a terminal, else a line for each step."""
    if sys.stderr.isatty():
        with bar() as update:
            yield update
    else:
        yield partial(_say, part)


def _say(part: str, label: str, done: int, total: int) -> None:
    print(f"{part} {done + 1}/{total}: {label}", file=sys.stderr, flush=True)


def _grid(part: Any) -> Grid:
    return part.grid() if isinstance(part, Section) else grid(part)


def _colour(text: str) -> str:
    return "red" if "FAIL" in text else "green" if text.startswith("pass") else ""


def _summary(console: Console, sections: list[Section]) -> None:
    checks = [check for section in sections for line in section.rows for check in line.checks]
    missed = [c for c in checks if not c.passed]
    console.print(f"\n{len(checks) - len(missed)} of {len(checks)} bars met")
    for c in missed:
        sign = "at most" if c.at_most else "at least"
        console.print(Text(f"missed: {c.what}: {c.value:.2f}, {sign} {c.bar:g}", style="red"))


if __name__ == "__main__":
    raise SystemExit(main())
