"""The error of weights as HTML: a table by type and part, and for each type a map of its layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from .html_table import Cell, sortable
from .result import SweepRow
from .table import small
from .tensor_error import TensorError, parts_of, relative_rmse

__all__ = ["by_layer", "by_part"]

_SHADES = 8
_FEW_LAYERS = 12
"""So many have room for numbers; more are shown by shade alone."""


def by_part(rows: Sequence[SweepRow]) -> str:
    """A sortable table: types down, parts across, all layers of a part together."""
    parts = parts_of(tensor for row in rows for tensor in row.tensors)
    headings = [Cell("type"), *(Cell(part) for part in parts)]
    return sortable(
        headings, (("", [Cell(row.name), *(_pooled(row, part) for part in parts)]) for row in rows)
    )


def _pooled(row: SweepRow, part: str) -> Cell:
    own = [tensor for tensor in row.tensors if tensor.part == part]
    if not own:
        return Cell("")
    error = relative_rmse(own)
    return Cell(small(error), error, ", ".join(sorted({tensor.format for tensor in own})))


def by_layer(rows: Sequence[SweepRow]) -> str:
    """A map for each type: parts down, layers across, one scale of shades for all of them."""
    inside = [t for row in rows for t in row.tensors if t.layer is not None]
    errors = [e for t in inside if 0 < (e := t.relative_rmse) < math.inf]
    if not errors:
        return ""
    low, high = min(errors), max(errors)
    shade = _scale(low, high)
    keys = "".join(f'<i class="h{index}"></i>' for index in range(_SHADES))
    layered = (row for row in rows if any(t.layer is not None for t in row.tensors))
    maps = "\n".join(_map(row, shade) for row in layered)
    return (
        f'<p class="key">{escape(small(low))} <span>{keys}</span> {escape(small(high))}</p>\n'
        f'<div class="maps">\n{maps}\n</div>'
    )


def _scale(low: float, high: float) -> Callable[[float], int]:
    """Shades by the logarithm: a format of one bit more has half the error."""
    width = math.log(high / low) or 1.0

    def shade(error: float) -> int:
        if not 0 < error < math.inf:
            return 0 if error == 0 else _SHADES - 1
        return min(_SHADES - 1, int(_SHADES * math.log(error / low) / width))

    return shade


def _map(row: SweepRow, shade: Callable[[float], int]) -> str:
    found = {(t.part, t.layer): t for t in row.tensors if t.layer is not None}
    layers = sorted({layer for _, layer in found})
    few = len(layers) <= _FEW_LAYERS
    every = 1 if few else 4
    head = "".join(
        f'<th scope="col">{layer if i % every == 0 else ""}</th>' for i, layer in enumerate(layers)
    )
    lines = "\n".join(
        f'<tr><th scope="row">{escape(part)}</th>'
        + "".join(_cell(found.get((part, layer)), shade, few) for layer in layers)
        + "</tr>"
        for part in parts_of(found.values())
    )
    return (
        f'<div class="map{"" if few else " many"}"><h3>{escape(row.name)}</h3><table>\n'
        f'<thead><tr><th scope="col">layer</th>{head}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )


def _cell(tensor: TensorError | None, shade: Callable[[float], int], few: bool) -> str:
    if tensor is None:
        return "<td></td>"
    error = small(tensor.relative_rmse)
    title = escape(f"{tensor.name}: {tensor.format}, {error}")
    text = escape(error) if few else ""
    return f'<td class="h{shade(tensor.relative_rmse)}" title="{title}">{text}</td>'
