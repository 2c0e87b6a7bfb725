"""The Pareto front, the table, the picture and the page, from made-up results."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from kvant.lab import plot
from kvant.lab.divergence import Scores
from kvant.lab.heat import by_layer
from kvant.lab.page import html_page
from kvant.lab.report import print_table, write_report
from kvant.lab.result import SweepResult, SweepRow, pareto
from kvant.lab.statistics import summarize
from kvant.lab.table import COLUMNS
from kvant.lab.tensor_error import TensorError


def tensors(format: str) -> tuple[TensorError, ...]:
    """Two layers, an outside tensor, and a name that would be trouble if it were believed."""
    names = ["token_embd.weight", "blk.1.<script>alert(1)</script>.weight"]
    names += [f"blk.{layer}.attn_q.weight" for layer in (0, 1)]
    return tuple(TensorError(name, format, 0.01 * (i + 1), 1.0) for i, name in enumerate(names))


def row(name: str, nbytes: int, kl: float, kind: str = "recipe") -> SweepRow:
    tokens = np.zeros(510)
    divergence = replace(
        summarize([Scores(tokens, tokens, tokens, tokens == 0)]),
        perplexity=10 + kl,
        base_perplexity=10.0,
        kl_mean=kl,
        kl_error=math.nan,
        kl_median=kl / 2,
        kl_p99=kl * 5,
        kl_p999=kl * 9,
        kl_max=kl * 10,
        same_top=1 / (1 + kl),
        delta_p_rms=kl / 3,
    )
    return SweepRow(name, kind, nbytes, 8.0, 0.1, divergence, 0.5, 1.5, {"q8_0": 3}, tensors(name))


def result(rows: list[SweepRow]) -> SweepResult:
    base = row("original (f16)", 16 << 20, 0.0, "original")
    return SweepResult(
        model="<tiny> & co",
        text="book.txt",
        ctx=512,
        rows=(base, *rows),
        command="kvant sweep 'a <b>.gguf'",
        environment={"cpu": "some <cpu>"},
        created="2026-01-01T00:00:00+00:00",
        mixes="4 windows of <x>",
    )


ROWS = [
    row("Q8_0", 8 << 20, 0.0002),
    row("q6_k", 6 << 20, 0.001, "uniform"),
    row("Q4_0", 5 << 20, 0.02),
    row("mix:4.25", 5 << 20, 0.01, "mix"),
    row("Q3_K_M", 4 << 20, 0.05),
    row("worse", 7 << 20, 0.3),
]

points = st.lists(
    st.tuples(st.integers(1, 20), st.sampled_from([0.0, 0.1, 0.2, 0.5, math.inf])),
    min_size=1,
    max_size=12,
)


@given(points)
def test_the_front_is_what_nothing_beats(sizes: list[tuple[int, float]]) -> None:
    rows = [row(str(i), nbytes, kl) for i, (nbytes, kl) in enumerate(sizes)]
    front = pareto(rows)

    def beats(a: SweepRow, b: SweepRow) -> bool:
        x, y = (a.bytes, a.divergence.kl_mean), (b.bytes, b.divergence.kl_mean)
        return x != y and x[0] <= y[0] and x[1] <= y[1]

    for candidate in rows:
        beaten = any(beats(other, candidate) for other in rows)
        twin = any(
            (f.bytes, f.divergence.kl_mean) == (candidate.bytes, candidate.divergence.kl_mean)
            for f in front
        )
        assert twin == (not beaten and candidate.divergence.kl_mean < math.inf)
    assert [f.bytes for f in front] == sorted({f.bytes for f in front})


def test_json_has_no_numbers_that_json_lacks(tmp_path: Path) -> None:
    made = result([*ROWS, row("broken", 1 << 20, math.inf)])
    written = write_report(made, tmp_path / "new" / "folder")
    stored = json.loads(written["json"].read_text())
    assert stored["rows"][-1]["divergence"]["kl_mean"] is None
    assert stored["rows"][0]["divergence"]["kl_error"] is None
    front = [r["name"] for r in stored["rows"] if r["pareto"]]
    assert front == ["Q8_0", "q6_k", "mix:4.25", "Q3_K_M"]
    assert [r["kind"] for r in stored["rows"][:4]] == ["original", "recipe", "uniform", "recipe"]
    assert stored["rows"][1]["tensors"][2] == {
        "name": "blk.0.attn_q.weight",
        "layer": 0,
        "part": "attn_q",
        "format": "Q8_0",
        "relative_rmse": pytest.approx(0.03**0.5),
    }
    assert sorted(p.name for p in written["json"].parent.iterdir()) == [
        "report.html",
        "sweep.json",
        "sweep.png",
    ]


def test_the_picture_is_drawn_and_differs_with_the_data() -> None:
    first = plot.plot_png(result(ROWS), width=6, height=4, dpi=80)
    image = np.asarray(Image.open(io.BytesIO(first)).convert("RGB"))
    assert image.shape == (320, 480, 3)
    for _, color in plot._STYLE.values():
        wanted = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        assert (image == wanted).all(axis=2).sum() > 20  # a point on the front, and in the legend
    assert first == plot.plot_png(result(ROWS), width=6, height=4, dpi=80)
    assert first != plot.plot_png(result(ROWS[:-1]), width=6, height=4, dpi=80)


@pytest.mark.parametrize(
    "rows", [[], ROWS[:1], [row("same", 1 << 20, 0.0)], [row("worst", 1 << 20, math.inf)]]
)
def test_pictures_of_little_or_odd_data(rows: list[SweepRow]) -> None:
    assert plot.plot_png(result(rows), dpi=50).startswith(b"\x89PNG")


def test_labels_do_not_overlap() -> None:
    crowded = [row(f"Q4_K_{i}", (5 << 20) + (i << 15), 0.01 * 1.06**i) for i in range(9)]
    boxes: list[Any] = []
    original = plot._label

    def look(axes: Any, canvas: Any, drawn: Any, front: Any, legend: Any) -> None:
        original(axes, canvas, drawn, front, legend)
        renderer = canvas.get_renderer()
        boxes.extend(t.get_window_extent(renderer) for t in axes.texts if t.get_text())
        boxes.append(legend.get_window_extent(renderer))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "_label", look)
        plot.plot_png(result(crowded))
    names = boxes[1:]  # the first is the line below the title, the last is the legend
    assert len(names) == 10
    for i, a in enumerate(names):
        for b in names[:i]:
            width = min(a.x1, b.x1) - max(a.x0, b.x0)
            height = min(a.y1, b.y1) - max(a.y0, b.y0)
            assert width <= 0 or height <= 0


class Reader(HTMLParser):
    """Checks that tags are closed in order; collects text, addresses and the rows of tables."""

    VOID = frozenset({"meta", "img", "source"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.values: list[str] = []
        self.tags: Counter[str] = Counter()
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "srcset")]
        self.values += [v or "" for k, v in attrs if k == "data-value"]
        self.tags[tag] += 1
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    made = result(ROWS)
    page = html_page(made, b"\x89PNG wide", b"\x89PNG narrow")
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert len(reader.links) == 2
    assert all(link.startswith("data:image/png;base64,") for link in reader.links)
    assert "://" not in page
    assert "@import" not in page
    types, parts, *maps = reader.tables
    assert len(types) == 1 + len(made.rows)
    assert [cells[0] for cells in types[1:]] == [r.name for r in made.rows]
    assert all(len(cells) == len(COLUMNS) for cells in types)
    hostile = "<script>alert(1)</script>"
    assert parts[0] == ["type", "token_embd", "attn_q", hostile]
    assert parts[1] == ["Q8_0", "0.100", "0.187", "0.141"]
    assert len(maps) == len(ROWS)
    assert maps[0] == [["layer", "0", "1"], ["attn_q", "0.173", "0.200"], [hostile, "", "0.141"]]
    text = "".join(reader.words)
    for wanted in ("<tiny> & co", "kvant sweep 'a <b>.gguf'", "some <cpu>", "4 windows of <x>"):
        assert wanted in text


def test_the_page_runs_its_own_script_only() -> None:
    page = html_page(result(ROWS), b"", b"")
    reader = Reader()
    reader.feed(page)
    assert reader.tags["script"] == 1
    script = re.search("<script>(.*)</script>", page, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = re.search('<meta http-equiv="Content-Security-Policy" content="([^"]+)">', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; ")
    assert policy[1].endswith(f"; script-src 'sha256-{digest}'")
    assert "onclick" not in page


def test_numbers_sort_as_numbers() -> None:
    page = html_page(result([*ROWS, row("broken", 1 << 20, math.inf)]), b"", b"")
    reader = Reader()
    reader.feed(page)
    # Every column but type and kind, in both tables; NaN has no value, infinity has.
    assert len(reader.values) == (len(ROWS) + 2) * (len(COLUMNS) - 2) + (len(ROWS) + 1) * 3
    assert "Infinity" in reader.values
    assert all(float(value) >= 0 for value in reader.values)


def test_many_layers_are_shades_without_numbers() -> None:
    errors = tuple(
        TensorError(f"blk.{i}.{part}.weight", "q4_k", 1e-4 * 2**i, 1.0)
        for i in range(40)
        for part in ("attn_q", "ffn_up")
    )
    page = by_layer([replace(ROWS[0], tensors=errors)])
    assert page.count('title="blk.') == 80
    assert 'class="h0"' in page
    assert 'class="h7" title="blk.39.ffn_up.weight: q4_k, ' in page
    assert by_layer([replace(ROWS[0], tensors=())]) == ""
    assert 'class="h0"' in by_layer([replace(ROWS[0], tensors=errors[:1])])


@pytest.mark.parametrize(("width", "shown"), [(120, True), (70, False)])
def test_the_table_fits_the_terminal(width: int, shown: bool) -> None:
    out = io.StringIO()
    print_table(result(ROWS), Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert ("KL 99.9%" in out.getvalue()) == shown
    assert any("mix:4.25" in line and "0.0100" in line for line in lines)
    assert "mixes chosen on 4 windows" in out.getvalue()
    assert "…" not in out.getvalue()


def test_numbers_are_readable() -> None:
    cells = {c.title: c.cell(replace(ROWS[0], relative_rmse=0.0123456)) for c in COLUMNS}
    assert cells["MiB"] == "8.00"
    assert cells["error"] == "0.0123"
    assert cells["KL"] == "0.00020"
    assert cells["same top"] == "100.0%"
