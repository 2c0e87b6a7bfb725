"""`kvant kv study MODEL --text FILE`: what codecs cost a model's cache of keys and values."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..lab import KVDump

__all__ = ["add", "run"]

_HELP = "measure what codecs cost the cache of keys and values, and choose some"
_DESCRIPTION = """\
Codes keys alone and values alone, in every layer, and compares attention with what it should be.
With a goal, --budget-bits or --max-kl, a codec is chosen for each layer and side.

A codec may be followed by words: q4_0+rot rotates rows, +signs with random signs, +mean takes the
mean off keys, +eq equalizes their channels.
"""


def add(commands: Any) -> None:
    """Add this command to the program."""
    from ..lab.kv_sides import DEFAULT_CODECS
    from .console import positive

    parser = commands.add_parser("kv", help=_HELP, description=_HELP)
    parts = parser.add_subparsers(dest="part", metavar="study", required=True)
    study = parts.add_parser(
        "study",
        help=_HELP,
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study.add_argument("model", metavar="MODEL", help="GGUF file, or an .npz file of --dump")
    study.add_argument(
        "--text", type=Path, metavar="FILE", help="UTF-8 text to read (default: the model's own)"
    )
    study.add_argument(
        "--ctx", type=positive, default=512, metavar="N", help="tokens to read (default: 512)"
    )
    study.add_argument(
        "--codecs",
        default=",".join(DEFAULT_CODECS),
        metavar="LIST",
        help="of keys, and without mean and eq of values (default: %(default)s)",
    )
    study.add_argument("--sink", type=_count, default=0, metavar="N", help="first tokens, exact")
    study.add_argument("--tail", type=_count, default=0, metavar="N", help="last tokens, exact")
    study.add_argument(
        "--queries", type=positive, default=128, metavar="N", help="to look at (default: 128)"
    )
    goal = study.add_mutually_exclusive_group()
    goal.add_argument("--budget-bits", type=float, metavar="B", help="choose at most B bits")
    goal.add_argument("--max-kl", type=float, metavar="X", help="choose at most X nats a layer")
    study.add_argument(
        "--context",
        type=positive,
        metavar="N",
        help="tokens of a sequence, for the size of layers with windows",
    )
    study.add_argument("--layers", action="store_true", help="also a table of every layer")
    study.add_argument("--json", action="store_true", help="print everything as JSON")
    study.add_argument("--plot", type=Path, metavar="FILE.png", help="draw bits against cost")
    study.add_argument(
        "--calibration", type=Path, metavar="FILE.npz", help="write means and factors of keys"
    )
    study.add_argument(
        "--dump", type=Path, metavar="FILE.npz", help="write queries, keys and values"
    )
    study.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the model's own text (default: 0)"
    )
    study.add_argument("--threads", type=positive, metavar="N", help="default: all cores")
    study.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, choose, print, write."""
    from ..errors import ShapeError
    from ..lab import kv_optimize, kv_study
    from .console import bar, console

    for path in (args.plot, args.calibration, args.dump):
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(2, "No such folder", str(path.parent))
    for name in ("budget_bits", "max_kl"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ShapeError(f"[kv] expected a {name} above 0, got {value}")
    with bar() as update:
        found = kv_study(
            _dump(args, update),
            [name for name in args.codecs.replace(",", " ").split() if name],
            sink=args.sink,
            tail=args.tail,
            rows=args.queries,
            name=Path(args.model).name,
            progress=update,
        )
    plan = None
    if args.budget_bits is not None or args.max_kl is not None:
        plan = kv_optimize(found, args.budget_bits, args.max_kl, context=args.context)
    if args.calibration is not None:
        found.calibration.save(args.calibration)
    if args.plot is not None:
        found.plot(args.plot)
    if args.json:
        record = found.to_json() | {"plan": None if plan is None else plan.to_json()}
        print(json.dumps(record, indent=1, allow_nan=False))
        return 0
    screen = console()
    screen.print(found.text(screen.width, args.layers), soft_wrap=True, markup=False)
    if plan is not None:
        screen.print(f"\n{plan.text()}", soft_wrap=True, markup=False)
    written = [str(path) for path in (args.plot, args.calibration, args.dump) if path is not None]
    if written:
        screen.print(f"written: {', '.join(written)}", soft_wrap=True, markup=False)
    return 0


def _dump(args: argparse.Namespace, update: Any) -> KVDump:
    from .. import models
    from ..lab import KVDump, capture
    from ..lab.scoring import model_texts

    if Path(args.model).suffix == ".npz":
        return KVDump.load(args.model)
    model = models.load(args.model, threads=args.threads)
    ctx = min(args.ctx, model.config.context_length)
    texts, _ = model_texts(model, args.text, ctx, ctx, args.seed, update)
    update("reading text", 0, 1)
    dump = capture(model, texts[0].tokens)
    if args.dump is not None:
        dump.save(args.dump)
    return dump


def _count(text: str) -> int:
    """An argument that must be a whole number, or 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}")
    return int(text)
