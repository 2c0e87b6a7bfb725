"""Which experts compute a token, and with which shares."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kvant.models.weights import Array
from kvant.ops import softmax

__all__ = ["Ints", "by_expert", "route"]

Ints = NDArray[np.int64]


def route(scores: Array, used: int, *, among: str = "all", norm: bool = True) -> tuple[Ints, Array]:
    """Choose the best `used` experts of each token.

    Parameters
    ----------
    scores : f32 [T, n_expert]
        Output of the router.
    used : int
        Experts per token.
    among : {"all", "chosen"}
        Softmax over the scores of all experts, or of those chosen only.
    norm : bool
        Divide the shares by their sum.

    Returns
    -------
    chosen : int64 [T, used], best first; the lower id wins a tie
    shares : f32 [T, used]
    """
    values = softmax(scores) if among == "all" else scores
    chosen = np.argsort(-values, axis=-1, kind="stable")[:, :used]
    shares = np.take_along_axis(values, chosen, axis=-1)
    if among == "chosen":
        return chosen, softmax(shares)
    if norm:
        # Added up in order, so that the bits are the same everywhere.
        shares /= np.add.accumulate(shares, axis=-1)[:, -1:]
    return chosen, shares


def by_expert(chosen: Ints) -> Iterator[tuple[int, Ints, Ints]]:
    """Yield (expert, token rows, slots) for every expert that some token chose, in order of id."""
    flat = chosen.ravel()
    order = np.argsort(flat, kind="stable")
    experts, starts = np.unique(flat[order], return_index=True)
    for expert, places in zip(experts, np.split(order, starts[1:]), strict=True):
        yield int(expert), places // chosen.shape[1], places % chosen.shape[1]
