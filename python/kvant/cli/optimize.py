"""`kvant optimize MODEL --target-bpw 4.25`: the mix of formats that loses least at a size."""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..lab.best_mix import Plan

__all__ = ["add", "run"]

# What quantizing adds to the metadata, at most.
_KEYS = 640

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
    _check(args, formats)
    model = models.load(args.model, threads=args.threads)
    ctx = min(args.ctx, model.config.context_length)
    with bar() as update:
        texts, _ = model_texts(model, args.text, ctx, args.max_tokens, args.seed, update)
        study = Study.of(args.model, texts, args.imatrix, args.threads)
        found = sensitivity(study, formats, measure=args.measure, progress=update)
        update("choosing", 0, 1)
        plan = optimize(
            found,
            target_bytes=_target_bytes(args, bench_of(study).file),
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


def _check(args: argparse.Namespace, formats: list[str]) -> None:
    """Find out at once what would only show at the end of a long run."""
    from .. import gguf
    from ..errors import ShapeError
    from ..lab.costs import candidates

    out = args.out
    if out is not None:
        if not out.parent.is_dir():
            raise FileNotFoundError(2, "No such folder", str(out.parent))
        if out.exists() and os.path.samefile(out, args.model):
            raise ShapeError(f"[optimize] expected two different files, got {out} twice")
    for name in ("target_bpw", "max_kl"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ShapeError(f"[optimize] expected a {name} above 0, got {value}")
    with gguf.open(args.model) as file:
        found = candidates(file, formats)
        if not found.sizes:
            raise ShapeError("[optimize] expected tensors that may be quantized, got none")
        target = _target_bytes(args, file)
        if args.target_bpw is not None:
            target = int(args.target_bpw * found.weights / 8)
        if target is not None and target < found.least_bytes:
            raise ShapeError(
                f"[optimize] expected a target of at least {found.least_bytes:,} bytes of tensors "
                f"with these formats, got {target:,}"
            )


def _target_bytes(args: argparse.Namespace, file: Any) -> int | None:
    """Bytes of tensors in a file of the size that is asked for.

    What a file holds besides is that of the source, a few keys more, and padding.
    """
    if args.target_size is None:
        return None
    infos = [file.tensors.info(name) for name in file.tensors]
    size = sum(os.path.getsize(path) for path in file.paths)
    besides = size - sum(info.nbytes for info in infos) + _KEYS + file.alignment * len(infos)
    return max(1, int(args.target_size - besides))


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
