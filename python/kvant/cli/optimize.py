"""`kvant optimize MODEL --target-bpw 4.25`: the mix of formats that loses least at a size."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..lab.best_mix import Plan

__all__ = ["add", "run"]

_HELP = "choose a format for every tensor: least loss at a size, or smallest at a loss"


def add(commands: Any) -> None:
    """Add this command to the program."""
    from ..lab.costs import DEFAULT_FORMATS
    from .console import byte_count, positive

    parser = commands.add_parser("optimize", help=_HELP, description=_HELP)
    parser.add_argument("model", metavar="MODEL", help="GGUF file with float weights")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--target-size", type=byte_count, metavar="SIZE", help="of the file, such as 4.2GiB"
    )
    goal.add_argument("--target-bpw", type=float, metavar="B", help="bits for each weight")
    goal.add_argument("--max-kl", type=float, metavar="X", help="mean KL divergence, in nats")
    parser.add_argument(
        "--formats",
        default=",".join(DEFAULT_FORMATS),
        metavar="LIST",
        help="to choose from (default: %(default)s)",
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="write the model there")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="UTF-8 text to measure with (default: its own)"
    )
    parser.add_argument(
        "--ctx", type=positive, default=512, metavar="N", help="tokens in a window (default: 512)"
    )
    parser.add_argument(
        "--max-tokens",
        type=positive,
        default=8192,
        metavar="N",
        help="measure with at most this much text (default: %(default)s)",
    )
    parser.add_argument(
        "--measure",
        choices=("one", "all"),
        default="one",
        help="runs for each tensor: one, from which its formats are estimated (default), or all",
    )
    parser.add_argument("--imatrix", metavar="FILE", help="importance matrix for the encoders")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the model's own text")
    parser.add_argument("--threads", type=positive, metavar="N", help="default: all cores")
    parser.add_argument("--json", action="store_true", help="the plan as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, choose, print, write."""
    from .. import models
    from ..lab.best_mix import optimize
    from ..lab.costs import sensitivity
    from ..lab.scoring import model_texts
    from ..lab.study import Study, bench_of
    from .console import bar, console

    formats = [name for name in args.formats.replace(",", " ").split() if name]
    model = models.load(args.model, threads=args.threads)
    ctx = min(args.ctx, model.config.context_length)
    with bar() as update:
        texts, _ = model_texts(model, args.text, ctx, args.max_tokens, args.seed, update)
        study = Study.of(args.model, texts, args.imatrix, args.threads)
        found = sensitivity(study, formats, measure=args.measure, progress=update)
        update("choosing", 0, 1)
        target = args.target_size
        if target is not None:
            target = max(1, target - _header_bytes(bench_of(study).file))
        plan = optimize(
            found,
            target_bytes=target,
            target_bpw=args.target_bpw,
            max_kl=args.max_kl,
            study=study,
        )
        if args.out is not None:
            plan.write(args.model, str(args.out), args.imatrix, args.threads, update)
    if args.json:
        print(json.dumps(plan.as_json(), indent=1))
        return 0
    screen = console()
    _print(plan, screen)
    if args.out is not None:
        size = args.out.stat().st_size
        screen.print(f"written: {args.out}, {size:,} bytes")
    return 0


def _header_bytes(file: Any) -> int:
    """What a file has besides its tensors, as the model's own has it."""
    size = sum(os.path.getsize(path) for path in file.paths)
    return int(size - sum(file.tensors.info(name).nbytes for name in file.tensors))


def _print(plan: Plan, screen: Any) -> None:
    from rich.table import Table

    table = Table()
    for heading in ("tensor", "format", "KiB", "cost (nats)"):
        table.add_column(heading, justify="left" if heading in ("tensor", "format") else "right")
    for name, choice in plan.choices.items():
        table.add_row(name, choice.format, f"{choice.nbytes / 1024:,.0f}", f"{choice.cost:.2e}")
    screen.print(table)
    for line in plan.llama_quantize_lines():
        screen.print(line, soft_wrap=True)
    screen.print(
        f"\n{plan.nbytes:,} bytes of tensors, {plan.bits_per_weight:.3f} bits per weight; "
        f"mean KL predicted {plan.predicted_kl:.4g}"
        + ("" if plan.divergence is None else f", measured {plan.divergence.kl_mean:.4g}")
    )
