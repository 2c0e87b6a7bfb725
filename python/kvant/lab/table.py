"""A sweep as a table: the columns once, for the terminal and for the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from .result import SweepResult, SweepRow, pareto

__all__ = ["COLUMNS", "Column", "mib", "rich_table"]


class Column(NamedTuple):
    """A heading, what it means in a few words, the value of its cell, and how that is written.

    The terminal must be `from_width` wide or the column is left out.
    """

    title: str
    meaning: str
    value: Callable[[SweepRow], str | float]
    show: Callable[[Any], str] = str
    from_width: int = 0

    def cell(self, row: SweepRow) -> str:
        return self.show(self.value(row))


def mib(nbytes: float) -> str:
    """Bytes as MiB with three significant digits or so.

    >>> mib(5 << 20), mib(300 << 20)
    ('5.00', '300')
    """
    value = nbytes / (1 << 20)
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def small(value: float) -> str:
    """A small non-negative number: three significant digits, two below a thousandth.

    >>> small(0.0), small(1.5), small(0.012345), small(0.00012345), small(0.0000012345)
    ('0', '1.50', '0.0123', '0.00012', '1.2e-06')
    """
    if not math.isfinite(value):
        return "inf" if value > 0 else "-"
    if value == 0:
        return "0"
    if value < 1e-5:
        return f"{value:.1e}"
    digits = 1 if value < 1e-3 else 2
    return f"{value:.{max(0, digits - math.floor(math.log10(value)))}f}"


COLUMNS: tuple[Column, ...] = (
    Column("type", "recipe, format, or mix of so many bits", lambda r: r.name),
    Column(
        "kind",
        "formats by recipe, the same for all tensors, or a mix chosen by measured sensitivity",
        lambda r: r.kind,
        from_width=110,
    ),
    Column("MiB", "tensor data", lambda r: r.bytes, mib),
    Column(
        "bits", "bits per weight over the whole file", lambda r: r.bits_per_weight, "{:.2f}".format
    ),
    Column(
        "error",
        "relative RMS error of the changed weights",
        lambda r: r.relative_rmse,
        small,
        from_width=100,
    ),
    Column("ppl", "perplexity", lambda r: r.divergence.perplexity, "{:.3f}".format),
    Column("KL", "mean KL divergence, nats per token", lambda r: r.divergence.kl_mean, small),
    Column("KL 99%", "one token in 100 is worse", lambda r: r.divergence.kl_p99, small, 80),
    Column("KL 99.9%", "one token in 1000 is worse", lambda r: r.divergence.kl_p999, small, 100),
    Column(
        "same top",
        "share of tokens with the same best guess",
        lambda r: r.divergence.same_top,
        "{:.1%}".format,
    ),
    Column("enc s", "time to quantize", lambda r: r.quantize_seconds, "{:.2f}".format, 100),
    Column("eval s", "time to score", lambda r: r.score_seconds, "{:.1f}".format, 100),
)


def rich_table(result: SweepResult, width: int = 120) -> Table:
    """The sweep as a rich table; the Pareto front is bold, the original model dim."""
    columns = [c for c in COLUMNS if width >= c.from_width]
    front = {row.name for row in pareto(result.tested)}
    caption = ["bold: no other type is both smaller and closer to the original"]
    if result.mixes is not None:
        caption.append(f"mixes chosen on {result.mixes}")
    table = Table(
        title=f"{result.model}: {result.base.divergence.tokens} tokens scored",
        caption="\n".join(caption),
        title_justify="left",
        caption_justify="left",
    )
    for column in columns:
        words = column.title in ("type", "kind")
        table.add_column(column.title, justify="left" if words else "right", no_wrap=True)
    for index, row in enumerate(result.rows):
        style = "dim" if index == 0 else "bold" if row.name in front else ""
        table.add_row(*(Text(column.cell(row), style=style) for column in columns))
    return table
