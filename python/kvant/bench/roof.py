"""Rows of matrix products: beside the bandwidth of reading, the peak of arithmetic, and both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..formats import FormatInfo
from .limits import Limit, Limits
from .result import Row, beside, row
from .timing import Times, ratio

__all__ = ["Work", "product_row", "tops"]

_READ, _ARITHMETIC = "read", "arithmetic"


class Work(NamedTuple):
    """What one call does, in units of 10^9: operations, bytes of weights, bytes of x and result."""

    operations: float
    weights: float
    around: float


def tops(limits: Limits, info: FormatInfo, threads: int) -> dict[str, Limit]:
    """What a product is limited by: reading, and int8 (f32 for weights of floats)."""
    arithmetic = limits.products("f32" if info.block == 1 else "int8", threads)
    return {_READ: limits.read(threads), _ARITHMETIC: arithmetic}


def product_row(
    case: dict[str, Any],
    own: Times,
    times: Mapping[str, Times],
    tops: Mapping[str, Limit],
    work: Work,
    others: Iterable[str],
) -> Row:
    """One row: GB/s of weights where x has one row, GOP/s where it has more.

    Parameters
    ----------
    case
        As in `Row`, with `m`.
    own, times
        Times of the product, and of all contenders of the same turns, `tops` among them.
    others
        Names of those in `times` that did the same work.
    """
    read, arithmetic = tops[_READ], tops[_ARITHMETIC]
    reading, computing = times[_READ], times[_ARITHMETIC]
    if case["m"] == 1:
        amount, unit, top = work.weights, "GB/s", (read.name, reading, read.amount)
    else:
        top = (arithmetic.name, computing, arithmetic.amount)
        amount, unit = work.operations, "GOP/s"
    traffic = work.weights + work.around
    more: dict[str, Any] = {
        "gop_per_s": round(own.rate(work.operations, "wall"), 3),
        "operations_per_byte": round(work.operations / traffic, 3),
        "read_gb_per_s": round(reading.rate(read.amount, "wall"), 3),
        f"{arithmetic.name}_gop_per_s": round(computing.rate(arithmetic.amount, "wall"), 3),
        "weight_bytes": round(1e9 * work.weights),
    }
    # The time that the slower of both would take for this work, round by round.
    least = np.maximum(
        reading.wall * traffic / read.amount,
        computing.wall * work.operations / arithmetic.amount,
    )
    more["of_roofline"] = ratio(Times(least, least), own, "wall").to_json()
    more |= {name: beside(own, times[name], amount) for name in others if name in times}
    return row(case, (own, amount), top, unit, more)
