"""`kvant demo`: a sweep of a small model, to see what the lab does in a minute or two."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add", "run"]

_HELP = "sweep a small example model over a dozen types into demo/"

_MODEL = Path("examples/models/tiny-moe/model.gguf")

FORMATS = (
    *("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q4_0", "MXFP4_MOE", "Q3_K_M"),
    *("Q2_K", "q5_k", "q4_k", "nvfp4", "mix:5", "mix:4.25", "mix:3.5"),
)
_TOKENS = 8192


def add(commands: Any) -> None:
    """Add this command to the program."""
    parser = commands.add_parser("demo", help=_HELP, description=_HELP)
    parser.add_argument(
        "model", nargs="?", type=Path, metavar="MODEL", help=f"GGUF file (default: {_MODEL})"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="folder (default: demo)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Sweep the example."""
    from .console import command_line
    from .sweep import measure

    model = args.model or _example()
    return measure(
        model,
        list(FORMATS),
        out=args.out,
        max_tokens=_TOKENS,
        command=command_line(args.words),
    )


def _example() -> Path:
    """The example below the current folder, or else below the source tree of this package."""
    tree = Path(__file__).resolve().parents[3]
    return next((p for p in (_MODEL, tree / _MODEL) if p.exists()), _MODEL)
