"""`kvant run MODEL -p TEXT`: continue a text, and say how fast that went and what bounds it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..models.generation import Generation

__all__ = ["add", "run"]

_HELP = "continue a text with a model, and report speed"


def add(commands: Any) -> None:
    """Add this command to the program."""
    from .console import positive

    parser = commands.add_parser("run", help=_HELP, description=_HELP)
    parser.add_argument("model", metavar="MODEL", help="GGUF file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-p", "--prompt", metavar="TEXT", help="the text to continue")
    source.add_argument("-f", "--file", type=Path, metavar="FILE", help="the same from UTF-8")
    parser.add_argument(
        "-n", "--tokens", type=positive, default=128, metavar="N", help="at most (default: 128)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the most likely token (default), larger draws more freely",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the likeliest tokens that have this probability together",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws")
    parser.add_argument("--threads", type=positive, metavar="N", help="default: all cores")
    parser.add_argument(
        "--act",
        choices=("q8", "f32"),
        default="q8",
        help="activations of products: eight bits, or as they are (slow, for validation)",
    )
    parser.add_argument(
        "--no-pack",
        action="store_true",
        help="multiply weights where they lie in the file: less memory, slower",
    )
    parser.add_argument(
        "--ignore-eos", action="store_true", help="go on where the model would end the text"
    )
    parser.add_argument(
        "--profile", action="store_true", help="show where the time of a decoded token goes"
    )
    parser.add_argument(
        "--kv",
        metavar="HOW",
        help="keep keys and values so: lossless, balanced, compact, tiny, or codecs such as "
        "q8_0 or q8_0/q4_0 (default: f16)",
    )
    parser.add_argument(
        "--load-state", type=Path, metavar="FILE", help="go on behind what --save-state wrote"
    )
    parser.add_argument(
        "--save-state", type=Path, metavar="FILE", help="write keys and values of all tokens"
    )
    parser.add_argument("--json", action="store_true", help="text and figures as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, continue, report."""
    from .. import models
    from ..models.generation import Generation
    from .console import bar

    text = args.prompt if args.file is None else args.file.read_text(encoding="utf-8")
    model = models.load(
        args.model, act=args.act, pack=not args.no_pack, threads=args.threads, kv=args.kv
    )
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text, bos=tokenizer.add_bos and args.load_state is None)
    generation = Generation(
        model,
        ids,
        args.tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        ignore_eos=args.ignore_eos,
        profile=args.profile,
        state=args.load_state,
    )
    with bar() as update:
        model.prepare(update)
    if not args.json:
        sys.stdout.write(text)
        sys.stdout.flush()
    written: list[str] = []
    for piece in generation.pieces():
        written.append(piece)
        if not args.json:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if args.save_state is not None:
        generation.save(args.save_state)
    bandwidth = _bandwidth(args.threads) if generation.decoded else 0.0
    if args.json:
        figures = generation.figures(bandwidth)
        print(json.dumps({"text": "".join(written), **figures}, indent=2))
    else:
        print()
        _report(generation, bandwidth)
    return 0


def _bandwidth(threads: int | None) -> float:
    """Bytes per second that this machine reads, measured now."""
    import numpy as np

    from .. import threads as all_threads
    from ..bench.limits import Limits
    from ..bench.timing import turns

    limit = Limits(256 << 20).read(threads or all_threads())
    seconds = turns({"read": limit.task}, rounds=7, sample=0.05)["read"].wall
    return limit.amount * 1e9 / float(np.median(seconds))


def _report(generation: Generation, bandwidth: float) -> None:
    from rich.table import Table

    from .console import console

    screen = console(stderr=True)
    f = generation.figures(bandwidth)
    screen.print()
    screen.print(
        f"prefill {f['prompt_tokens']} tokens, {f['prefill_tokens_per_second']:.1f} tokens/s"
    )
    if not f["decoded_tokens"]:
        return
    screen.print(
        f"decode  {f['decoded_tokens']} tokens, {f['decode_tokens_per_second']:.1f} tokens/s, "
        f"{f['bytes_per_token'] / 1e6:.1f} MB/token read "
        f"({f['cache_bytes_per_token'] / 1e6:.2f} of them keys and values)"
    )
    screen.print(
        f"        {f['decode_bytes_per_second'] / 1e9:.1f} GB/s, "
        f"{100 * f['share_of_bandwidth']:.0f} % of the {bandwidth / 1e9:.1f} GB/s that reading "
        "alone reaches"
    )
    if generation.profile is None:
        return
    table = Table(title="A decoded token", title_justify="left")
    for heading in ("call", "calls", "us", "share"):
        table.add_column(heading, justify="left" if heading == "call" else "right")
    for line in f["profile"]:
        calls = "" if line["calls"] is None else f"{line['calls']:.1f}"
        table.add_row(
            line["call"], calls, f"{line['microseconds']:.1f}", f"{100 * line['share']:.1f} %"
        )
    screen.print(table)
