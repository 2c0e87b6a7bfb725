"""Mixture of experts: choose a few experts per token, then compute expert by expert.

Tokens are grouped by expert, so that each expert's weights meet all of its tokens in one matmul.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kvant.models.ops import Array, Ints, softmax

__all__ = ["by_expert", "route"]


def route(scores: Array, used: int) -> tuple[Ints, Array]:
    """Choose experts as qwen3moe does: softmax over all, the best `used`, shares summing to one.

    Parameters
    ----------
    scores : f32 [T, n_expert]
        Output of the router.
    used : int
        Experts per token.

    Returns
    -------
    chosen : int64 [T, used], best first; the lower id wins a tie
    shares : f32 [T, used]
    """
    probability = softmax(scores)
    chosen = np.argsort(-probability, axis=-1, kind="stable")[:, :used]
    shares = np.take_along_axis(probability, chosen, axis=-1)
    return chosen, shares / shares.sum(axis=-1, keepdims=True)


def by_expert(chosen: Ints) -> Iterator[tuple[int, Ints, Ints]]:
    """Yield (expert, token rows, slots) for every expert that some token chose, in order of id."""
    flat = chosen.ravel()
    order = np.argsort(flat, kind="stable")
    experts, starts = np.unique(flat[order], return_index=True)
    for expert, places in zip(experts, np.split(order, starts[1:]), strict=True):
        yield int(expert), places // chosen.shape[1], places % chosen.shape[1]
