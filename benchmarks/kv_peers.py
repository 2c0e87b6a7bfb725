"""Attention over caches beside llama.cpp's and a read of as many bytes, in turns.

Both sides have the same codes: ours as pages, ggml's as rows, head by head. Their results are
compared before anything is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvant
from kvant.bench.ggml import Ggml, ggml
from kvant.bench.limits import Limits
from kvant.bench.memory import buffer
from kvant.bench.timing import Ratio, Task, Times, ratio, turns

from .ggml_attention import Attention
from .kv_caches import Layers

__all__ = ["CODECS", "WANTED", "beside_ik", "lines", "measured"]

CODECS = ("f16", "q8_0", "q4_0")
GROUP, DIM, QUERIES = 4, 128, 512
# Times the speed of llama.cpp that decoding is to have, and of ik_llama.cpp.
WANTED = {"f16": 3.0, "q8_0": 10.0, "q4_0": 25.0}
WANTED_IK = {"f16": 1.9, "q8_0": 2.2, "q4_0": 3.5}
WANTED_IK_PREFILL = 1.5
# Both sides take queries in eight bits, or in f16; ours take weights of values in eight, too.
TOLERANCE = 0.02
# Seconds of one call; what would take longer is left out.
LONGEST = 10.0

# ik_llama.cpp 8337e4cd3 in its best layout (head by head; q4_0 token by token) on two cores of a
# Zen 4: with one thread and with two, GB/s of a token over 4,096 and 32,768 keys, then 10^9
# operations a second of 512 tokens.
IK_DECODE = {
    "f16": {4096: (8.10, 15.98), 32768: (7.58, 14.46)},
    "q8_0": {4096: (6.44, 12.61), 32768: (6.48, 12.69)},
    "q4_0": {4096: (3.19, 6.80), 32768: (2.67, 4.13)},
}
IK_PREFILL = {
    "f16": {4096: (78.0, 160.0), 32768: (66.0, 138.0)},
    "q8_0": {4096: (120.0, 233.0), 32768: (110.0, 237.0)},
    "q4_0": {4096: (76.0, 143.0), 32768: (74.0, 152.0)},
}
# What that machine read meanwhile in GB/s, at least and at most, and its products in registers.
IK_READ = ((27.0, 31.0), (34.0, 58.0))
IK_PEAK = {"f32": (116.0, 231.0), "int8": (465.0, 924.0)}


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of decoding and of prefill, for each number of threads."""
    peer = ggml()
    limits = Limits(256 << 20)
    slow: dict[tuple[str, int, int], float] = {}
    for queries in args.queries or (1, QUERIES):
        for tokens in sorted(args.tokens):
            for threads in args.threads or sorted({1, kvant.threads()}):
                yield from _case(args, peer, limits, slow, tokens, queries, threads)


def _case(
    args: argparse.Namespace,
    peer: Ggml | None,
    limits: Limits,
    slow: dict[tuple[str, int, int], float],
    tokens: int,
    queries: int,
    threads: int,
) -> Iterator[dict[str, Any]]:
    """All codecs of one size; `slow` keeps seconds for each key, to leave out what takes long."""
    formats = {info.name for info in kvant.formats()}
    limit = limits.read(threads)
    tasks = {"read": limit.task}
    peaks = {what: limits.products(what, threads) for what in ("f32", "int8")}
    if queries > 1:
        tasks |= {what: peak.task for what, peak in peaks.items()}
    caches, errors, graphs = {}, {}, []
    for codec in args.codecs or CODECS:
        cache = Layers(codec, codec, tokens, GROUP, DIM, queries=queries)
        caches[codec] = cache
        tasks[codec] = cache.task(threads)
        expected = slow.get((codec, queries, threads), 0.0) * tokens
        if peer is None or codec not in formats or expected > LONGEST:
            continue
        graph = _theirs(peer, codec, cache, threads)
        graphs.append(graph)
        errors[codec] = _difference(codec, cache, graph)
        tasks[f"ggml {codec}"] = Task(graph)
    rounds, sample = (args.rounds, 0.05) if queries == 1 else (min(args.rounds, 3), 0.0)
    times = turns(tasks, rounds=rounds, sample=sample)
    for graph in graphs:
        graph.close()
    for codec, cache in caches.items():
        own, theirs = times[codec], times.get(f"ggml {codec}")
        if theirs:
            slow[codec, queries, threads] = float(np.median(theirs.wall)) / tokens
        row: dict[str, Any] = {
            "codec": codec,
            "tokens": tokens,
            "queries": queries,
            "threads": threads,
            "rounds": rounds,
            **_speed("", own, cache),
            "read_gb_per_second": times["read"].rate(limit.amount, "wall"),
            "of_read": _share(times["read"], own, cache.nbytes / 1e9 / limit.amount).to_json(),
        }
        if queries > 1:
            row |= {
                f"of_{what}": _of(times[what], own, cache, peaks[what].amount) for what in peaks
            }
        if theirs:
            row |= _speed("ggml_", theirs, cache)
            row["times_ggml"] = ratio(theirs, own, "wall").to_json()
            row["difference"] = errors[codec]
        yield row | beside_ik(row)


def _speed(prefix: str, times: Times, cache: Layers) -> dict[str, float]:
    return {
        f"{prefix}ms": 1e3 * float(np.median(times.wall)),
        f"{prefix}ms_least": 1e3 * float(times.wall.min()),
        f"{prefix}gb_per_second": times.rate(cache.nbytes / 1e9, "wall"),
        f"{prefix}gops": times.rate(cache.operations / 1e9, "wall"),
    }


def _share(limit: Times, own: Times, work: float) -> Ratio:
    return ratio(limit, own, "wall", work=work)


def _of(limit: Times, own: Times, cache: Layers, amount: float) -> dict[str, float]:
    return _share(limit, own, cache.operations / 1e9 / amount).to_json()


def _theirs(peer: Ggml, codec: str, cache: Layers, threads: int) -> Attention:
    """ggml's attention over copies of our rows, as many layers as ours."""
    rows = [side.swapaxes(0, 1) for side in cache.sequence.to_ggml(0) if side is not None]
    sides = [_copies(side, cache.count) for side in rows]
    with peer.quiet():
        layers = list(zip(*sides, strict=True))
        return Attention(peer, kvant.format_info(codec), layers, cache.q, threads)


def _copies(rows: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """The same rows so many times, in huge pages."""
    made = buffer(count * rows.size).reshape(count, *rows.shape)
    made[:] = rows
    return made


def _difference(codec: str, cache: Layers, graph: Attention) -> float:
    """How far apart the two results are, relative; too far is an error."""
    graph()
    cache.task(0).run()
    found = float(np.linalg.norm(cache.out - graph.out) / np.linalg.norm(graph.out))
    if not found < TOLERANCE:
        raise kvant.Error(
            f"[benchmarks.kv] expected what ggml computes over {codec} within {TOLERANCE}, "
            f"got {found:.2g}"
        )
    return found


def beside_ik(row: dict[str, Any]) -> dict[str, Any]:
    """Times ik_llama.cpp's figures, each over what its machine reads: at least and at most.

    Of prefill as well over the peak of products in registers, which bounds it.

    Examples
    --------
    >>> row = {"codec": "f16", "tokens": 4096, "queries": 1, "threads": 1}
    >>> row |= {"gb_per_second": 8.1, "read_gb_per_second": 10.0, "of_read": {"median": 0.81}}
    >>> [round(times, 3) for times in beside_ik(row)["times_ik"]]
    [2.7, 3.1]
    """
    codec, threads, prefill = row["codec"], row["threads"], row["queries"] > 1
    known = (IK_PREFILL if prefill else IK_DECODE).get(codec, {}).get(row["tokens"])
    if known is None or threads > 2 or row["queries"] not in (1, QUERIES):
        return {}
    theirs = known[threads - 1]
    # A share of reading where bytes count; else operations for each byte that could be read.
    own = row["gops"] / row["read_gb_per_second"] if prefill else row["of_read"]["median"]
    found: dict[str, Any] = {"times_ik": [own * read / theirs for read in IK_READ[threads - 1]]}
    if prefill:
        what = "f32" if codec == "f16" else "int8"
        of_peak = theirs / IK_PEAK[what][threads - 1]
        found["times_ik_of_peak"] = row[f"of_{what}"]["median"] / of_peak
    return found


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Two tables: beside llama.cpp, and beside ik_llama.cpp on another machine."""
    head = "codec   queries   keys threads"
    yield f"{head}  ms (least)             GB/s   GOP/s of read  ggml: ms (least)         x ggml"
    for row in rows:
        text = (
            f"{_case_name(row)} {_ms(row, '')} {row['gb_per_second']:7.2f} {row['gops']:7.1f} "
            f"{row['of_read']['median']:7.2f}"
        )
        if "times_ggml" in row:
            times = row["times_ggml"]
            text += f"  {_ms(row, 'ggml_')} {times['median']:6.1f}"
            text += f" ({times['low']:.1f} - {times['high']:.1f})"
            if row["queries"] == 1 and row["codec"] in WANTED:
                text += f", wanted {WANTED[row['codec']]:g}"
            text += f"; results differ by {row['difference']:.1e}"
        yield text
    if any("times_ik" in row for row in rows):
        yield f"\n{head}  times ik_llama.cpp on a Zen 4, each over what its machine reads"
    for row in rows:
        if "times_ik" in row:
            low, high = row["times_ik"]
            wanted = WANTED_IK_PREFILL if row["queries"] > 1 else WANTED_IK[row["codec"]]
            text = f"{_case_name(row)}  {low:.2f} - {high:.2f}, wanted {wanted:g}"
            if "times_ik_of_peak" in row:
                text += f"; each over its peak of products {row['times_ik_of_peak']:.2f}"
            yield text


def _case_name(row: dict[str, Any]) -> str:
    return f"{row['codec']:7} {row['queries']:7} {row['tokens']:6} {row['threads']:7}"


def _ms(row: dict[str, Any], prefix: str) -> str:
    return f"{row[prefix + 'ms']:9.3f} ({row[prefix + 'ms_least']:.3f})".ljust(21)
