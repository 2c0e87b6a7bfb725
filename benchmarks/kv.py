"""Attention over caches beside a read of as many bytes, in turns.

    python -m benchmarks.kv [--tokens 4096 32768] [--codecs f16 q8_0 ...] [--group 4] [--dim 128]
                            [--queries 1] [--threads N] [--rounds 7] [--json FILE]
    python -m benchmarks.kv --peers     beside llama.cpp's attention over the same codes
    python -m benchmarks.kv --sweep     many groups and sizes of heads
    python -m benchmarks.kv --depth     a model after 4,096 tokens beside its start

Eight key heads. As many layers as fill 160 MB take turns, as in a decoder, so that keys and values
come from memory. Bytes are those of keys and values, once; prefill is counted in operations on keys
that a token sees.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import kvant
from kvant.bench.limits import Limits
from kvant.bench.timing import Task, turns
from kvant.kv import CODECS, KVCache

from . import kv_depth, kv_peers, kv_sweep, machine
from .kv_caches import HEADS, Layers, rotated

__all__ = ["main"]

CODECS_SHOWN = ("f16", "q8_0", "q4_0", "iq4_nl", "lm4", "lm3")
PARTS = {"peers": kv_peers, "sweep": kv_sweep, "depth": kv_depth}


def measured(
    args: argparse.Namespace, tokens: int, queries: int, threads: int
) -> Iterator[dict[str, Any]]:
    """Of each codec milliseconds, bytes and operations a second, and the share of reading."""
    limit = Limits(256 << 20).read(threads)
    tasks, caches = {"read": limit.task}, {}
    for codec in args.codecs or CODECS_SHOWN:
        sides = rotated(codec), rotated(codec, True)
        caches[codec] = Layers(*sides, tokens, args.group, args.dim, queries=queries)
        tasks[codec] = caches[codec].task(threads)
    times = turns(tasks, rounds=args.rounds, sample=0.1)
    read = times["read"].rate(limit.amount, "wall")
    for codec, cache in caches.items():
        rate = times[codec].rate(cache.nbytes / 1e9, "wall")
        yield {
            "codec": codec,
            "tokens": tokens,
            "queries": queries,
            "threads": threads,
            "group": args.group,
            "dim": args.dim,
            "ms": 1e3 * float(np.median(times[codec].wall)),
            "gb_per_second": rate,
            "read_gb_per_second": read,
            "of_read": rate / read,
            "gops": times[codec].rate(cache.operations / 1e9, "wall"),
        }


def appended(codec: str, dim: int, rounds: int) -> float:
    """Nanoseconds for a vector of `dim` elements that one thread codes and stores."""
    cache = KVCache(1, HEADS, dim, rotated(codec), rotated(codec, True))
    seq = cache.sequence()
    x = np.random.default_rng(0).standard_normal((256, HEADS, dim), dtype=np.float32)

    def run() -> None:
        seq.truncate(0)
        seq.append(0, x, x, threads=1)

    times = turns({"append": Task(run)}, rounds=rounds, sample=0.05)
    return 1e9 / times["append"].rate(2 * len(x) * HEADS, "wall")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; 0."""
    args = _options(arguments)
    found: dict[str, Any] = {"machine": machine.describe()}
    chosen = [name for name in PARTS if getattr(args, name)]
    for name in chosen:
        found[name] = list(PARTS[name].measured(args))
        print("\n".join(PARTS[name].lines(found[name])), flush=True)
    if not chosen:
        found |= _codecs(args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _codecs(args: argparse.Namespace) -> dict[str, Any]:
    """The table of codecs, and what appending costs."""
    sizes = itertools.product(args.tokens, args.queries or [1], args.threads or [kvant.threads()])
    rows = [row for size in sizes for row in measured(args, *size)]
    for row in rows:
        print(
            f"{row['codec']:7} {row['tokens']:6} tokens {row['ms']:9.3f} ms "
            f"{row['gb_per_second']:6.2f} GB/s {row['of_read']:5.2f} of read "
            f"{row['gops']:7.1f} GOP/s"
        )
    codecs = args.codecs or CODECS_SHOWN
    appends = {codec: appended(codec, args.dim, args.rounds) for codec in codecs}
    for codec, nanoseconds in appends.items():
        print(f"{codec:7} append {nanoseconds:6.0f} ns for a vector of {args.dim}, one thread")
    return {"attention": rows, "append": appends}


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kv",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    for name, part in PARTS.items():
        add(f"--{name}", action="store_true", help=str(part.__doc__).splitlines()[0])
    add("--tokens", type=int, nargs="+", default=[4096, 32768])
    add("--codecs", nargs="+", choices=CODECS, help="for --peers and --sweep f16 q8_0 q4_0")
    add("--group", type=int, default=4)
    add("--dim", type=int, default=128)
    add("--queries", type=int, nargs="+", help="default 1, for --peers 1 and 512")
    add("--threads", type=int, nargs="+", help="default all, for --peers and --sweep 1 and all")
    add("--kv", nargs="+", default=["q8_0"], help="caches of --depth: codecs or presets")
    add("--rounds", type=int, default=7)
    add("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
