"""Attention over caches beside llama.cpp's and a read of as many bytes, in turns.

Both sides have the same codes: ours as pages, ggml's as rows, head by head. Their results are
compared before anything is timed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvant
from kvant.bench.ggml import ggml
from kvant.bench.limits import Limits
from kvant.bench.memory import buffer
from kvant.bench.timing import Task, Times, ratio, turns

from .ggml_attention import Attention
from .kv_caches import Layers

__all__ = ["CODECS", "WANTED", "beside_ik", "lines", "measured"]

CODECS = ("f16", "q8_0", "q4_0")
GROUP, DIM, QUERIES = 4, 128, 512
# Times the speed of llama.cpp that decoding is to have, and of ik_llama.cpp.
WANTED = {"f16": 3.0, "q8_0": 10.0, "q4_0": 25.0}
WANTED_IK = {"f16": 1.9, "q8_0": 2.2, "q4_0": 3.5}
WANTED_IK_PREFILL = 1.5
# How far results may be apart. Both sides take queries in eight bits, ours weights of values, too;
# values of f16 ggml sums in f16 where one token asks, which over 32,768 keys costs 0.03.
TOLERANCE, TOLERANCE_F16 = 0.02, 0.05
# Prefill over more keys is left out where ggml has no tiles and would take a minute for a call.
MOST_KEYS = 8192
# Seconds between contenders: so long threads of ggml wait for more work without sleeping.
REST = 0.03

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
    limits = Limits(256 << 20)
    threads = args.threads or sorted({1, kvant.threads()})
    for queries in args.queries or (1, QUERIES):
        for tokens in sorted(args.tokens):
            cases = [Case(codec, tokens, queries) for codec in args.codecs or CODECS]
            for count in threads:
                yield from _rows(args, limits, cases, count)


class Case:
    """A codec and a size: the layers of ours, and ggml's with the same codes."""

    def __init__(self, codec: str, tokens: int, queries: int) -> None:
        self.codec, self.tokens, self.queries = codec, tokens, queries
        self.ours = Layers(codec, codec, tokens, GROUP, DIM, queries=queries)
        self._peer = ggml()
        self._theirs: list[tuple[NDArray[np.uint8], ...]] = []

    def graph(self, threads: int) -> Attention | None:
        """ggml's attention over copies of our rows; None without ggml, or where it has no such."""
        known = self.codec in {info.name for info in kvant.formats()}
        slow = self.queries > 1 and self.tokens > MOST_KEYS and self.codec not in ("f16", "f32")
        if self._peer is None or not known or slow:
            return None
        if not self._theirs:
            sides = [side for side in self.ours.sequence.to_ggml(0) if side is not None]
            copies = [_copies(side.swapaxes(0, 1), self.ours.count) for side in sides]
            self._theirs = list(zip(*copies, strict=True))
        info = kvant.format_info(self.codec)
        with self._peer.quiet():
            return Attention(self._peer, info, self._theirs, self.ours.q, threads)

    def speed(self, times: Times, prefix: str = "") -> dict[str, float]:
        """What a row says of either side."""
        return {
            f"{prefix}ms": 1e3 * float(np.median(times.wall)),
            f"{prefix}ms_least": 1e3 * float(times.wall.min()),
            f"{prefix}gb_per_second": times.rate(self.ours.nbytes / 1e9, "wall"),
            f"{prefix}gops": times.rate(self.ours.operations / 1e9, "wall"),
        }


def _copies(rows: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """The same rows so many times, in huge pages."""
    made = buffer(count * rows.size).reshape(count, *rows.shape)
    made[:] = rows
    return made


def _rows(
    args: argparse.Namespace,
    limits: Limits,
    cases: list[Case],
    threads: int,
) -> Iterator[dict[str, Any]]:
    """All codecs of one size in turns."""
    prefill = cases[0].queries > 1
    read = limits.read(threads)
    peaks = [limits.products(what, threads) for what in ("f32", "int8")] if prefill else []
    tasks = {limit.name: limit.task for limit in (read, *peaks)}
    graphs, errors = {}, {}
    for case in cases:
        tasks[case.codec] = case.ours.task(threads)
        graph = case.graph(threads)
        if graph:
            graphs[case.codec], tasks[f"ggml {case.codec}"] = graph, Task(graph)
            errors[case.codec] = _difference(case, graph)
    rounds, sample = (min(args.rounds, 3), 0.0) if prefill else (args.rounds, 0.05)
    rested = {name: _after_a_rest(task) for name, task in tasks.items()}
    times = turns(rested, rounds=rounds, sample=sample)
    for graph in graphs.values():
        graph.close()
    for case in cases:
        own, ours = times[case.codec], case.ours
        row: dict[str, Any] = {
            "codec": case.codec,
            "tokens": case.tokens,
            "queries": case.queries,
            "threads": threads,
            "rounds": rounds,
            **case.speed(own),
            "read_gb_per_second": times["read"].rate(read.amount, "wall"),
            "of_read": _share(times["read"], own, ours.nbytes, read.amount),
        }
        for peak in peaks:
            row[f"of_{peak.name}"] = _share(times[peak.name], own, ours.operations, peak.amount)
        if case.codec in graphs:
            theirs = times[f"ggml {case.codec}"]
            row |= case.speed(theirs, "ggml_")
            row["times_ggml"] = ratio(theirs, own, "wall").to_json()
            row["difference"] = errors[case.codec]
        yield row | beside_ik(row)


def _share(limit: Times, own: Times, work: float, amount: float) -> dict[str, float]:
    return ratio(limit, own, "wall", work=work / 1e9 / amount).to_json()


def _after_a_rest(task: Task) -> Task:
    """The task, when nobody competes with it for processors."""

    def before() -> None:
        time.sleep(REST)
        if task.before:
            task.before()

    return Task(task.run, before)


def _difference(case: Case, graph: Attention) -> float:
    """How far apart the two results are, relative; too far is an error."""
    graph()
    case.ours.task(0).run()
    ours = case.ours.out
    found = float(np.linalg.norm(ours - graph.out) / np.linalg.norm(graph.out))
    most = TOLERANCE_F16 if case.codec == "f16" else TOLERANCE
    if not found < most:
        raise kvant.Error(
            f"[benchmarks.kv] expected what ggml computes over {case.codec} within {most}, "
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
