"""How fast tensors are encoded and decoded, from memory and to memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import isa
from ..formats import FormatInfo, format_info
from ..qtensor import QTensor
from ..quant import quantize
from .ggml import Ggml
from .inputs import packed_rows, weights
from .limits import Limits
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
    # Encoding can be a hundred times slower than decoding.
    few = max(1, rows // 4)
    section.title = f"Codecs: GB/s of f32, {_mib(rows)} MiB decoded, {_mib(few)} encoded"
    section.keys = _KEYS
    limits = Limits(settings.memory)
    # Decoding writes to what the limit writes to.
    out = limits.array[: rows * _COLS * 4].view(np.float32).reshape(rows, _COLS)
    decode, encode = partial(_decode, out), partial(_encode, weights(few, _COLS))
    steps = [
        Step(
            f"{format}, {name}, {n} threads",
            partial(_measure, settings, limits, peer, make, format, name, n),
        )
        for format in settings.formats
        for name in settings.isas_or_current()
        for n in settings.threads
        for make in (decode, encode)
    ]
    return gather(section, steps, update)


def _mib(rows: int) -> int:
    return rows * _COLS * 4 >> 20


class _Codec(NamedTuple):
    """One direction: our call, the peer's if it has one, and the bytes of f32."""

    what: str
    own: Callable[[], object]
    theirs: Callable[[], object] | None
    nbytes: int


def _decode(
    out: NDArray[np.float32], peer: Ggml | None, info: FormatInfo, threads: int
) -> _Codec | None:
    q = QTensor(packed_rows(info.name, *out.shape), info.name, out.shape)
    theirs = peer.to_float(info, q.data, out) if peer else None
    own = partial(q.dequantize, out=out, threads=threads)
    return _Codec("decode", own, theirs, out.nbytes)


def _encode(
    x: NDArray[np.float32], peer: Ggml | None, info: FormatInfo, threads: int
) -> _Codec | None:
    if not info.can_encode:
        return None
    out = buffer(len(x) * info.row_bytes(_COLS)).reshape(len(x), -1)
    theirs = peer.chunk(info, x, out, None) if peer else None
    own = partial(quantize, x, info.name, out=out, threads=threads)
    return _Codec("encode", own, theirs, x.nbytes)


def _measure(
    settings: Settings,
    limits: Limits,
    peer: Ggml | None,
    make: Callable[[Ggml | None, FormatInfo, int], _Codec | None],
    format: str,
    name: str,
    threads: int,
) -> list[Row]:
    codec = make(peer if threads == 1 else None, format_info(format), threads)
    if codec is None:
        return []
    limited = limits.store if codec.what == "decode" else limits.read
    limit = limited(threads, codec.nbytes)
    tasks = {"own": Task(codec.own, lambda: isa.use(name)), "limit": limit.task}
    if codec.theirs:
        tasks["ggml"] = Task(codec.theirs)
    times = turns(tasks, rounds=settings.rounds, sample=settings.sample)
    amount = codec.nbytes / 1e9
    more = {p: beside(times["own"], times[p], amount) for p in ("ggml",) if p in times}
    case = {"format": format, "what": codec.what, "isa": name, "threads": threads}
    top = (limit.name, times["limit"], limit.amount)
    return [row(case, (times["own"], amount), top, "GB/s", more)]
