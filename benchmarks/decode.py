"""Decoding to f32, one thread: against the store bandwidth of the minute, and against peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvant
from kvant.bench.inputs import Once
from kvant.bench.result import Step
from kvant.bench.timing import Task, Times, fastest, ratio, turns, waited

from . import peers
from .bars import Check, gguf_py_bar, store_bar
from .cases import COLS, Settings, packed_rows
from .native import library
from .probes import buffer, store_tasks, traffic_task
from .section import Line, Section, cell, mark, names

__all__ = ["plan"]

_COLUMNS = (
    "format", "isa", "GB/s", "of store", "of traffic", "x gguf-py", "fresh x gguf-py",
    "x libgguf", "x ggml", "bar",
)  # fmt: skip


def plan(settings: Settings, formats: Iterable[str]) -> tuple[Section, list[Step]]:
    """Steps that time every format on every ISA."""
    section = Section(
        "decode",
        f"Decode: GB/s of f32 output, one thread, {settings.decode_mib} MiB of output in memory",
        _COLUMNS,
    )
    target = Once(lambda: buffer(settings.decode_mib << 20))
    steps = [
        Step(format, partial(_format, section, settings, format, target))
        for format in names(formats, lambda f: True)
    ]
    return section, steps


def _format(
    section: Section, settings: Settings, format: str, made: Once[NDArray[np.uint8]]
) -> list[Line]:
    target = made()
    out = target.view(np.float32).reshape(-1, COLS)
    packed = packed_rows(format, out.shape[0])
    stores = store_tasks(target)
    tasks = {f"store {name}": task for name, task in stores.items()}
    tasks["traffic"] = traffic_task(target, packed)
    tasks |= {isa: _own(format, packed, out, isa) for isa in _isas()}
    times = turns(tasks, rounds=settings.rounds, sample=0.0)
    rows = (settings.peer_mib << 20) // (4 * COLS)
    beside = _beside_peers(settings, format, packed[:rows], out[:rows])
    section.waited += [waited(times), waited(beside)]
    store = fastest(*(times[f"store {name}"] for name in stores))
    same = _same_floats(format, packed[:2])
    return [
        _row(settings, format, isa, target.nbytes, times, store, beside, same) for isa in _isas()
    ]


def _isas() -> tuple[str, ...]:
    """What is timed: not the scalar twin, which would take most of the time, where others are."""
    return kvant.isa.available()[:-1] or kvant.isa.available()


def _same_floats(format: str, packed: NDArray[np.uint8]) -> bool | None:
    """Whether libgguf decodes the same bytes to the same bits; None where it decodes nothing."""
    peer, theirs = peers.libgguf(), np.zeros((packed.shape[0], COLS), np.float32)
    call = peer.decoder(kvant.format_info(format), packed, theirs) if peer else None
    if call is None:
        return None
    call()
    mine = kvant.QTensor(packed, format, theirs.shape).dequantize()
    return bool(np.array_equal(mine.view(np.uint32), theirs.view(np.uint32)))


def _own(format: str, packed: NDArray[np.uint8], out: NDArray[np.float32], isa: str) -> Task:
    own = library()
    if own is None:
        return _task(_python(format, packed, out, fresh=False), isa)
    return _task(own.decoder(format, packed, out), isa)


def _task(run: Callable[[], object], isa: str) -> Task:
    return Task(run, lambda: kvant.isa.use(isa))


def _python(
    format: str, packed: NDArray[np.uint8], out: NDArray[np.float32], *, fresh: bool
) -> Callable[[], object]:
    q = kvant.QTensor(packed, format, out.shape)
    return lambda: q.dequantize(threads=1, out=None if fresh else out)


def _beside_peers(
    settings: Settings, format: str, packed: NDArray[np.uint8], out: NDArray[np.float32]
) -> dict[str, Times]:
    """Decode fewer of the same bytes in turns with the peers, which are slow."""
    info = kvant.format_info(format)
    tasks: dict[str, Task] = {}
    ggml, libgguf = peers.ggml(), peers.libgguf()
    if gguf_py := peers.gguf_py_decoder(info, packed):
        tasks["gguf-py"] = Task(gguf_py)
    if libgguf and (slow := libgguf.decoder(info, packed, out)):
        tasks["libgguf"] = Task(slow)
    if ggml and (convert := ggml.to_float(info, packed, out)):
        tasks["ggml"] = Task(convert)
    if not tasks:
        return {}
    for isa in _isas():
        tasks[isa] = _task(_python(format, packed, out, fresh=False), isa)
        tasks[f"{isa} fresh"] = _task(_python(format, packed, out, fresh=True), isa)
    return turns(tasks, rounds=settings.rounds, sample=0.0)


def _row(
    settings: Settings,
    format: str,
    isa: str,
    nbytes: int,
    times: dict[str, Times],
    store: Times,
    beside: dict[str, Times],
    same: bool | None,
) -> Line:
    clock, mine = settings.clock, times[isa]
    share = ratio(store, mine, clock)
    row: dict[str, Any] = {
        "format": format,
        "isa": isa,
        "gb_per_s": mine.rate(nbytes / 1e9, clock),
        "store_gb_per_s": store.rate(nbytes / 1e9, clock),
        "of_store": share.to_json(),
        "same_floats": same,
    }
    ratios = {"of_traffic": ratio(times["traffic"], mine, clock)}
    for peer in ("gguf-py", "libgguf", "ggml"):
        if peer in beside:
            ratios[f"times_{peer}"] = ratio(beside[peer], beside[isa], clock)
    if "gguf-py" in beside:
        fresh = ratio(beside["gguf-py"], beside[f"{isa} fresh"], clock)
        ratios["fresh_times_gguf-py"] = fresh
    row |= {name: r.to_json() for name, r in ratios.items()}
    checks = []
    if (bar := store_bar(format, isa)) is not None:
        checks.append(Check(f"decode {format} on {isa}, of store bandwidth", share.median, bar))
    if "gguf-py" in beside and (bar := gguf_py_bar(format, isa)) is not None:
        gain = ratios["times_gguf-py"].median
        checks.append(Check(f"decode {format} on {isa}, times gguf-py", gain, bar))
    cells = (
        format if same in (None, True) else f"{format} (floats differ from libgguf's)",
        isa,
        f"{row['gb_per_s']:.1f}",
        cell(share),
        cell(ratios.get("of_traffic")),
        *(cell(ratios.get(k)) for k in ("times_gguf-py", "fresh_times_gguf-py")),
        *(cell(ratios.get(k)) for k in ("times_libgguf", "times_ggml")),
        mark(checks),
    )
    return Line(row, checks, cells)
