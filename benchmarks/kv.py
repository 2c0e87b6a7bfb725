"""Attention over caches beside a read of as many bytes, in turns.

    python -m benchmarks.kv [--tokens 4096 32768] [--codecs f16 q8_0 ...] [--group 4] [--dim 128]
                            [--queries 1] [--threads N] [--rounds 7] [--json FILE]

Eight key heads. As many layers as fill 160 MB take turns, as in a decoder, so that keys and values
come from memory. Bytes are those of keys and values, once; prefill is counted in products.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import kvant
from kvant.bench.limits import Limits
from kvant.bench.timing import Task, turns
from kvant.kv import CODECS, KVCache, KVSide

HEADS = 8
BYTES = 160e6
CODECS_SHOWN = ("f16", "q8_0", "q4_0", "iq4_nl", "lm4", "lm3")


def side(codec: str, value: bool) -> KVSide:
    """A quantized codec with its rotation, as presets use it."""
    made = KVSide.of(codec, value)
    return made if not made.quantized or made.rotate else KVSide(codec, rotate="auto")


def attention(
    codec: str, tokens: int, group: int, dim: int, queries: int, threads: int
) -> tuple[float, Any]:
    """Bytes of one layer's keys and values, and a call of attention, each time of the next."""
    k, v = side(codec, False), side(codec, True)
    nbytes = HEADS * tokens * dim * (k.bits(dim) + v.bits(dim)) / 8
    layers = max(1, int(BYTES / nbytes)) if queries == 1 else 1
    cache = KVCache(layers, HEADS, dim, k, v)
    seq = cache.sequence()
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((tokens, HEADS, dim), dtype=np.float32) for _ in range(2))
    for layer in range(layers):
        seq.append(layer, x, y)
    q = rng.standard_normal((queries, HEADS * group, dim), dtype=np.float32)
    out = np.empty_like(q)
    turn = iter(range(1 << 60))

    def run() -> None:
        seq.attend(next(turn) % layers, q, out=out, threads=threads)

    return nbytes, run


def measured(args: argparse.Namespace, tokens: int) -> list[dict[str, Any]]:
    """Of each codec milliseconds, bytes and products a second, and the share of reading."""
    limit = Limits(256 << 20).read(args.threads)
    tasks, sizes = {"read": limit.task}, {}
    for codec in args.codecs:
        sizes[codec], run = attention(
            codec, tokens, args.group, args.dim, args.queries, args.threads
        )
        tasks[codec] = Task(run)
    times = turns(tasks, rounds=args.rounds, sample=0.1)
    read = times["read"].rate(limit.amount, "wall")
    rows = []
    for codec in args.codecs:
        rate = times[codec].rate(sizes[codec] / 1e9, "wall")
        seconds = sizes[codec] / 1e9 / rate
        products = 4 * args.queries * tokens * HEADS * args.group * args.dim
        rows.append(
            {
                "codec": codec,
                "tokens": tokens,
                "queries": args.queries,
                "group": args.group,
                "dim": args.dim,
                "ms": 1e3 * seconds,
                "gb_per_second": rate,
                "read_gb_per_second": read,
                "of_read": rate / read,
                "gflops": products / seconds / 1e9,
            }
        )
    return rows


def appended(codec: str, dim: int, rounds: int) -> float:
    """Nanoseconds for a vector of `dim` elements that one thread codes and stores."""
    cache = KVCache(1, HEADS, dim, side(codec, False), side(codec, True))
    seq = cache.sequence()
    x = np.random.default_rng(0).standard_normal((256, HEADS, dim), dtype=np.float32)

    def run() -> None:
        seq.truncate(0)
        seq.append(0, x, x, threads=1)

    times = turns({"append": Task(run)}, rounds=rounds, sample=0.05)
    return 1e9 / times["append"].rate(2 * len(x) * HEADS, "wall")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS_SHOWN))
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--threads", type=int, default=kvant.threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = [row for tokens in args.tokens for row in measured(args, tokens)]
    for row in rows:
        print(
            f"{row['codec']:7} {row['tokens']:6} tokens {row['ms']:9.3f} ms "
            f"{row['gb_per_second']:6.2f} GB/s {row['of_read']:5.2f} of read "
            f"{row['gflops']:7.1f} GF/s"
        )
    appends = {codec: appended(codec, args.dim, args.rounds) for codec in args.codecs}
    for codec, nanoseconds in appends.items():
        print(f"{codec:7} append {nanoseconds:6.0f} ns for a vector of {args.dim}, one thread")
    if args.json:
        args.json.write_text(json.dumps({"attention": rows, "append": appends}, indent=1))


if __name__ == "__main__":
    main()
