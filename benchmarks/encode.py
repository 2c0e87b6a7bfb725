"""Encoding, one thread, working set in the second-level cache, against each peer's encoder."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvant
from kvant.bench.result import Step
from kvant.bench.timing import Task, Times, fastest, ratio, turns, waited

from . import peers
from .bars import Check, encode_bar, fastest_bar
from .cases import Settings, importance, weights
from .native import library
from .probes import buffer
from .section import Line, Section, cell, mark, names

__all__ = ["plan"]

# libgguf is slow and keeps pace per row, so it gets few.
_FEW_ROWS = 2
_COLUMNS = (
    "format", "importance", "isa", "MB/s", "Python", "ggml", "x chunk", "x from_float",
    "x libgguf", "bar",
)  # fmt: skip


def plan(settings: Settings, formats: Iterable[str]) -> tuple[Section, list[Step]]:
    """Steps that time every format kvant encodes, with and without importance, on every ISA."""
    section = Section(
        "encode",
        f"Encode: MB/s of f32 input, one thread, {settings.cached_rows} rows of 4096 in cache",
        _COLUMNS,
    )
    steps = []
    for format in names(formats, lambda f: f.can_encode and f.name != "f32"):
        info = kvant.format_info(format)
        for weighted in (False, True) if info.uses_importance else (False,):
            label = f"{format}{', importance' if weighted else ''}"
            steps.append(Step(label, partial(_format, section, settings, format, weighted)))
    return section, steps


def _format(section: Section, settings: Settings, format: str, weighted: bool) -> list[Line]:
    info = kvant.format_info(format)
    x = weights(settings.cached_rows)
    vector = importance() if weighted else None
    shape = (x.shape[0], info.row_bytes(x.shape[1]))
    out, theirs = (buffer(shape[0] * shape[1]).reshape(shape) for _ in range(2))
    few, few_out = x[:_FEW_ROWS], np.zeros((_FEW_ROWS, shape[1]), np.uint8)
    tasks = _peer_tasks(info, x, vector, theirs, few, few_out)
    for isa in kvant.isa.available():
        tasks |= _own_tasks(format, isa, x, vector, out)
    times = turns(tasks, rounds=settings.rounds, sample=settings.sample)
    section.waited.append(waited(times))
    same = {
        "ggml": bool(np.array_equal(out, theirs)) if "chunk" in times else None,
        "libgguf": bool(np.array_equal(out[:_FEW_ROWS], few_out)) if "libgguf" in times else None,
    }
    return [
        _row(settings, times, isa, format, weighted, x.nbytes, x.shape[0], same)
        for isa in kvant.isa.available()
    ]


def _peer_tasks(
    info: kvant.FormatInfo,
    x: NDArray[np.float32],
    vector: NDArray[np.float32] | None,
    out: NDArray[np.uint8],
    few: NDArray[np.float32],
    few_out: NDArray[np.uint8],
) -> dict[str, Task]:
    tasks = {}
    ggml, libgguf = peers.ggml(), peers.libgguf()
    if ggml and (call := ggml.chunk(info, x, out, vector)):
        tasks["chunk"] = Task(call)
    # It writes elsewhere: for some formats it searches less and gives other bytes.
    if ggml and vector is None and (fast := ggml.from_float(info, x, _like(out))):
        tasks["from_float"] = Task(fast)
    if libgguf and (slow := libgguf.encoder(info, few, few_out, vector)):
        tasks["libgguf"] = Task(slow)
    return tasks


def _like(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return buffer(packed.nbytes).reshape(packed.shape)


def _own_tasks(
    format: str,
    isa: str,
    x: NDArray[np.float32],
    vector: NDArray[np.float32] | None,
    out: NDArray[np.uint8],
) -> dict[str, Task]:
    def use() -> None:
        kvant.isa.use(isa)

    def python() -> object:
        return kvant.quantize(x, format, importance=vector, threads=1, out=out)

    tasks = {f"python {isa}": Task(python, use)}
    own = library()
    tasks[f"c {isa}"] = Task(own.encoder(format, x, out, vector), use) if own else Task(python, use)
    return tasks


def _row(
    settings: Settings,
    times: dict[str, Times],
    isa: str,
    format: str,
    weighted: bool,
    nbytes: int,
    rows: int,
    same: dict[str, bool | None],
) -> Line:
    clock, mine = settings.clock, times[f"c {isa}"]
    row: dict[str, Any] = {
        "format": format,
        "importance": weighted,
        "isa": isa,
        "mb_per_s": mine.rate(nbytes / 1e6, clock),
        "python_mb_per_s": times[f"python {isa}"].rate(nbytes / 1e6, clock),
        "same_bytes": same,
    }
    ratios = {}
    for peer, work in (("chunk", 1.0), ("from_float", 1.0), ("libgguf", rows / _FEW_ROWS)):
        if peer in times:
            ratios[peer] = ratio(times[peer], mine, clock, work=work)
            row[f"{peer}_mb_per_s"] = times[peer].rate(nbytes / work / 1e6, clock)
            row[f"times_{peer}"] = ratios[peer].to_json()
    title = f"encode {format}{' with importance' if weighted else ''} on {isa}"
    checks = []
    if "chunk" in times:
        if (bar := encode_bar(format, isa)) is not None:
            checks.append(Check(f"{title}, times chunk", ratios["chunk"].median, bar))
        if (bar := fastest_bar(format, isa)) is not None:
            theirs = fastest(*(times[p] for p in ("chunk", "from_float") if p in times))
            best = ratio(theirs, mine, clock)
            row["times_fastest_ggml"] = best.to_json()
            checks.append(Check(f"{title}, times ggml's fastest", best.median, bar))
    warn = "" if same["libgguf"] in (None, True) else " (bytes differ from libgguf's)"
    cells = (
        format + warn,
        "yes" if weighted else "",
        isa,
        f"{row['mb_per_s']:.0f}",
        f"{row['python_mb_per_s']:.0f}",
        f"{row['chunk_mb_per_s']:.0f}" if "chunk" in times else "",
        cell(ratios.get("chunk")),
        cell(ratios.get("from_float")),
        cell(ratios.get("libgguf")),
        mark(checks),
    )
    return Line(row, checks, cells)
