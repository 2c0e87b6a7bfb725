"""`kvant sweep MODEL --formats ...`: size against divergence for many types at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add", "run"]

_HELP = "quantize a model in many ways and measure each against the original"

_DEFAULT = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_K_S,IQ4_XS,Q4_0,Q3_K_M,Q2_K"


def add(commands: Any) -> None:
    """Add this command to the program."""
    from .console import add_recipe_options, positive

    parser = commands.add_parser("sweep", help=_HELP, description=_HELP)
    parser.add_argument("model", metavar="MODEL", help="GGUF file")
    parser.add_argument(
        "--formats",
        default=_DEFAULT,
        metavar="LIST",
        help="recipes, formats and mixes (mix:4.25), separated by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="UTF-8 text to score (default: the model's own)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for sweep.json, sweep.png and report.html"
    )
    parser.add_argument(
        "--save", action="store_true", help="also write each quantized model into --out"
    )
    parser.add_argument(
        "--ctx", type=positive, default=512, metavar="N", help="tokens in a window (default: 512)"
    )
    parser.add_argument(
        "--max-tokens",
        type=positive,
        default=8192,
        metavar="N",
        help="score at most this much text (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the model's own text (default: 0)"
    )
    add_recipe_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Sweep, print the table, and say what was written."""
    from .console import command_line, overrides

    return measure(
        args.model,
        [name for name in args.formats.replace(",", " ").split() if name],
        command=command_line(args.words),
        out=args.out,
        text=args.text,
        ctx=args.ctx,
        max_tokens=args.max_tokens,
        imatrix=args.imatrix,
        overrides=overrides(args.tensor_type),
        pure=args.pure,
        save=args.save,
        threads=args.threads,
        seed=args.seed,
    )


def measure(model: str | Path, formats: list[str], *, out: Path | None, **options: Any) -> int:
    """Run a sweep with a progress bar and print what it found."""
    from ..lab.report import print_table
    from ..lab.sweep import sweep
    from .console import bar, console

    with bar() as update:
        result = sweep(model, formats, out=out, progress=update, **options)
    screen = console()
    print_table(result, screen)
    if out is not None:
        screen.print(f"written: {out / 'report.html'}, {out / 'sweep.png'}, {out / 'sweep.json'}")
    return 0
