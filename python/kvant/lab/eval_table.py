"""The figures of one comparison as a table, in the order in which llama-perplexity prints them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rich.table import Table

from .statistics import Divergence

__all__ = ["Line", "eval_table", "lines"]


class Line(NamedTuple):
    """A figure: the section it belongs to, its name, its value and its error, as text."""

    section: str
    name: str
    value: str
    error: str = ""


def lines(found: Divergence) -> Iterator[Line]:
    """Every figure in turn; a NaN is a dash."""
    errors = found.errors
    part = "perplexity"
    yield Line(part, "PPL(model)", *_pair(found.perplexity, errors["perplexity"]))
    yield Line(part, "PPL(base)", *_pair(found.base_perplexity, errors["base_perplexity"]))
    yield Line(part, "correlation of ln PPL", _percent(found.correlation, 2))
    names = {"log_perplexity_ratio": "ln(PPL(model) / PPL(base))"}
    names |= {"perplexity_ratio": "PPL(model) / PPL(base)"}
    names |= {"perplexity_difference": "PPL(model) - PPL(base)"}
    for name, label in names.items():
        yield Line(part, label, *_pair(getattr(found, name), errors[name]))
    part = "KL divergence, nats"
    yield Line(part, "mean", *_pair(found.kl_mean, errors["kl_mean"]))
    yield Line(part, "95 % interval", f"{_number(found.kl_low)} .. {_number(found.kl_high)}")
    for name, value in found.kl_quantiles.items():
        yield Line(part, name, _number(value))
    part = "probability of the right token"
    yield Line(part, "mean change", *_percents(found.delta_p_mean, errors["delta_p_mean"]))
    for name, value in found.delta_p_quantiles.items():
        yield Line(part, name, _percent(value))
    yield Line(part, "RMS change", *_percents(found.delta_p_rms, errors["delta_p_rms"]))
    yield Line(part, "same top token", *_percents(found.same_top, errors["same_top"]))


def eval_table(found: Divergence, title: str) -> Table:
    """All lines as a rich table."""
    table = Table(
        title=f"{title}: {found.tokens} tokens in {found.windows} windows",
        caption="+-: standard error over tokens; the interval is a bootstrap over windows",
        title_justify="left",
        caption_justify="left",
        show_header=False,
    )
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify, no_wrap=True)
    section = ""
    for line in lines(found):
        if line.section != section:
            if section:
                table.add_section()
            section = line.section
            table.add_row(f"[bold]{section}[/bold]", "", "")
        table.add_row(line.name, line.value, line.error)
    return table


def _number(value: float) -> str:
    return f"{value:.6f}" if value == value else "-"


def _percent(value: float, digits: int = 3) -> str:
    return f"{100 * value:.{digits}f} %" if value == value else "-"


def _pair(value: float, error: float) -> tuple[str, str]:
    return _number(value), f"+- {_number(error)}"


def _percents(value: float, error: float) -> tuple[str, str]:
    return _percent(value), f"+- {_percent(error)}"
