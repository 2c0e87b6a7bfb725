"""What commands share: where they print, progress bars, options that several have."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..recipes import parse_override

__all__ = [
    "add_recipe_options",
    "bar",
    "byte_count",
    "command_line",
    "console",
    "overrides",
    "positive",
]

Update = Callable[[str, int, int], None]

_PIPE_WIDTH = 140
_MOST_BYTES = 2.0**60


def console(*, stderr: bool = False) -> Console:
    """Standard output, or error; tables keep their width when it is a file or a pipe."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False)


@contextmanager
def bar() -> Iterator[Update]:
    """A progress bar on standard error; nothing is shown where that is no terminal.

    Yields a function of (what is being done, steps done, all steps).
    """
    screen = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:<32}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    ) as progress:
        task = progress.add_task("starting", total=None)

        def update(label: str, done: int, total: int) -> None:
            progress.update(task, description=label[-32:], completed=done, total=total)

        yield update


def overrides(texts: Sequence[str]) -> list[tuple[str, str]]:
    """The values of `--tensor-type`, checked."""
    return [parse_override(text) for text in texts]


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how a type is applied."""
    parser.add_argument("--imatrix", metavar="FILE", help="importance matrix, GGUF or legacy .dat")
    parser.add_argument(
        "--tensor-type",
        action="append",
        default=[],
        metavar="REGEX=FORMAT",
        help="format of the tensors whose name matches; the first match wins; may be repeated",
    )
    parser.add_argument(
        "--pure", action="store_true", help="one format for all tensors instead of the mix"
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="threads of the encoder (default: all cores)"
    )


def positive(text: str) -> int:
    """An argument that must be a whole number above 0."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return value


def byte_count(text: str) -> int:
    """An argument that is a number of bytes, with a unit or without: 4.2GiB, 800MB, 1000000.

    >>> byte_count("1.5KiB"), byte_count("2 MB")
    (1536, 2000000)
    """
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([kmgt]?)(i?)b?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"expected a size such as 4.2GiB, got {text!r}")
    power = " kmgt".index(found[2].lower() or " ")
    count = float(found[1]) * (1024 if found[3] else 1000) ** power
    if count > _MOST_BYTES:
        raise argparse.ArgumentTypeError(f"expected a size below 2^60, got {text!r}")
    return int(count)


def command_line(argv: Sequence[str]) -> str:
    """The command as a line for a shell."""
    return shlex.join(["kvant", *argv])
