"""Decoding over caches of many shapes: heads of a group, elements of a head."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

import kvant
from kvant.bench.limits import Limits
from kvant.bench.timing import ratio, turns

from .kv_caches import Layers, rotated

__all__ = ["lines", "measured"]

CODECS = ("q8_0", "q4_0", "f16")
TOKENS = 4096
GROUPS = (1, 2, 4, 8, 16)
DIMS = (64, 80, 96, 128, 256, 512)
# Group, elements of a key, elements of a value that is a view of it (0: values of their own).
SHAPES = (
    *((group, 128, 0) for group in GROUPS),
    *((4, dim, 0) for dim in DIMS if dim != 128),
    (16, 576, 512),
)


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each codec and shape: the shares of reading, and each beside the best."""
    limits = Limits(256 << 20)
    for threads in args.threads or sorted({1, kvant.threads()}):
        for codec in args.codecs or CODECS:
            yield from _codec(args, limits, codec, threads)


def _codec(
    args: argparse.Namespace, limits: Limits, codec: str, threads: int
) -> Iterator[dict[str, Any]]:
    limit = limits.read(threads)
    tasks, caches = {"read": limit.task}, {}
    for shape in SHAPES:
        group, dim, view = shape
        sides = rotated(codec), rotated(codec, True)
        caches[shape] = Layers(*sides, TOKENS, group, dim, view=view)
        tasks[str(shape)] = caches[shape].task(threads)
    times = turns(tasks, rounds=args.rounds, sample=0.03)
    shares = {}
    for shape, cache in caches.items():
        work = cache.nbytes / 1e9 / limit.amount
        shares[shape] = ratio(times["read"], times[str(shape)], "wall", work=work)
    best = max(share.median for share in shares.values())
    for shape, share in shares.items():
        group, dim, view = shape
        yield {
            "codec": codec,
            "threads": threads,
            "group": group,
            "dim": dim,
            "value_dim": view or dim,
            "view": bool(view),
            "ms": 1e3 * float(np.median(times[str(shape)].wall)),
            "of_read": share.to_json(),
            "of_best": share.median / best,
        }


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each shape."""
    yield f"a token over {TOKENS} keys: codec threads group head   ms   of read  of the best"
    for row in rows:
        head = f"{row['dim']}/{row['value_dim']}" if row["view"] else f"{row['dim']}"
        yield (
            f"{row['codec']:6} {row['threads']:3} {row['group']:4} {head:>8} {row['ms']:8.3f} "
            f"{row['of_read']['median']:6.2f} {row['of_best']:6.2f}"
        )
