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
Shape = tuple[int, int, int]
SHAPES: tuple[Shape, ...] = (
    *((group, 128, 0) for group in GROUPS),
    *((4, dim, 0) for dim in DIMS if dim != 128),
    (16, 576, 512),
)


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each codec and shape: the shares of reading, and each beside the best."""
    limits = Limits(256 << 20)
    for codec in args.codecs or CODECS:
        sides = rotated(codec), rotated(codec, True)
        caches = {shape: Layers(*sides, TOKENS, *shape[:2], view=shape[2]) for shape in SHAPES}
        for threads in args.threads or sorted({1, kvant.threads()}):
            for row in _rows(args, limits, caches, threads):
                yield {"codec": codec, "threads": threads} | row


def _rows(
    args: argparse.Namespace, limits: Limits, caches: dict[Shape, Layers], threads: int
) -> Iterator[dict[str, Any]]:
    limit = limits.read(threads)
    tasks = {"read": limit.task}
    tasks |= {str(shape): cache.task(threads) for shape, cache in caches.items()}
    times = turns(tasks, rounds=args.rounds, sample=0.03)
    shares = {}
    for shape, cache in caches.items():
        work = cache.nbytes / 1e9 / limit.amount
        shares[shape] = ratio(times["read"], times[str(shape)], "wall", work=work)
    best = max(share.median for share in shares.values())
    for shape, share in shares.items():
        (group, dim, view), own = shape, times[str(shape)]
        yield {
            "group": group,
            "dim": dim,
            "value_dim": view or dim,
            "view": bool(view),
            "ms": 1e3 * float(np.median(own.wall)),
            "ms_least": 1e3 * float(own.wall.min()),
            "gops": own.rate(caches[shape].operations / 1e9, "wall"),
            "of_read": share.to_json(),
            "of_best": share.median / best,
        }


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each shape."""
    yield f"a token over {TOKENS} keys"
    yield "codec threads group  head         ms  GOP/s  of read  of the best"
    for row in rows:
        head = f"{row['dim']}/{row['value_dim']}" if row["view"] else f"{row['dim']}"
        yield (
            f"{row['codec']:5} {row['threads']:7} {row['group']:5} {head:>8} {row['ms']:7.3f} "
            f"{row['gops']:6.1f} {row['of_read']['median']:8.2f} {row['of_best']:12.2f}"
        )
