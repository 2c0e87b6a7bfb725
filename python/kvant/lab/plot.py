"""Size against divergence as a picture: a logarithmic scatter by kind, with the Pareto front."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..picture import FAINT, INK, frame, picture, png
from .labels import Spot, label
from .result import KINDS, SweepResult, SweepRow, pareto

__all__ = ["plot_png"]

# Colours of Okabe and Ito, told apart by eyes of all kinds; the markers say the same without any.
_STYLE = {"recipe": ("o", "#0072b2"), "uniform": ("s", "#d55e00"), "mix": ("D", "#009e73")}
_LINE = "#5b6675"
_WORDS = {"recipe": "recipe", "uniform": "one format", "mix": "optimized mix"}


def plot_png(result: SweepResult, width: float = 9.6, height: float = 5.6, dpi: int = 160) -> bytes:
    """Draw a sweep and return the PNG.

    The horizontal axis is the size of the tensors in MiB, the vertical one the mean KL divergence
    from the original model in nats per token, logarithmic. Types without any divergence have no
    place on such an axis and are listed below it.
    """
    with picture(width, height, dpi) as (axes, canvas):
        drawn = [row for row in result.tested if 0 < row.divergence.kl_mean < float("inf")]
        front = [row for row in pareto(result.tested) if row in drawn]
        _axes(axes, result, drawn)
        _front_line(axes, front)
        for row in drawn:
            _point(axes, row, row in front)
        legend = _legend(axes, drawn, front)
        canvas.draw()
        _label(axes, canvas, drawn, front, legend)
        return png(canvas)


def _point(axes: Any, row: SweepRow, on_front: bool) -> None:
    """Filled on the front, hollow off it."""
    marker, color = _STYLE[row.kind]
    axes.plot(
        _mib(row),
        row.divergence.kl_mean,
        marker,
        ms=(7.5 if on_front else 6) * (0.85 if marker == "D" else 1),
        color=color,
        mfc=color if on_front else "white",
        mec="white" if on_front else color,
        mew=1 if on_front else 1.4,
        zorder=4 if on_front else 3,
    )


def _legend(axes: Any, drawn: list[SweepRow], front: list[SweepRow]) -> Any:
    """What markers and line mean, where no point lies; None where there is nothing to explain."""
    kinds = [kind for kind in KINDS if any(row.kind == kind for row in drawn)]
    if not kinds:
        return None
    keys = [
        Line2D([], [], ls="", marker=_STYLE[k][0], color=_STYLE[k][1], label=_WORDS[k])
        for k in kinds
    ]
    if len(front) > 1:
        keys.append(Line2D([], [], color=_LINE, lw=1.4, label="Pareto front (filled)"))
    return axes.legend(
        handles=keys, loc="best", fontsize=9, frameon=True, edgecolor="#e3e8ee", framealpha=1
    )


def _mib(row: SweepRow) -> float:
    return row.bytes / (1 << 20)


def _axes(axes: Any, result: SweepResult, drawn: list[SweepRow]) -> None:
    exact = [row.name for row in result.tested if row.divergence.kl_mean == 0]
    note = f"\nno divergence at all: {', '.join(exact)}" if exact else ""
    axes.set_xlabel(f"size of the tensors, MiB{note}", color=INK, fontsize=10.5)
    axes.set_ylabel("mean KL divergence, nats per token", color=INK, fontsize=10.5)
    original = result.base
    wide = axes.figure.get_figwidth() > 7
    about = f"original {_mib(original):.2f} MiB, {original.bits_per_weight:.2f} bits per weight"
    about += f"; {original.divergence.tokens} tokens scored" if wide else ""
    axes.set_title(
        f"{result.model}: size and divergence{' from the original' if wide else ''}\n",
        loc="left",
        fontsize=13,
        fontweight="bold",
        color=INK,
        parse_math=False,  # a model may be called "$"
    )
    axes.text(
        0,
        1.018,
        about,
        transform=axes.transAxes,
        fontsize=9.5 if wide else 8.5,
        color=FAINT,
        va="bottom",
    )
    axes.set_yscale("log")
    frame(axes)
    axes.tick_params(colors=INK, labelsize=9.5, length=3)
    axes.margins(x=0.1, y=0.14)
    values = [row.divergence.kl_mean for row in drawn]
    few_decades = not values or max(values) < 30 * min(values)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few_decades else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _front_line(axes: Any, front: list[SweepRow]) -> None:
    """The front as steps: at each size, the best that is not larger."""
    if len(front) < 2:
        return
    x = [_mib(row) for row in front]
    y = [row.divergence.kl_mean for row in front]
    axes.step(x, y, where="post", color=_LINE, lw=1.4, alpha=0.6, zorder=2)


def _label(
    axes: Any, canvas: Any, drawn: list[SweepRow], front: list[SweepRow], legend: Any
) -> None:
    """Name every point, those of the front first; labels keep off its line."""
    ordered = sorted(drawn, key=lambda r: (r not in front, r.bytes))
    spots = [Spot(r.name, _mib(r), r.divergence.kl_mean, r in front) for r in ordered]
    at = [(_mib(r), r.divergence.kl_mean) for r in front]
    label(axes, canvas, spots, list(pairwise(at)), legend)
