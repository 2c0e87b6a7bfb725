"""Everything that is written about a sweep: JSON, picture and page, and the table on a terminal."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from ..gguf.replace import replacing
from .page import html_page
from .plot import plot_png
from .result import SweepResult
from .table import rich_table

__all__ = ["print_table", "write_report"]


def write_report(result: SweepResult, out: str | Path) -> dict[str, Path]:
    """Write `sweep.json`, `sweep.png` and `report.html` into a folder, made if need be.

    Parameters
    ----------
    result : SweepResult
    out : path
        The folder. Files of the same names in it are replaced, each as a whole.

    Returns
    -------
    dict
        "json", "png" and "html" to the paths written.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    png = plot_png(result)
    narrow = plot_png(result, width=5.2, height=6.0, dpi=150)
    text = json.dumps(result.as_json(), indent=1, allow_nan=False) + "\n"
    contents = {
        "json": ("sweep.json", text.encode()),
        "png": ("sweep.png", png),
        "html": ("report.html", html_page(result, png, narrow).encode()),
    }
    written = {}
    for kind, (name, content) in contents.items():
        with replacing(folder / name) as file:
            file.write(content)
        written[kind] = folder / name
    return written


def print_table(result: SweepResult, console: Console | None = None) -> None:
    """Print the table; narrow terminals get fewer columns."""
    console = console or Console()
    console.print(rich_table(result, console.width))
