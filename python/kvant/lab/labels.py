"""Names of points in a picture, each at the free place nearest to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..picture import FAINT, INK

__all__ = ["Spot", "label"]

Box = tuple[float, float, float, float]
XY = tuple[float, float]

# Where a label may stand, in points from its point: nearest and most usual places first.
_PLACES = [
    (dx * reach, dy * reach)
    for reach in (9, 16, 26, 38, 54)
    for dx, dy in ((1, 0.8), (-1, 0.8), (1, -0.9), (-1, -0.9), (0, 1.2), (0, -1.3), (1, 0), (-1, 0))
]


class Spot(NamedTuple):
    """A point in data, its name, whether it is one of those that matter, and its colour."""

    name: str
    x: float
    y: float
    strong: bool
    color: str = ""


def label(
    axes: Any, canvas: Any, spots: Sequence[Spot], steps: Sequence[tuple[XY, XY]], legend: Any
) -> None:
    """Name every point; greedy, in their order.

    Parameters
    ----------
    axes, canvas
        As `kvant.picture.picture` gives them.
    spots : sequence of Spot
    steps : sequence of pairs of points
        Ends of steps of a line, across and then down or up, that labels keep off.
    legend
        Labels keep off it; None where there is none.
    """
    scale = canvas.figure.dpi / 72
    renderer = canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    places = [axes.transData.transform((spot.x, spot.y)) for spot in spots]
    dots = [(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in places]
    for a, b in steps:
        (x, y), (end, low) = axes.transData.transform(a), axes.transData.transform(b)
        dots.append((x, y - scale, end, y + scale))
        dots.append((end - scale, min(low, y), end + scale, max(low, y)))
    taken: list[Box] = [] if legend is None else [legend.get_window_extent(renderer).extents]
    for spot, (x, y) in zip(spots, places, strict=True):
        text = axes.annotate(
            spot.name,
            (spot.x, spot.y),
            (0, 0),
            textcoords="offset points",
            fontsize=9,
            fontweight="bold" if spot.strong else "normal",
            color=spot.color or (INK if spot.strong else "#5b6675"),
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
            _leader(axes, spot, (dx, dy))


def _leader(axes: Any, spot: Spot, offset: XY) -> None:
    """A thin line from a point to a label that had to stand apart."""
    axes.annotate(
        "",
        (spot.x, spot.y),
        offset,
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "lw": 0.7, "color": FAINT, "shrinkB": 5, "shrinkA": 0},
        zorder=2,
    )


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
