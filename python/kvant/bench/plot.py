"""The roofline: operations per byte against GOP/s, under the roofs that this run measured."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import FuncFormatter

from ..picture import FAINT, INK, frame, picture, png
from .result import Report, Row

__all__ = ["Point", "points", "roofline_png", "roofs"]

_COLORS = (
    *("#0f6fde", "#d9480f", "#2b8a3e", "#862e9c", "#c2255c"),
    *("#0b7285", "#5c940d", "#a65e00", "#364fc7"),
)
_MARKERS = "osD^vP*Xph"
# When there are more formats than colours.
_USUAL = ("q4_0", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "mxfp4")


class Point(NamedTuple):
    """One product: a format and a number of rows of x."""

    format: str
    m: int
    operations_per_byte: float
    gop_per_s: float


def roofs(report: Report) -> dict[str, float]:
    """`"GB/s"` read and `"GOP/s"` of int8, with the most threads, as far as they were measured."""
    found: dict[str, list[float]] = {"GB/s": [], "GOP/s": []}
    rows = {s.name: s.rows for s in report.sections}
    most = max(report.settings.threads)
    for r in rows.get("matmul", []):
        if r.case["threads"] == most:
            found["GB/s"].append(r.more["read_gb_per_s"])
            found["GOP/s"] += [r.more[k] for k in ("int8_gop_per_s",) if k in r.more]
    if found["GB/s"]:
        return {unit: float(np.median(values)) for unit, values in found.items() if values}
    for name, unit, word in (("bandwidth", "GB/s", "read"), ("compute", "GOP/s", "int8")):
        found[unit] = [r.value for r in rows.get(name, []) if str(r.case["what"]).startswith(word)]
    return {unit: max(values) for unit, values in found.items() if values}


def points(report: Report) -> list[Point]:
    """One point for each format and m: packed weights where there are some, the most threads."""
    most = max(report.settings.threads)
    best: dict[tuple[str, int], Row] = {}
    for section in report.sections:
        for r in section.rows if section.name == "matmul" else ():
            key = (r.case["format"], r.case["m"])
            if r.case["threads"] == most and (key not in best or r.case["weights"] == "packed"):
                best[key] = r
    return [
        Point(format, m, r.more["operations_per_byte"], r.more["gop_per_s"])
        for (format, m), r in best.items()
    ]


def roofline_png(report: Report, width: float = 9.6, height: float = 5.6, dpi: int = 160) -> bytes:
    """Draw a report and return the PNG."""
    with picture(width, height, dpi) as (axes, canvas):
        drawn, tops = _told_apart(points(report)), roofs(report)
        _axes(axes, report)
        _roofs(axes, tops, drawn)
        _points(axes, drawn)
        return png(canvas)


def _told_apart(drawn: list[Point]) -> list[Point]:
    if len({p.format for p in drawn}) <= len(_COLORS):
        return drawn
    return [p for p in drawn if p.format in _USUAL]


def _axes(axes: Any, report: Report) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte of weights, inputs and outputs", color=INK)
    axes.set_ylabel("GOP/s", color=INK)
    threads = max(report.settings.threads)
    about = f"{report.machine['cpu']}, {report.machine['isa']}, threads: {threads}"
    axes.set_title("Matrix products under the roofs of this machine\n", loc="left", color=INK)
    axes.text(0, 1.018, about, transform=axes.transAxes, fontsize=9, color=FAINT, va="bottom")
    frame(axes)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _roofs(axes: Any, tops: dict[str, float], drawn: list[Point]) -> None:
    xs = [p.operations_per_byte for p in drawn]
    low, high = min(xs, default=1.0) / 2, max(xs, default=1000.0) * 2
    memory, arithmetic = tops.get("GB/s"), tops.get("GOP/s")
    if memory and arithmetic:
        # Room for the corner, even when all points lie to one side of it.
        corner = arithmetic / memory
        low, high = min(low, corner / 3), max(high, corner * 3)
    x = np.geomspace(low, high, 200)
    slope = x * (memory or np.inf)
    flat = np.full_like(x, arithmetic or np.inf)
    roof = np.minimum(slope, flat)
    if memory or arithmetic:
        axes.plot(x, roof, color=INK, lw=1.6, zorder=2)
    if memory:
        axes.annotate(
            f"memory: read {memory:.1f} GB/s", (x[100], roof[100]), (-8, 6),
            textcoords="offset points", fontsize=9, color=INK, ha="right",
        )  # fmt: skip
    if arithmetic:
        axes.annotate(
            f"int8 peak {arithmetic:.0f} GOP/s", (x[-1], arithmetic), (-6, 6),
            textcoords="offset points", fontsize=9, color=INK, ha="right",
        )  # fmt: skip
    axes.set_xlim(low, high)


def _points(axes: Any, drawn: list[Point]) -> None:
    formats = list(dict.fromkeys(p.format for p in drawn))
    tokens = sorted({p.m for p in drawn})
    color = {f: _COLORS[i % len(_COLORS)] for i, f in enumerate(formats)}
    marker = {m: _MARKERS[i % len(_MARKERS)] for i, m in enumerate(tokens)}
    for p in drawn:
        axes.plot(
            p.operations_per_byte, p.gop_per_s, marker[p.m],
            color=color[p.format], ms=7, mec="white", mew=0.8, zorder=3,
        )  # fmt: skip
    for f in formats:
        axes.plot([], [], "o", color=color[f], label=f)
    for m in tokens:
        axes.plot([], [], marker[m], color=FAINT, label=f"m = {m}")
    if drawn:
        axes.legend(loc="lower right", fontsize=8.5, frameon=False, ncols=2)
