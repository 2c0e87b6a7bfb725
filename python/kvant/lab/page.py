"""A sweep as one HTML file that needs nothing else: picture, table, how it was made."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

from .result import SweepResult, SweepRow, pareto
from .table import COLUMNS, mib, small

__all__ = ["html_page"]

_CSS = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #e1e6ec; --paper: #fff; --ground: #f5f7f9;
  --mark: #0f6fde; --tint: #eef5fd; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa7b8; --line: #2c3541;
  --paper: #171d25; --ground: #10151b; --mark: #6cb0ff; --tint: #17273a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: clamp(1rem, 4vw, 3rem); }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 0 0 .3rem;
  letter-spacing: -.015em; }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .7rem; }
p { margin: .4rem 0; max-width: 44rem; }
.soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem;
  margin: 1.6rem 0; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: .7rem;
  padding: .8rem 1rem; }
.card b { display: block; font-size: 1.35rem; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .85rem; }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: .7rem;
  padding: .6rem; }
figure img { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; background: var(--paper); border: 1px solid var(--line);
  border-radius: .7rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .8rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: .8rem; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); }
tr:last-child td { border-bottom: 0; }
tr.front td { background: var(--tint); }
tr.front td:first-child { color: var(--mark); font-weight: 600; }
tr.base td { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: 0;
  font-size: .92rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--paper); border: 1px solid var(--line); border-radius: .7rem; padding: 1rem;
  overflow-x: auto; font: .88rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (max-width: 32rem) { th, td { padding: .45rem .6rem; } }
"""


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
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_CSS}</style>
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
<div class="scroll"><table>
<thead><tr>{"".join(_heading(c.title, c.meaning) for c in COLUMNS)}</tr></thead>
<tbody>
{chr(10).join(_row(row, row is base, row.name in names) for row in result.rows)}
</tbody>
</table></div>
<p class="soft">Highlighted: the Pareto front; no other type is both smaller and closer to the
original. A type's name is a recipe, not a size: compare at equal size.</p>
<h2>What the columns mean</h2>
{_definitions((c.title, c.meaning) for c in COLUMNS)}
<h2>How this was made</h2>
<pre>{escape(result.command)}</pre>
{_definitions([*result.environment.items(), ("created", result.created)])}
</main>
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


def _heading(title: str, meaning: str) -> str:
    return f'<th scope="col" title="{escape(meaning, quote=True)}">{escape(title)}</th>'


def _row(row: SweepRow, is_base: bool, on_front: bool) -> str:
    kind = "base" if is_base else "front" if on_front else ""
    cells = "".join(f"<td>{escape(column.cell(row))}</td>" for column in COLUMNS)
    return f'<tr class="{kind}">{cells}</tr>' if kind else f"<tr>{cells}</tr>"


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    inner = "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in pairs)
    return f"<dl>{inner}</dl>"
