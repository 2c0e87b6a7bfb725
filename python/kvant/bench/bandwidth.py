"""How fast memory is: reading, copying and storing, by threads and by pages."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from .limits import COPY, READ, STORE, Limit, Limits
from .memory import huge_share, small_pages
from .probes import STREAMS, copy_task, read_task, store_task
from .result import Row, Section, Step, Update, gather, row
from .settings import Settings
from .timing import Task, turns

__all__ = ["bandwidth", "start"]

_KEYS = ("isa", "threads", "pages", "what")


def bandwidth(settings: Settings, update: Update | None = None) -> Section:
    """Measure GB/s of memory that no cache holds.

    Rows are `read` (with the number of places that are read in turn), `copy` and `copy around`
    (through and around the caches; bytes copied, each of them read and written) and `store`
    (around the caches). The limit of a row is the same thing in huge pages with the most threads:
    the fastest read, copy or store of this machine.
    """
    return start(Section("bandwidth", "", _KEYS), settings, update)


def start(section: Section, settings: Settings, update: Update | None = None) -> Section:
    """Fill a section that the caller keeps, so that it survives an interruption."""
    section.title = f"Bandwidth of memory: {settings.memory >> 20} MiB"
    section.keys = _KEYS
    limits = Limits(settings.memory)
    arrays = {"huge": limits.array}
    small = small_pages(settings.memory)
    if small is not None:
        arrays["small"] = small
    share = huge_share(limits.array)
    if share is not None and share < 0.9:
        section.notes.append(f"only {100 * share:.0f} % of the buffer got huge pages")
    if small is None:
        section.notes.append("this system has one size of pages: it is called huge here")
    steps = [
        Step(f"{name}, {n} threads", partial(_measure, settings, limits, arrays, name, n))
        for name in settings.isas_or_current()
        for n in settings.threads
    ]
    return gather(section, steps, update)


def _measure(
    settings: Settings,
    limits: Limits,
    arrays: dict[str, NDArray[np.uint8]],
    name: str,
    threads: int,
) -> list[Row]:
    most = max(settings.threads)
    tops: list[Limit] = [limits.read(most), limits.copy(most), limits.store(most)]
    tasks: dict[str, Task] = {top.name: top.task for top in tops}
    whole = settings.memory / 1e9
    # Name of the limit, and 10^9 bytes.
    counted: dict[tuple[str, str], tuple[Limit, float]] = {}
    for pages, array in arrays.items():
        half = array.nbytes // 2
        a, b = array[:half], array[half:]
        mine = {
            **{f"read, {s} at once": read_task(array, s, threads, name) for s in STREAMS},
            "copy": copy_task(a, b, threads, around=False, name=name),
            "copy around": copy_task(a, b, threads, around=True, name=name),
            "store": store_task(array, threads, name=name),
        }
        for what, task in mine.items():
            tasks[f"{pages}, {what}"] = task
            kind = what.split(",")[0].split()[0]
            top = tops[(READ, COPY, STORE).index(kind)]
            counted[pages, what] = (top, whole / 2 if kind == COPY else whole)
    times = turns(tasks, rounds=settings.rounds, sample=0.0)
    return [
        row(
            {"isa": name, "threads": threads, "pages": pages, "what": what},
            (times[f"{pages}, {what}"], amount),
            (f"{top.name}, {most} threads", times[top.name], top.amount),
            "GB/s",
        )
        for (pages, what), (top, amount) in counted.items()
    ]
