"""Size against divergence as a picture: a logarithmic scatter with the Pareto front drawn."""

from __future__ import annotations

from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..picture import FAINT, INK, frame, picture, png
from .result import SweepResult, SweepRow, pareto

__all__ = ["plot_png"]

_FRONT, _OTHER = "#0f6fde", "#9aa7b8"

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
            on_front = row in front
            axes.plot(
                _mib(row),
                row.divergence.kl_mean,
                "o",
                ms=7.5 if on_front else 6,
                color=_FRONT if on_front else _OTHER,
                mec="white",
                mew=1,
                zorder=4 if on_front else 3,
            )
        canvas.draw()
        _label(axes, canvas, drawn, front)
        return png(canvas)


def _mib(row: SweepRow) -> float:
    return row.bytes / (1 << 20)


def _axes(axes: Any, result: SweepResult, drawn: list[SweepRow]) -> None:
    exact = [row.name for row in result.tested if row.divergence.kl_mean == 0]
    note = f"\nno divergence at all: {', '.join(exact)}" if exact else ""
    axes.set_xlabel(f"size of the tensors, MiB{note}", color=INK, fontsize=10.5)
    axes.set_ylabel("mean KL divergence, nats per token", color=INK, fontsize=10.5)
    original = result.base
    wide = axes.figure.get_figwidth() > 7
    about = f"original {_mib(original):.2f} MiB, {original.bits_per_weight:.2f} bits per weight; "
    about += f"{original.divergence.tokens} tokens scored; " if wide else ""
    axes.set_title(
        f"{result.model}: size and divergence{' from the original' if wide else ''}\n",
        loc="left",
        fontsize=13,
        fontweight="bold",
        color=INK,
    )
    axes.text(
        0,
        1.018,
        f"{about}line: Pareto front",
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
    axes.step(x, y, where="post", color=_FRONT, lw=1.4, alpha=0.55, zorder=2)


def _label(axes: Any, canvas: Any, drawn: list[SweepRow], front: list[SweepRow]) -> None:
    """Name every point at the free place nearest to it; greedy, points of the front first."""
    scale = canvas.figure.dpi / 72
    renderer = canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    at = {r.name: axes.transData.transform((_mib(r), r.divergence.kl_mean)) for r in drawn}
    dots = [(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in at.values()]
    taken: list[tuple[float, float, float, float]] = []
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


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
