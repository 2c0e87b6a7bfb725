"""Bits against cost as a picture: keys and values, means over layers and how far layers differ."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..picture import FAINT, INK, frame, picture, png
from .kv_result import KVStudy, KVSummary
from .labels import Spot, label

__all__ = ["kv_plot_png"]

# Colours of Okabe and Ito, told apart by eyes of all kinds; the markers say the same without any.
_STYLE = {"k": ("o", "#0072b2"), "v": ("s", "#d55e00")}
_WORDS = {"k": "keys: mean KL divergence", "v": "values: half the squared output error"}


def kv_plot_png(study: KVStudy, width: float = 9.6, height: float = 6.0, dpi: int = 160) -> bytes:
    """Draw a study and return the PNG.

    The horizontal axis is bits for each number, the vertical one nats, logarithmic; a bar reaches
    from the best layer to the worst. Floats have errors so small that they are left out.
    """
    with picture(width, height, dpi) as (axes, canvas):
        coded = {r.codec for r in study.rows if r.stored.quantized}
        drawn = [s for s in study.summary() if s.codec in coded and 0 < s.cost < math.inf]
        fronts = {side: _front([s for s in drawn if s.side == side]) for side in _STYLE}
        _axes(axes, study)
        steps = []
        for side, front in fronts.items():
            at = [(s.bits, s.cost) for s in front]
            steps += list(pairwise(at))
            x, y = [p[0] for p in at], [p[1] for p in at]
            axes.step(x, y, where="post", color=_STYLE[side][1], lw=1.2, alpha=0.5, zorder=2)
        for each in drawn:
            _point(axes, study, each, each in fronts[each.side])
        legend = _legend(axes, drawn)
        canvas.draw()
        strong = [s for front in fronts.values() for s in front]
        ordered = sorted(drawn, key=lambda s: (s not in strong, s.bits))
        spots = [Spot(s.codec, s.bits, s.cost, s in strong, _STYLE[s.side][1]) for s in ordered]
        label(axes, canvas, spots, steps, legend)
        return png(canvas)


def _front(points: list[KVSummary]) -> list[KVSummary]:
    """Those that no other beats in bits and in cost, from few bits to many."""
    best, front = math.inf, []
    for point in sorted(points, key=lambda s: (s.bits, s.cost)):
        if point.cost < best:
            best = point.cost
            front.append(point)
    return front


def _point(axes: Any, study: KVStudy, each: KVSummary, on_front: bool) -> None:
    marker, color = _STYLE[each.side]
    costs = [r.cost for r in study.rows if (r.side, r.codec) == (each.side, each.codec)]
    low, high = min(c for c in costs if c > 0), max(costs)
    axes.plot([each.bits] * 2, [low, high], color=color, lw=1, alpha=0.25, zorder=1)
    axes.plot(
        each.bits,
        each.cost,
        marker,
        ms=7 if on_front else 5.5,
        color=color,
        mfc=color if on_front else "white",
        mec="white" if on_front else color,
        mew=1 if on_front else 1.4,
        zorder=4 if on_front else 3,
    )


def _legend(axes: Any, drawn: list[KVSummary]) -> Any:
    keys = [
        Line2D([], [], ls="", marker=marker, color=color, label=_WORDS[side])
        for side, (marker, color) in _STYLE.items()
        if any(s.side == side for s in drawn)
    ]
    if not keys:
        return None
    look = {"fontsize": 9, "frameon": True, "edgecolor": "#e3e8ee", "framealpha": 1}
    return axes.legend(handles=keys, loc="best", **look)


def _axes(axes: Any, study: KVStudy) -> None:
    axes.set_xlabel("bits for each number", color=INK, fontsize=10.5)
    axes.set_ylabel("nats, mean over layers", color=INK, fontsize=10.5)
    axes.set_title(
        f"{study.name or 'dump'}: bits of keys and values, and what they cost\n",
        loc="left",
        fontsize=13,
        fontweight="bold",
        color=INK,
        parse_math=False,
    )
    about = f"{study.layers} layers, {study.tokens} tokens, {study.queries} queries looked at"
    place = {"transform": axes.transAxes, "va": "bottom"}
    axes.text(0, 1.018, about, fontsize=9.5, color=FAINT, **place)
    axes.set_yscale("log")
    frame(axes)
    axes.tick_params(colors=INK, labelsize=9.5, length=3)
    axes.margins(x=0.1, y=0.1)
    axes.yaxis.set_major_locator(LogLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
