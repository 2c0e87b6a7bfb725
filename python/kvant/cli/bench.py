"""`kvant bench WHAT...`: what this machine gives, and what the library makes of it."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["add", "add_sizes", "run", "settings_of"]

_HELP = "measure this machine and the library on it"

WHAT = ("bandwidth", "compute", "codecs", "matmul", "experts")
_DESCRIPTION = """\
bandwidth  GB/s of memory: read, copy, store, by threads and pages
compute    GOP/s of int8 and f32 in registers, by instruction set and threads
codecs     GB/s of encoding and decoding, by format
matmul     matrix products by format and number of rows: GB/s for m = 1, GOP/s for more
experts    the same of feed-forward networks of which each row asks 8 of 128 experts

Each rate stands beside a limit of this machine that was measured in turns with it.
"""


def add(commands: Any) -> None:
    """Add this command to the program."""
    parser = commands.add_parser(
        "bench",
        help=_HELP,
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="+", choices=WHAT, metavar="WHAT", help=", ".join(WHAT))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw the roofline of this machine there"
    )
    parser.add_argument("--vs", choices=["ggml"], help="time llama-cpp-python's ggml beside kvant")
    add_sizes(parser)
    parser.set_defaults(run=run)


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Options that say what is measured; `settings_of` reads them."""
    from .console import positive

    parser.add_argument(
        "--formats", type=_words, default=[], metavar="LIST", help="separated by commas"
    )
    parser.add_argument(
        "--threads",
        type=_numbers,
        default=[],
        metavar="LIST",
        help="numbers of threads (default: 1, 2, 4, ... up to all cores)",
    )
    parser.add_argument(
        "--isa",
        type=_words,
        default=[],
        metavar="LIST",
        help="instruction sets (default: all in compute, else the one in use)",
    )
    parser.add_argument(
        "--tokens", type=_numbers, default=[], metavar="LIST", help="rows m of x (1,8,32,512)"
    )
    parser.add_argument(
        "--shape", type=_sizes(2), default=(), metavar="NxK", help="of weights (14336x4096)"
    )
    parser.add_argument(
        "--experts",
        type=_sizes(4),
        default=(),
        metavar="ExTxFxK",
        help="experts, how many a row asks, f and k (128x8x768x2048)",
    )
    parser.add_argument(
        "--size",
        type=positive,
        metavar="MIB",
        help="memory that no cache holds (default: 320, or four times the last-level cache)",
    )
    parser.add_argument("--rounds", type=positive, metavar="N", help="turns of each (default: 7)")
    parser.add_argument(
        "--quick", action="store_true", help="smaller and shorter: a look, not a measurement"
    )


def settings_of(args: argparse.Namespace, **chosen: Any) -> Any:
    """Settings from the options; `chosen` is for what the command line leaves open."""
    from ..bench import settings

    given = {
        "threads": args.threads,
        "isas": args.isa,
        "formats": args.formats,
        "tokens": args.tokens,
        "shape": args.shape,
        "experts": args.experts,
        "memory": args.size << 20 if args.size else None,
        "rounds": args.rounds,
    }
    return settings(**chosen | {k: v for k, v in given.items() if v}, quick=args.quick)


def run(args: argparse.Namespace) -> int:
    """Measure, print, write; Ctrl-C keeps what was measured so far."""
    from ..bench.machine import machine, warnings
    from ..bench.parts import measure
    from ..bench.report import grid, head_lines, print_grid, print_head
    from ..bench.result import Report
    from .console import bar, command_line, console

    wanted = settings_of(args)
    peer = _peer(args.vs)
    for path in filter(None, (args.json, args.plot)):
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    screen = console()
    report = Report(machine(), wanted, command_line(args.words))
    if peer is not None:
        report.machine["ggml"] = peer.version
    print_head(head_lines(report.machine), warnings(report.machine), screen)
    interrupted = False
    for name in dict.fromkeys(args.what):
        try:
            with bar() as update:
                measure(name, report, wanted, peer, update)
        except KeyboardInterrupt:
            interrupted = True
        print_grid(grid(report.sections[-1]), screen)
        if interrupted:
            break
    _write(args, report)
    if interrupted:
        print("interrupted: the rows so far are kept", file=sys.stderr)
    return 130 if interrupted else 0


def _peer(name: str | None) -> Any:
    if name is None:
        return None
    from ..bench.ggml import ggml
    from ..errors import Error

    found = ggml()
    if found is None:
        raise Error("[bench] expected llama-cpp-python and cffi for --vs ggml, got none that loads")
    return found


def _write(args: argparse.Namespace, report: Any) -> None:
    from ..gguf.replace import replacing

    if args.json:
        with replacing(args.json) as file:
            file.write((json.dumps(report.to_json(), indent=1) + "\n").encode())
    if args.plot:
        from ..bench.plot import roofline_png

        png = roofline_png(report)
        with replacing(args.plot) as file:
            file.write(png)


def _words(text: str) -> list[str]:
    return [word for word in text.replace(",", " ").split() if word]


def _numbers(text: str) -> list[int]:
    from .console import positive

    return [positive(word) for word in _words(text)]


def _sizes(count: int) -> Callable[[str], tuple[int, ...]]:
    example = {2: "14336x4096", 4: "128x8x768x2048"}[count]

    def read(text: str) -> tuple[int, ...]:
        found = tuple(int(part) if part.isdecimal() else 0 for part in text.split("x"))
        if len(found) != count or min(found) < 1:
            raise argparse.ArgumentTypeError(f"expected sizes such as {example}, got {text!r}")
        return found

    return read
