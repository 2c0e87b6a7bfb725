"""Tokens sorted by the experts that compute them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ints", "by_expert"]

Ints = NDArray[np.int64]


def by_expert(chosen: Ints) -> Iterator[tuple[int, Ints, Ints]]:
    """Yield (expert, token rows, slots) for every expert that some token chose, in order of id."""
    flat = chosen.ravel()
    order = np.argsort(flat, kind="stable")
    experts, starts = np.unique(flat[order], return_index=True)
    for expert, places in zip(experts, np.split(order, starts[1:]), strict=True):
        yield int(expert), places // chosen.shape[1], places % chosen.shape[1]
