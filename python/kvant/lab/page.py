"""A sweep as one HTML file that needs nothing else: picture, tables, how it was made.

Names in it come from files that anybody may have written: all of them are escaped, and a policy in
the page lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from importlib.resources import files

from .heat import by_layer, by_part
from .html_table import Cell, sortable
from .result import SweepResult, SweepRow, pareto
from .table import COLUMNS, mib, small

__all__ = ["html_page"]


def html_page(result: SweepResult, wide: bytes, narrow: bytes) -> str:
    """The report as one self-contained HTML document.

    Parameters
    ----------
    result : SweepResult
    wide, narrow : bytes
        PNG pictures of `kvant.lab.plot` for large and small screens, embedded as data URIs.
    """
    front = pareto(result.tested)
    names = {row.name for row in front}
    title = f"{escape(result.model)}: quantization sweep"
    base = result.base
    css, script = _beside("page.css"), _beside("page.js")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="soft">How much smaller the model gets, and how far its predictions move:
{base.divergence.tokens} tokens scored in {base.divergence.windows} windows of {result.ctx}.
Text: {escape(result.text)}.</p>
{_cards(base, front)}
<figure><picture>
<source media="(max-width: 40rem)" srcset="{_data_uri(narrow)}">
<img alt="Scatter plot: size against mean KL divergence" src="{_data_uri(wide)}">
</picture></figure>
<h2>All types</h2>
{_types(result, names)}
<p class="soft">Highlighted: the Pareto front; no other type is both smaller and closer to the
original. A type's name is a recipe, not a size: compare at equal size.{_about_mixes(result)}</p>
{_errors(result)}
<h2>What the columns mean</h2>
{_definitions((c.title, c.meaning) for c in COLUMNS)}
<h2>How this was made</h2>
<pre>{escape(result.command)}</pre>
{_definitions([*result.environment.items(), ("created", result.created)])}
</main>
<script>{script}</script>
</body>
</html>
"""


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _cards(base: SweepRow, front: list[SweepRow]) -> str:
    cards = [(f"{mib(base.bytes)} MiB", f"original, perplexity {base.divergence.perplexity:.2f}")]
    # Two landmarks: the smallest type that is near the original, and the smallest of all.
    for row, what in _landmarks(front):
        share = 100 * row.bytes / base.bytes
        detail = f"{what}: {share:.0f}% of the size, KL {small(row.divergence.kl_mean)}"
        cards.append((row.name, detail))
    inner = "".join(
        f'<div class="card"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in cards
    )
    return f'<div class="cards">{inner}</div>'


def _landmarks(front: list[SweepRow]) -> list[tuple[SweepRow, str]]:
    if not front:
        return []
    near = [row for row in front if row.divergence.same_top >= 0.95]
    found = [(near[0], "smallest with 95% same top")] if near else []
    return [*found, (front[-1], "closest"), (front[0], "smallest")]


def _types(result: SweepResult, front: set[str]) -> str:
    def kind(row: SweepRow) -> str:
        return "base" if row is result.base else "front" if row.name in front else ""

    def cells(row: SweepRow) -> list[Cell]:
        pairs = ((column.value(row), column.cell(row)) for column in COLUMNS)
        return [Cell(text, None if isinstance(v, str) else float(v)) for v, text in pairs]

    headings = [Cell(column.title, title=column.meaning) for column in COLUMNS]
    return sortable(headings, ((kind(row), cells(row)) for row in result.rows), words=2)


def _about_mixes(result: SweepResult) -> str:
    if result.mixes is None:
        return ""
    return f" Mixes were chosen by what each format costs each tensor on {escape(result.mixes)}."


def _errors(result: SweepResult) -> str:
    if not any(row.tensors for row in result.tested):
        return ""
    return f"""<h2>Error of the weights</h2>
<p class="soft">Relative RMS error by part of the model, all layers together; empty: kept as it was.
It says where a type is coarse, not how much that matters.</p>
{by_part(result.tested)}
<h2>Error by layer</h2>
{by_layer(result.tested)}"""


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    inner = "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in pairs)
    return f"<dl>{inner}</dl>"


def _beside(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
