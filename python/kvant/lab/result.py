"""What a sweep found: plain records that go to JSON and back to tables and plots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .metrics import Divergence
from .tensor_error import TensorError

__all__ = ["KINDS", "SweepResult", "SweepRow", "pareto", "plain"]

KINDS = ("recipe", "uniform", "mix")
"""How a type gives formats to tensors: by role, the same to all, or by measured sensitivity."""


@dataclass(frozen=True)
class SweepRow:
    """One type: its size, how far its weights are off, and how far its predictions are.

    `kind` is one of `KINDS`, or "original". `bytes` counts tensor data only, `bits_per_weight` is
    that over all weights of the file. `relative_rmse` is taken over all tensors that changed format
    together: the root of the summed squared error over the summed squared weights; `tensors` has
    each of them. `formats` counts tensors by format.
    """

    name: str
    kind: str
    bytes: int
    bits_per_weight: float
    relative_rmse: float
    divergence: Divergence
    quantize_seconds: float
    score_seconds: float
    formats: Mapping[str, int]
    tensors: tuple[TensorError, ...] = ()
    path: str | None = None

    def as_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; numbers that JSON has no word for become null."""
        own = {**asdict(self), "tensors": [tensor.as_json() for tensor in self.tensors]}
        values: dict[str, Any] = plain(own)
        return values


@dataclass(frozen=True)
class SweepResult:
    """All types of one sweep; the first row is the model as it was.

    `mixes` says in words on which windows mixes were chosen; None where there are none.
    """

    model: str
    text: str
    ctx: int
    rows: tuple[SweepRow, ...]
    command: str
    environment: Mapping[str, str]
    created: str
    mixes: str | None = None

    @property
    def base(self) -> SweepRow:
        return self.rows[0]

    @property
    def tested(self) -> tuple[SweepRow, ...]:
        return self.rows[1:]

    def as_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; numbers that JSON has no word for become null."""
        front = {row.name for row in pareto(self.tested)}
        rows = [{**row.as_json(), "pareto": row.name in front} for row in self.rows]
        return {
            "kind": "kvant.sweep",
            "version": 1,
            "model": self.model,
            "text": self.text,
            "mixes": self.mixes,
            "ctx": self.ctx,
            "rows": rows,
            "command": self.command,
            "environment": dict(self.environment),
            "created": self.created,
        }


def pareto(rows: Iterable[SweepRow]) -> list[SweepRow]:
    """The rows that no other row beats in size and in mean KL, from small to large.

    A row is beaten by one that is no larger and no further from the base, and better in one of the
    two; of equal rows the first stays.
    """
    best, front = math.inf, []
    for row in sorted(rows, key=lambda r: (r.bytes, r.divergence.kl_mean)):
        if row.divergence.kl_mean < best:
            best = row.divergence.kl_mean
            front.append(row)
    return front


def plain(value: Any) -> Any:
    """The same with NaN and infinities made None, for JSON."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
