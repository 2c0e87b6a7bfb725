"""`kvant imatrix MODEL --text FILE -o F`: how much each column of each weight matters."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add", "run"]

_HELP = "run a model over a text and write an importance matrix for quantize"


def add(commands: Any) -> None:
    """Add this command to the program."""
    from .console import positive

    parser = commands.add_parser("imatrix", help=_HELP, description=_HELP)
    parser.add_argument("model", metavar="MODEL", help="GGUF file")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="UTF-8 text")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help=".gguf, or .dat as of old"
    )
    parser.add_argument(
        "--ctx", type=positive, default=512, metavar="N", help="tokens in a window (default: 512)"
    )
    parser.add_argument(
        "--max-tokens", type=positive, metavar="N", help="use at most this much of the text"
    )
    parser.add_argument(
        "--output", action="store_true", help="also for the head, which is left out by default"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="default: all cores")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collect, write, and say what was not seen."""
    from .. import models
    from ..lab.collect import collect_imatrix
    from ..lab.scoring import windows
    from .console import bar, console

    if not args.out.parent.is_dir():
        raise FileNotFoundError(2, "No such folder", str(args.out.parent))
    model = models.load(args.model, threads=args.threads)
    tokenizer = model.tokenizer
    ids = tokenizer.encode(args.text.read_text(encoding="utf-8"), bos=tokenizer.add_bos)
    ctx = min(args.ctx, model.config.context_length)
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    texts = windows(ids, ctx, bos=bos, max_tokens=args.max_tokens)
    with bar() as update:
        matrix = collect_imatrix(
            model,
            texts,
            output=args.output,
            datasets=[str(args.text)],
            progress=lambda done: update("running windows", done, len(texts)),
        )
    matrix.save(args.out, legacy=args.out.suffix == ".dat")
    screen = console()
    screen.print(f"{len(texts)} windows of {ctx} tokens, {len(matrix)} weights")
    for name, coverage in matrix.coverage().items():
        if coverage.unseen:
            seen = coverage.matrices - len(coverage.unseen)
            screen.print(
                f"{name}: {seen} of {coverage.matrices} experts were reached; the others count "
                "every column alike"
            )
    screen.print(f"written: {args.out}")
    return 0
