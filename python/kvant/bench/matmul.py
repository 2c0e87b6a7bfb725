"""How fast x @ W.T is: by format, by the number of rows of x, packed and as in a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import isa
from ..formats import FormatInfo, format_info
from ..products import matmul as product
from ..qtensor import QTensor
from .ggml import Ggml
from .inputs import Once, packed_rows
from .limits import Limits
from .memory import buffer
from .result import Row, Section, Step, Update, gather
from .roof import Work, product_row, tops
from .settings import Settings
from .timing import Task, turns

__all__ = ["PAUSE", "PEERS", "matmul", "start", "steps"]

T = TypeVar("T")

_KEYS = ("format", "m", "isa", "threads", "weights")
PEERS = ("ggml", "ggml repack")
# After a peer's threads have stopped spinning nobody competes with them.
PAUSE = 0.002


def matmul(settings: Settings, peer: Ggml | None = None, update: Update | None = None) -> Section:
    """Measure kvant.matmul: GB/s of weights for m = 1, GOP/s for more rows of x.

    Weights rotate among copies that no cache holds together. The limit for m = 1 is the read
    probe, for more rows the int8 peak (f32 for weights of floats), with as many threads; both
    together are the roofline. Bytes are those of the format, also for packed weights and for
    those that ggml lays out anew.
    """
    return start(Section("matmul", "", _KEYS), settings, peer, update)


def start(
    section: Section, settings: Settings, peer: Ggml | None = None, update: Update | None = None
) -> Section:
    """Fill a section that the caller keeps, so that it survives an interruption."""
    n, k = settings.shape
    section.title = f"Matrix products: weights {n} x {k}"
    section.keys = _KEYS
    measure = partial(_measure, settings, Limits(settings.memory), peer)
    make = partial(_Copies, settings=settings)
    return gather(section, steps(settings, make, measure), update)


def steps(
    settings: Settings,
    make: Callable[[str], T],
    measure: Callable[[Once[T], str, int, int], list[Row]],
) -> list[Step]:
    """What is measured of products, format by format: each ISA, threads, and rows of x.

    Parameters
    ----------
    make
        Weights of a format; forgotten before those of the next are made.
    measure
        Called with the weights, the name of an ISA, and the numbers of threads and of rows.
    """
    found: list[Step] = []
    for format in settings.formats:
        made = Once(partial(make, format))
        found += [
            Step(f"{format}, m = {m}, {threads} threads", partial(measure, made, name, threads, m))
            for name in settings.isas_or_current()
            for threads in settings.threads
            for m in settings.tokens
        ]
        found.append(Step(f"{format}, done", made.forget))
    return found


class _Copies:
    """The weights of a format, as often as it takes to exceed the caches."""

    def __init__(self, format: str, settings: Settings) -> None:
        n, k = settings.shape
        self.info: FormatInfo = format_info(format)
        self.nbytes = n * self.info.row_bytes(k)
        count = -(-settings.memory // self.nbytes)
        self.data = [packed_rows(format, n, k) for _ in range(count)]
        self.tensors = [QTensor(d, format, (n, k)) for d in self.data]
        self.packed = [q.pack() for q in self.tensors]
        # One rotation for all who use the same bytes, or the second would find them in a cache.
        self.turn = cycle(range(count))
        self.packed_turn = cycle(range(count))


class _Case(NamedTuple):
    copies: _Copies
    x: NDArray[np.float32]
    out: NDArray[np.float32]
    threads: int
    isa: str


def _measure(
    settings: Settings,
    limits: Limits,
    peer: Ggml | None,
    made: Once[_Copies],
    name: str,
    threads: int,
    m: int,
) -> list[Row]:
    n, k = settings.shape
    x = buffer(4 * m * k).view(np.float32).reshape(m, k)
    x[:] = np.random.default_rng(3).standard_normal((m, k), np.float32)
    out = buffer(4 * m * n).view(np.float32).reshape(m, n)
    case = _Case(made(), x, out, threads, name)
    copies = case.copies
    limited = tops(limits, copies.info, threads)
    own = _own(case, unpacked=m in settings.unpacked)
    theirs = _theirs(case, peer) if peer else {}
    tasks = own | theirs | {key: top.task for key, top in limited.items()}
    times = turns(tasks, rounds=settings.rounds, sample=settings.sample)
    work = Work(2e-9 * m * n * k, copies.nbytes / 1e9, (x.nbytes + out.nbytes) / 1e9)
    label = {"format": copies.info.name, "m": m, "isa": name, "threads": threads}
    rows = [
        product_row(label | {"weights": kind}, times[kind], times, limited, work, PEERS)
        for kind in own
    ]
    rows[0].more["packed_bytes"] = int(copies.packed[0].nbytes)
    return rows


def _own(case: _Case, *, unpacked: bool) -> dict[str, Task]:
    copies = case.copies

    def packed() -> None:
        w = copies.packed[next(copies.packed_turn)]
        product(case.x, w, out=case.out, act="q8", threads=case.threads)

    def as_in_a_file() -> None:
        w = copies.tensors[next(copies.turn)]
        product(case.x, w, out=case.out, act="q8", threads=case.threads)

    def before() -> None:
        isa.use(case.isa)
        time.sleep(PAUSE)

    tasks = {"packed": Task(packed, before)}
    return tasks | {"unpacked": Task(as_in_a_file, before)} if unpacked else tasks


def _theirs(case: _Case, peer: Ggml) -> dict[str, Task]:
    copies = case.copies
    found: dict[str, Task] = {}
    for name in PEERS:
        repack = name != PEERS[0]
        products = []
        for data in copies.data:
            made = peer.product(copies.info, data, case.x, case.threads, repack=repack)
            if made is None:
                break
            products.append(made)
        if len(products) < len(copies.data):
            continue
        turn = cycle(range(len(products))) if repack else copies.turn

        def run(products: list[Any] = products, turn: Any = turn) -> None:
            products[next(turn)]()

        found[name] = Task(run, lambda: time.sleep(PAUSE))
    return found
