"""What the pictures have in common: ink, a frame of two lines, and how they become a PNG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["FAINT", "INK", "frame", "picture", "png"]

INK, FAINT = "#1c2430", "#8a94a3"


@contextmanager
def picture(width: float, height: float, dpi: int) -> Iterator[tuple[Any, Any]]:
    """Axes to draw on, and the canvas that `png` takes; width and height are in inches."""
    style: dict[Any, str] = {
        "font.family": "DejaVu Sans",
        "axes.edgecolor": FAINT,
        "text.color": INK,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
        canvas: Any = FigureCanvasAgg(figure)
        yield figure.add_subplot(), canvas


def frame(axes: Any) -> None:
    """A faint grid behind the drawing, and no lines above and to the right of it."""
    axes.grid(True, which="major", color="#e3e8ee", lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def png(canvas: Any) -> bytes:
    """The picture, the same bytes for the same drawing."""
    out = io.BytesIO()
    canvas.print_png(out, metadata={"Software": "kvant"})
    return out.getvalue()
