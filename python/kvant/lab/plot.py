"""Size against divergence as a picture: a logarithmic scatter by kind, with the Pareto front."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..picture import FAINT, INK, frame, picture, png
from .result import KINDS, SweepResult, SweepRow, pareto

__all__ = ["plot_png"]

Box = tuple[float, float, float, float]

# Colours of Okabe and Ito, told apart by eyes of all kinds; the markers say the same without any.
_STYLE = {"recipe": ("o", "#0072b2"), "uniform": ("s", "#d55e00"), "mix": ("D", "#009e73")}
_LINE = "#5b6675"
_WORDS = {"recipe": "recipe", "uniform": "one format", "mix": "optimized mix"}

# Where a label may stand, in points from its point: nearest and most usual places first.
_PLACES = [
    (dx * reach, dy * reach)
    for reach in (9, 16, 26, 38, 54)
    for dx, dy in ((1, 0.8), (-1, 0.8), (1, -0.9), (-1, -0.9), (0, 1.2), (0, -1.3), (1, 0), (-1, 0))
]


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
    """Name every point at the free place nearest to it; greedy, points of the front first."""
    scale = canvas.figure.dpi / 72
    renderer = canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    at = {r.name: axes.transData.transform((_mib(r), r.divergence.kl_mean)) for r in drawn}
    dots = [(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in at.values()]
    # Labels keep off the front's line as they keep off points.
    steps = [(at[a.name], at[b.name]) for a, b in pairwise(front)]
    dots += [(x, y - scale, end, y + scale) for (x, y), (end, _) in steps]
    dots += [(x - scale, low, x + scale, y) for (_, y), (x, low) in steps]
    taken: list[Box] = [] if legend is None else [legend.get_window_extent(renderer).extents]
    for row in sorted(drawn, key=lambda r: (r not in front, r.bytes)):
        x, y = at[row.name]
        on_front = row in front
        text = axes.annotate(
            row.name,
            (_mib(row), row.divergence.kl_mean),
            (0, 0),
            textcoords="offset points",
            fontsize=9,
            fontweight="bold" if on_front else "normal",
            color=INK if on_front else "#5b6675",
            zorder=5,
        )
        extent = text.get_window_extent(renderer)
        w, h = extent.width + 3 * scale, extent.height + 2 * scale
        best, cost = None, float("inf")
        for rank, (dx, dy) in enumerate(_PLACES):
            cx, cy = x + dx * scale, y + dy * scale
            left = cx if dx > 0 else cx - w if dx < 0 else cx - w / 2
            box = (left, cy - h / 2, left + w, cy + h / 2)
            bad = sum(_overlap(box, other) for other in taken) * 4
            bad += sum(_overlap(box, dot) for dot in dots)
            bad += (w * h - _overlap(box, (frame.x0, frame.y0, frame.x1, frame.y1))) * 4
            if bad * 10 + rank < cost:
                best, cost = (dx, dy, box), bad * 10 + rank
        assert best is not None
        dx, dy, box = best
        taken.append(box)
        text.set_position((dx, dy))
        text.set_ha("left" if dx > 0 else "right" if dx < 0 else "center")
        text.set_va("center")
        if max(abs(dx), abs(dy)) > 20:
            _leader(axes, row, (dx, dy))


def _leader(axes: Any, row: SweepRow, offset: tuple[float, float]) -> None:
    """A thin line from a point to a label that had to stand apart."""
    axes.annotate(
        "",
        (_mib(row), row.divergence.kl_mean),
        offset,
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "lw": 0.7, "color": FAINT, "shrinkB": 5, "shrinkA": 0},
        zorder=2,
    )


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
