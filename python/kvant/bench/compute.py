"""How fast arithmetic is: multiply-adds of int8 and of f32 that never leave the registers."""

from __future__ import annotations

from functools import partial

from .. import isa
from .probes import KINDS, products_task
from .result import Row, Section, Step, Update, gather, row
from .settings import Settings
from .timing import turns

__all__ = ["compute", "start"]

_KEYS = ("isa", "threads", "what")


def compute(settings: Settings, update: Update | None = None) -> Section:
    """Measure GOP/s of int8 dot products and f32 fma, two operations to a multiply-add.

    The limit of every row is the best instruction set on one thread, times the threads: what
    remains is what an instruction set gives away, and what the machine does when all are busy.
    """
    return start(Section("compute", "", _KEYS), settings, update)


def start(section: Section, settings: Settings, update: Update | None = None) -> Section:
    """Fill a section that the caller keeps, so that it survives an interruption."""
    section.title = "Arithmetic in registers"
    section.keys = _KEYS
    steps = [
        Step(f"{what}, {n} threads", partial(_measure, settings, what, n))
        for what in KINDS
        for n in settings.threads
    ]
    return gather(section, steps, update)


def _measure(settings: Settings, what: str, threads: int) -> list[Row]:
    names = settings.isas or isa.available()
    calls = {name: products_task(what, threads, name) for name in names}
    limit, alone = products_task(what, 1, isa.available()[0])
    tasks = {name: task for name, (task, _) in calls.items()} | {"limit": limit}
    # Samples are short, so that there can be many.
    times = turns(tasks, rounds=3 * settings.rounds, sample=settings.sample)
    top = (f"best ISA x {threads}", times["limit"], alone * threads)
    return [
        row({"isa": n, "threads": threads, "what": what}, (times[n], calls[n][1]), top, "GOP/s")
        for n in names
    ]
