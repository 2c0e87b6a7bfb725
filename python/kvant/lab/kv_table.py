"""A study of a cache as text."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from .kv_result import KVStudy
from .table import small

__all__ = ["study_text"]

_LOOK: dict[str, Any] = {
    "box": box.SIMPLE_HEAD,
    "pad_edge": False,
    "padding": (0, 1, 0, 0),
    "title_justify": "left",
    "caption_justify": "left",
}
_SIDES = {"k": "keys", "v": "values"}


class _Column(NamedTuple):
    title: str
    value: str
    show: Callable[[Any], str]
    of_keys: bool = False
    from_width: int = 0


_COLUMNS = (
    _Column("bits", "bits", "{:.4g}".format),
    _Column("logits", "logit_error", small, True, 90),
    _Column("KL", "kl_mean", small, True),
    _Column("KL 99%", "kl_p99", small, True, 90),
    _Column("KL max", "kl_max", small, True, 100),
    _Column("same top", "top_overlap", "{:.1%}".format, True, 70),
    _Column("output", "output_error", small, from_width=70),
    _Column("cost", "cost", small),
)
_CAPTION = """\
means over layers, KL 99% and KL max of the worst layer; errors are relative; KL in nats
cost: KL of keys, and half the squared output error of values"""


def study_text(study: KVStudy, width: int, layers: bool) -> str:
    """Tables, and what needs care."""
    out = StringIO()
    console = Console(file=out, width=width, highlight=False, color_system=None)
    head = f"{study.name or 'dump'}: {study.layers} layers, {study.tokens} tokens, "
    head += f"{study.queries} queries looked at"
    if study.sink or study.tail:
        head += f", {study.sink} first and {study.tail} last tokens exact"
    columns = [c for c in _COLUMNS if width >= c.from_width]
    table = _table(head, ["", "codec"], columns)
    table.caption = _CAPTION
    if width >= 110:
        table.add_column("worst layer", justify="right", no_wrap=True)
    for each in study.summary():
        cells = [_SIDES[each.side], each.codec, *(_cell(c, each) for c in columns)]
        if width >= 110:
            cells.append(f"{each.worst_layer}: {small(each.worst_cost)}")
        table.add_row(*cells)
    found = [table, _traits(study)]
    if layers:
        rows = _table("by layer", ["layer", "", "codec"], columns)
        for row in study.rows:
            cells = [_cell(column, row) for column in columns]
            rows.add_row(str(row.layer), row.side, row.codec, *cells)
        found.append(rows)
    for each_table in found:
        console.print(each_table)
    for line in study.warnings():
        console.print(line, soft_wrap=True)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _table(title: str, words: list[str], columns: list[_Column]) -> Table:
    table = Table(title=title, **_LOOK)
    for word in words:
        table.add_column(word, no_wrap=True)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    return table


def _cell(column: _Column, row: Any) -> str:
    return "" if column.of_keys and row.side == "v" else column.show(getattr(row, column.value))


def _traits(study: KVStudy) -> Table:
    table = Table(title="layers", **_LOOK)
    titles = ("layer", "|K|/|V|", "mean of K", "of V", "outliers of K", "of V")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for t in study.traits:
        table.add_row(
            str(t.layer),
            f"{t.norm_ratio:.3g}",
            f"{t.k_mean_share:.1%}",
            f"{t.v_mean_share:.1%}",
            str(len(t.k_outliers)),
            str(len(t.v_outliers)),
        )
    return table
