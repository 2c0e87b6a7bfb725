"""`kvant eval MODEL --base BASE`: how far a model's predictions are from another's."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import Error

__all__ = ["add", "run"]

_HELP = "compare a model's predictions with a base's"
_DESCRIPTION = """\
Prints the figures of llama-perplexity --kl-divergence: perplexities and their ratio, the KL
divergence and its quantiles, changes of the probability of the right token, and how often both
find the same token the most likely.

The base is another model, or a file of its predictions: .kvl, written with --save-base, or .kld,
which llama-perplexity reads and writes too. A file brings the text with it.
"""


def add(commands: Any) -> None:
    """Add this command to the program."""
    from .console import positive

    parser = commands.add_parser(
        "eval",
        help=_HELP,
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="GGUF file")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--base", type=Path, metavar="FILE", help="GGUF, .kvl or .kld file")
    which.add_argument(
        "--save-base", type=Path, metavar="FILE", help="write MODEL's predictions to .kvl or .kld"
    )
    parser.add_argument(
        "--kv",
        metavar="HOW",
        help="MODEL keeps keys and values so: lossless, balanced, compact, tiny, or codecs such as "
        "q8_0/q4_0; without --base it is compared with itself and f16",
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text to score")
    parser.add_argument(
        "--ctx",
        type=positive,
        default=512,
        metavar="N",
        help="tokens in a window (default: 512; a base file brings its own)",
    )
    parser.add_argument("--chunks", type=positive, metavar="N", help="score at most N windows")
    parser.add_argument(
        "--mode",
        metavar="MODE",
        help="of a .kvl file: hidden (default), hidden-f16, f16 or topk",
    )
    parser.add_argument(
        "--top", type=positive, default=64, metavar="K", help="tokens kept by topk (default: 64)"
    )
    parser.add_argument(
        "--head",
        type=Path,
        metavar="FILE",
        help="GGUF file whose head belongs to the hidden states of a .kvl file (default: MODEL)",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="windows side by side (default: all cores)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate or save, and print what was found."""
    from ..lab.evaluation import evaluate
    from ..lab.saving import save_base
    from .console import bar

    if args.base is None and args.save_base is None:
        if args.kv is None:
            raise Error("[eval] expected --base, --save-base or --kv, got none of them")
        args.base = Path(args.model)
    if args.save_base is not None and args.kv is not None:
        raise Error("[eval] expected --kv without --save-base, got both")
    shared = {"chunks": args.chunks, "ctx": args.ctx, "threads": args.threads}
    with bar() as update:
        if args.base is not None:
            found = evaluate(
                args.model,
                args.base,
                args.text,
                head=args.head,
                kv=args.kv,
                progress=update,
                **shared,
            )
        else:
            if args.text is None:
                raise Error("[eval] expected --text with --save-base, got none")
            found = save_base(
                args.model,
                args.save_base,
                args.text,
                mode=args.mode,
                k=args.top,
                progress=update,
                **shared,
            )
    if args.json:
        print(_json(args, found))
    else:
        _print(args, found)
    return 0


def _json(args: argparse.Namespace, found: Any) -> str:
    from dataclasses import asdict

    from ..lab.result import plain

    base = args.base or args.save_base
    record = {"kind": "kvant.eval", "version": 1, "model": args.model, "base": str(base)}
    record["kv"] = args.kv or "f16"
    return json.dumps(record | plain(asdict(found)), indent=1, allow_nan=False)


def _print(args: argparse.Namespace, found: Any) -> None:
    from ..lab.eval_table import eval_table
    from .console import console

    screen = console()
    if args.base is not None:
        screen.print(eval_table(found, f"{Path(args.model).name} against {args.base.name}"))
        return
    error = found.errors["perplexity"]
    screen.print(
        f"{found.tokens} tokens in {found.windows} windows, PPL {found.perplexity:.6f} "
        f"+- {error:.6f}"
    )
    screen.print(f"written: {args.save_base} ({args.save_base.stat().st_size / 1e6:.1f} MB)")
