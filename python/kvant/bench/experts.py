"""How fast feed-forward networks with experts are, when each row of x asks a few of many."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import isa
from ..formats import FormatInfo, format_info
from ..networks import moe_ffn
from ..ops import silu_mul
from ..packed import PackedTensor
from ..products import matmul, matmul_many
from ..qtensor import QTensor
from .ggml import Ggml
from .ggml_graphs import Experts
from .inputs import Once, packed_rows
from .limits import Limits
from .matmul import PAUSE, PEERS, steps
from .memory import buffer
from .result import Row, Section, Update, gather
from .roof import Work, product_row, tops
from .settings import Settings
from .timing import Task, turns

__all__ = ["COMPOSED", "Networks", "composed", "experts", "routes", "start"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Network = tuple[PackedTensor, PackedTensor, PackedTensor]
Turn = Iterator[tuple[I64, int]]

COMPOSED = "composed"
_KEYS = ("format", "m", "isa", "threads")


def experts(settings: Settings, peer: Ggml | None = None, update: Update | None = None) -> Section:
    """Measure kvant.moe_ffn with packed weights: GB/s of them for m = 1, GOP/s for more rows of x.

    The router chooses others in every call, so that weights come from memory; bytes and operations
    are those of the chosen experts. `composed` is the same by expert, one product after the other.
    Limits are those of `matmul`.
    """
    return start(Section("experts", "", _KEYS), settings, peer, update)


def start(
    section: Section, settings: Settings, peer: Ggml | None = None, update: Update | None = None
) -> Section:
    """Fill a section that the caller keeps, so that it survives an interruption."""
    count, top, f, k = settings.experts
    section.title = f"Networks with experts: {top} of {count}, {f} x {k}"
    section.keys = _KEYS
    measure = partial(_measure, settings, Limits(settings.memory), peer)
    make = partial(Networks, shape=settings.experts, memory=settings.memory)
    return gather(section, steps(settings, make, measure), update)


class Networks:
    """Gate, up and down of all experts in a format, as often as it takes to exceed `memory`."""

    def __init__(self, format: str, shape: tuple[int, int, int, int], memory: int = 1) -> None:
        count, _, f, k = shape
        self.info: FormatInfo = format_info(format)
        shapes = ((f, k), (f, k), (k, f))
        self.nbytes = count * sum(n * self.info.row_bytes(cols) for n, cols in shapes)
        self.data: list[tuple[NDArray[np.uint8], ...]] = []
        self.packed: list[Network] = []
        for _ in range(-(-memory // self.nbytes)):
            stacks = tuple(
                packed_rows(format, count * n, cols).reshape(count, n, -1) for n, cols in shapes
            )
            gate, up, down = (
                QTensor(data, format, (count, n, cols)).pack()
                for data, (n, cols) in zip(stacks, shapes, strict=True)
            )
            self.data.append(stacks)
            self.packed.append((gate, up, down))


def routes(count: int, top: int, m: int, seed: int = 3) -> list[I64]:
    """What a router without preferences chooses in a row of calls, ids [m, top] each.

    Where a call leaves most experts alone, none is asked again before all others were.

    >>> first, second = routes(4, 2, 1)
    >>> sorted([*first[0].tolist(), *second[0].tolist()])
    [0, 1, 2, 3]
    """
    rng = np.random.default_rng(seed)
    calls = count // (m * top)
    if calls > 1:
        return list(rng.permutation(count)[: calls * m * top].reshape(calls, m, top))
    everyone = np.tile(np.arange(count), (m, 1))
    return [rng.permuted(everyone, axis=1)[:, :top].copy() for _ in range(32)]


def composed(x: F32, net: Network, ids: I64, scale: F32, threads: int) -> F32:
    """The same as `kvant.moe_ffn`, by expert, one product after the other."""
    outputs = np.empty((*ids.shape, x.shape[1]), np.float32)
    for expert in np.unique(ids):
        token, slot = np.nonzero(ids == expert)
        gate, up, down = (w[int(expert)] for w in net)
        both = matmul_many(x[token], [gate, up], threads=threads)
        hidden = silu_mul(*both, out=both[0], threads=threads)
        outputs[token, slot] = matmul(hidden, down, threads=threads)
    result: F32 = np.einsum("mt,mtn->mn", scale, outputs)
    return result


class _Case(NamedTuple):
    networks: Networks
    x: F32
    scale: F32
    chosen: list[I64]
    threads: int
    isa: str


def _measure(
    settings: Settings,
    limits: Limits,
    peer: Ggml | None,
    made: Once[Networks],
    name: str,
    threads: int,
    m: int,
) -> list[Row]:
    count, top, f, k = settings.experts
    rng = np.random.default_rng(m)
    x = buffer(4 * m * k).view(np.float32).reshape(m, k)
    x[:] = rng.standard_normal((m, k), np.float32)
    scale = rng.random((m, top), np.float32)
    case = _Case(made(), x, scale, routes(count, top, m), threads, name)
    limited = tops(limits, case.networks.info, threads)
    own, theirs = _own(case), _theirs(case, peer) if peer else {}
    tasks = own | theirs | {key: limit.task for key, limit in limited.items()}
    times = turns(tasks, rounds=settings.rounds, sample=settings.sample)
    asked = float(np.mean([len(np.unique(ids)) for ids in case.chosen]))
    nbytes = asked / count * case.networks.nbytes
    work = Work(6e-9 * m * top * f * k, nbytes / 1e9, 2 * x.nbytes / 1e9)
    label = {"format": case.networks.info.name, "m": m, "isa": name, "threads": threads}
    return [product_row(label, times["own"], times, limited, work, (COMPOSED, *PEERS))]


def _turns(case: _Case) -> Turn:
    """Ids and the number of a network, so that all bytes are read before any again."""
    return cycle(product(case.chosen, range(len(case.networks.packed))))


def _own(case: _Case) -> dict[str, Task]:
    # One rotation for both, or the second would find in a cache what the first has read.
    turn, packed, out = _turns(case), case.networks.packed, np.empty_like(case.x)

    def own() -> None:
        ids, index = next(turn)
        moe_ffn(case.x, *packed[index], ids, case.scale, out=out, threads=case.threads)

    def apart() -> None:
        ids, index = next(turn)
        composed(case.x, packed[index], ids, case.scale, case.threads)

    def before() -> None:
        isa.use(case.isa)
        time.sleep(PAUSE)

    return {"own": Task(own, before), COMPOSED: Task(apart, before)}


def _theirs(case: _Case, peer: Ggml) -> dict[str, Task]:
    networks, found = case.networks, {}
    for name in PEERS:
        made = [
            peer.experts(
                networks.info, data, case.x, case.scale, case.threads, repack=name != PEERS[0]
            )
            for data in networks.data
        ]
        graphs = [graph for graph in made if graph is not None]
        if len(graphs) == len(made):
            found[name] = Task(_asked(graphs, _turns(case)), lambda: time.sleep(PAUSE))
    return found


def _asked(graphs: list[Experts], turn: Turn) -> Callable[[], None]:
    def run() -> None:
        ids, index = next(turn)
        graphs[index].ids[:] = ids
        graphs[index]()

    return run
