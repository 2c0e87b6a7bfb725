"""How fast tensors are encoded and decoded, from memory and to memory."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from .. import isa
from ..formats import format_info
from ..qtensor import QTensor
from ..quant import quantize
from .ggml import Ggml
from .inputs import packed_rows, weights
from .limits import Limit, Limits
from .memory import buffer
from .result import Row, Section, Step, Update, beside, gather, row
from .settings import Settings
from .timing import Task, turns

__all__ = ["codecs", "start"]

_KEYS = ("format", "what", "isa", "threads")
_COLS = 4096


def codecs(settings: Settings, peer: Ggml | None = None, update: Update | None = None) -> Section:
    """Measure GB/s of f32 that is encoded or decoded.

    The limit of decoding is the store probe, that of encoding the read probe, each on as many
    bytes of f32 and with as many threads. ggml's codecs know one thread, and stand beside that.
    """
    return start(Section("codecs", "", _KEYS), settings, peer, update)


def start(
    section: Section, settings: Settings, peer: Ggml | None = None, update: Update | None = None
) -> Section:
    """Fill a section that the caller keeps, so that it survives an interruption."""
    rows = max(1, settings.memory // (4 * _COLS))
    section.title = f"Codecs: GB/s of f32, {_mib(rows)} MiB decoded, {_mib(_few(rows))} encoded"
    section.keys = _KEYS
    limits = Limits(settings.memory)
    x = weights(_few(rows), _COLS)
    steps = [
        Step(f"{format}, {name}, {n} threads", partial(run, settings, limits, x, format, name, n))
        for format in settings.formats
        for name in settings.isas_or_current()
        for n in settings.threads
        for run in (partial(_decode, peer), partial(_encode, peer))
    ]
    return gather(section, steps, update)


def _few(rows: int) -> int:
    # Encoding can be a hundred times slower than decoding.
    return max(1, rows // 4)


def _mib(rows: int) -> int:
    return rows * _COLS * 4 >> 20


def _decode(
    peer: Ggml | None,
    settings: Settings,
    limits: Limits,
    x: NDArray[np.float32],
    format: str,
    name: str,
    threads: int,
) -> list[Row]:
    rows = settings.memory // (4 * _COLS)
    out = limits.array[: rows * _COLS * 4].view(np.float32).reshape(rows, _COLS)
    q = QTensor(packed_rows(format, rows, _COLS), format, out.shape)
    own = Task(lambda: q.dequantize(out=out, threads=threads), lambda: isa.use(name))
    call = peer.to_float(q.info, q.data, out) if peer and threads == 1 else None
    theirs = Task(call) if call else None
    case = {"format": format, "what": "decode", "isa": name, "threads": threads}
    return _row(settings, case, own, theirs, out.nbytes, limits.store(threads, out.nbytes))


def _encode(
    peer: Ggml | None,
    settings: Settings,
    limits: Limits,
    x: NDArray[np.float32],
    format: str,
    name: str,
    threads: int,
) -> list[Row]:
    info = format_info(format)
    if not info.can_encode:
        return []
    shape = (x.shape[0], info.row_bytes(_COLS))
    out = buffer(shape[0] * shape[1]).reshape(shape)
    own = Task(lambda: quantize(x, format, threads=threads, out=out), lambda: isa.use(name))
    call = peer.chunk(info, x, out, None) if peer and threads == 1 else None
    theirs = Task(call) if call else None
    case = {"format": format, "what": "encode", "isa": name, "threads": threads}
    return _row(settings, case, own, theirs, x.nbytes, limits.read(threads, x.nbytes))


def _row(
    settings: Settings,
    case: dict[str, object],
    own: Task,
    theirs: Task | None,
    nbytes: int,
    limit: Limit,
) -> list[Row]:
    tasks = {"own": own, "limit": limit.task} | ({"ggml": theirs} if theirs else {})
    times = turns(tasks, rounds=settings.rounds, sample=settings.sample)
    amount = nbytes / 1e9
    more = {"ggml": beside(times["own"], times["ggml"], amount)} if theirs else {}
    top = (limit.name, times["limit"], limit.amount)
    return [row(case, (times["own"], amount), top, "GB/s", more)]
