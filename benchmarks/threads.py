"""Encoding a tensor that no cache holds, on two threads and on one."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import partial

import numpy as np
from numpy.typing import NDArray

import kvant
from kvant.bench.inputs import Once
from kvant.bench.machine import usable_cpus
from kvant.bench.result import Step
from kvant.bench.timing import Task, ratio, turns

from .bars import Check, threads_bar
from .cases import COLS, Settings, weights
from .probes import buffer
from .section import Line, Section, cell, mark, names

__all__ = ["plan"]

_COLUMNS = ("format", "isa", "1 thread MB/s", "2 threads MB/s", "x", "x two calls", "work", "bar")


def plan(settings: Settings, formats: Iterable[str]) -> tuple[Section, list[Step]]:
    """Steps that time two threads against one, by the wall clock.

    The column `x two calls` is the ceiling of the moment: two Python threads, each encoding one
    half of the tensor on one thread, share nothing but the machine. `work` is the processor time of
    two threads over that of one: what the division costs, whatever else the machine does.
    """
    mib = settings.threads_mib
    section = Section(
        "threads", f"Threads: two against one, {mib} MiB of f32 in memory, wall clock", _COLUMNS
    )
    if usable_cpus() < 2:
        section.notes.append("this process may use one processor only: nothing to compare")
        return section, []
    x = Once(lambda: weights((mib << 20) // (4 * COLS)))
    chosen = names(formats, lambda f: threads_bar(f.name) is not None)
    steps = [Step(format, partial(_format, settings, format, x)) for format in chosen]
    return section, [*steps, Step("done", lambda: _starved(section))]


def _starved(section: Section) -> list[Line]:
    """Note for which formats the machine had no two processors to give."""
    starved = [
        line.numbers["format"]
        for line in section.rows
        if line.numbers["two_calls_times_one"]["median"]
        < (threads_bar(line.numbers["format"]) or 0.0)
    ]
    if starved:
        section.notes.append(
            "two unconnected calls missed the bar too, the machine had no two processors to give: "
            + ", ".join(starved)
        )
    return []


def _format(settings: Settings, format: str, made: Once[NDArray[np.float32]]) -> list[Line]:
    x = made()
    shape = (x.shape[0], kvant.format_info(format).row_bytes(COLS))
    out = buffer(shape[0] * shape[1]).reshape(shape)
    half = shape[0] // 2

    def encode(threads: int) -> None:
        kvant.quantize(x, format, threads=threads, out=out)

    def side_by_side() -> None:
        def part(rows: slice) -> None:
            kvant.quantize(x[rows], format, threads=1, out=out[rows])

        other = threading.Thread(target=part, args=(slice(half, None),))
        other.start()
        part(slice(half))
        other.join()

    times = turns(
        {
            "1": Task(lambda: encode(1)),
            "2": Task(lambda: encode(2)),
            "two calls": Task(side_by_side),
        },
        rounds=settings.rounds,
        sample=settings.sample,
    )
    gain = ratio(times["1"], times["2"], "wall")
    ceiling = ratio(times["1"], times["two calls"], "wall")
    rates = {n: times[n].rate(x.nbytes / 1e6, "wall") for n in ("1", "2")}
    bar = threads_bar(format)
    extra = float(np.median(times["2"].cpu / times["1"].cpu))
    checks = [] if bar is None else [Check(f"encode {format}, two threads", gain.median, bar)]
    row = {
        "format": format,
        "isa": kvant.isa.current(),
        "one_thread_mb_per_s": rates["1"],
        "two_threads_mb_per_s": rates["2"],
        "times_one_thread": gain.to_json(),
        "two_calls_times_one": ceiling.to_json(),
        "processor_time_to_one_thread": extra,
    }
    cells = (
        format,
        kvant.isa.current(),
        f"{rates['1']:.0f}",
        f"{rates['2']:.0f}",
        cell(gain),
        cell(ceiling),
        f"{extra:.2f}",
        mark(checks),
    )
    return [Line(row, checks, cells)]
