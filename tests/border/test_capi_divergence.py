"""Rows compared through the C ABI: the numbers of Python, codes and texts for every misuse."""

from __future__ import annotations

import numpy as np
import pytest

from distributions import wild
from kvant.lab.divergence import RowDivergence, row_divergence

BASE, TEST = wild(5, 48, 0, 0.0), wild(5, 48, 1, 0.0)
ODD = np.zeros(5 * 48 * 4 + 1, np.uint8)[1:]
ROW = np.dtype([(name, "i8" if name.endswith("top") else "f8") for name in RowDivergence._fields])


def arguments():
    return {
        "base": BASE, "base_stride": 48, "test": TEST, "test_stride": 48, "rows": 5, "vocab": 48,
        "out": np.zeros(5, ROW), "threads": 0,
    }  # fmt: skip


def test_the_numbers_of_python(call):
    given = arguments()
    assert call("kvant_divergence", *given.values()) == 0
    for name, column in row_divergence(BASE, TEST)._asdict().items():
        assert given["out"][name].tolist() == column.tolist(), name


@pytest.mark.parametrize(
    ("change", "code", "what"),
    [
        ({"rows": -1}, -1, "needs logits of at least one token"),
        ({"vocab": 0}, -1, "needs logits of at least one token"),
        ({"base": ODD}, -3, "floats are not aligned to their size"),
        ({"test": ODD}, -3, "floats are not aligned to their size"),
    ],
)
def test_misuse_is_refused_and_out_is_left_alone(c, call, change, code, what):
    given = arguments() | change
    assert call("kvant_divergence", *given.values()) == code
    assert c.ffi.string(c.lib.kvant_error_text()).decode() == what
    assert (given["out"] == np.zeros(5, ROW)).all()


def test_no_rows(call):
    assert call("kvant_divergence", *(arguments() | {"rows": 0}).values()) == 0
