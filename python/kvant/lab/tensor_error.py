"""How far the weights of each tensor are off, and of several together: a part, a layer, a model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["TensorError", "parts_of", "relative_rmse"]

_LAYER = re.compile(r"blk\.([0-9]{1,6})\.(.+)")

# The way of a token through a model; parts of other names follow in the order of the alphabet.
_ORDER = ("token_embd", "attn_q", "attn_k", "attn_v", "attn", "ffn_gate", "ffn_up", "ffn", "output")


@dataclass(frozen=True)
class TensorError:
    """A tensor that changed its format: the sums of squares of its errors and of its weights.

    >>> found = TensorError("blk.3.attn_q.weight", "q4_0", 0.04, 4.0)
    >>> found.layer, found.part, found.relative_rmse
    (3, 'attn_q', 0.1)
    """

    name: str
    format: str
    squared_error: float
    squares: float

    @property
    def layer(self) -> int | None:
        """The layer that it belongs to; None outside of the layers."""
        match = _LAYER.fullmatch(self.name)
        return int(match[1]) if match else None

    @property
    def part(self) -> str:
        """What it is within its layer: `attn_q`, `ffn_down`, ..."""
        match = _LAYER.fullmatch(self.name)
        return (match[2] if match else self.name).removesuffix(".weight")

    @property
    def relative_rmse(self) -> float:
        """Root of the summed squared errors over the summed squared weights."""
        return relative_rmse([self])

    def as_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "name": self.name,
            "layer": self.layer,
            "part": self.part,
            "format": self.format,
            "relative_rmse": self.relative_rmse,
        }


def relative_rmse(tensors: Iterable[TensorError]) -> float:
    """Relative error of several tensors taken together; 0 where all weights are.

    >>> relative_rmse([TensorError("a", "q4_0", 0.0, 1.0), TensorError("b", "q4_0", 0.25, 0.0)])
    0.5
    """
    given = list(tensors)
    squares = sum(t.squares for t in given)
    return math.sqrt(sum(t.squared_error for t in given) / squares) if squares else 0.0


def parts_of(tensors: Iterable[TensorError]) -> list[str]:
    """The parts that occur, each once, as a token meets them.

    >>> names = ["output.weight", "blk.0.ffn_down.weight", "blk.0.attn_v.weight"]
    >>> parts_of(TensorError(name, "q4_0", 0.0, 1.0) for name in names)
    ['attn_v', 'ffn_down', 'output']
    """
    return sorted({t.part for t in tensors}, key=_place)


def _place(part: str) -> tuple[int, str]:
    return next((i for i, start in enumerate(_ORDER) if part.startswith(start)), len(_ORDER)), part
