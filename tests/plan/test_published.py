"""Every published figure beside ours: close, or different for a reason that is written down."""

from __future__ import annotations

import published
import pytest

from support import ROOT


@pytest.mark.parametrize("row", published.ROWS, ids=lambda row: f"{row.who}: {row.what}")
def test_close_or_explained(row: published.Row) -> None:
    assert row.close or row.why, row.line()


def test_exact_where_others_were_exact() -> None:
    exact = [row for row in published.ROWS if row.unit in ("bits", "bytes")]
    assert len(exact) > 30
    assert all(row.close and not row.why for row in exact)


def test_the_document_has_the_table() -> None:
    text = (ROOT / "docs" / "plan.md").read_text()
    missing = [line for line in published.table().splitlines() if line not in text]
    assert missing == [], "run python tests/plan/published.py and paste"
