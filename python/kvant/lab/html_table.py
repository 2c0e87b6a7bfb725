"""Tables of the page: plain HTML that its script makes sortable. Everything shown is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

__all__ = ["Cell", "sortable"]


class Cell(NamedTuple):
    """What is shown, the number that it sorts by (text sorts as text), and what hovering tells."""

    text: str
    value: float | None = None
    title: str = ""


def sortable(
    headings: Sequence[Cell], rows: Iterable[tuple[str, Sequence[Cell]]], words: int = 1
) -> str:
    """A table.

    Parameters
    ----------
    headings : sequence of Cell
    rows : iterable of (class of the row, its cells)
    words : int
        Columns of text at the left; the others stand to the right.

    >>> sortable([Cell("a")], [("", [Cell("<1>", 1.0)])]).splitlines()[3]
    '<tr><td class="word" data-value="1.0">&lt;1&gt;</td></tr>'
    """
    head = "".join(
        f'<th scope="col"{_class(i < words)}{_title(cell)}>{escape(cell.text)}</th>'
        for i, cell in enumerate(headings)
    )
    body = "\n".join(
        f"<tr{_named(kind)}>"
        + "".join(
            f"<td{_class(i < words)}{_value(cell)}{_title(cell)}>{escape(cell.text)}</td>"
            for i, cell in enumerate(cells)
        )
        + "</tr>"
        for kind, cells in rows
    )
    return (
        '<div class="scroll"><table class="sortable">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _class(is_word: bool) -> str:
    return ' class="word"' if is_word else ""


def _named(kind: str) -> str:
    return f' class="{escape(kind)}"' if kind else ""


def _value(cell: Cell) -> str:
    if cell.value is None or math.isnan(cell.value):
        return ""
    # The script's word for infinity.
    value = repr(float(cell.value)).replace("inf", "Infinity")
    return f' data-value="{value}"'


def _title(cell: Cell) -> str:
    return f' title="{escape(cell.title)}"' if cell.title else ""
