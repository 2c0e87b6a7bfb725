"""What the modules about experts and networks share: stacks of weights, routings, compositions."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from product_cases import CANONICAL_NAN, weights

import kvant
from kvant import reference
from kvant.reference import ops

F32 = NDArray[np.float32]
ACTIVATIONS = tuple(ops.ACTIVATIONS)

experts = st.integers(1, 6)
tops = st.integers(1, 4)
tokens = st.one_of(st.integers(1, 9), st.integers(1, 70))


def stack(
    name: str, count: int, rows: int, cols: int, seed: int, kind: str = "near"
) -> kvant.QTensor:
    """Experts of blocks drawn from the pool."""
    q = weights(name, count * rows, cols, seed, kind)
    return kvant.QTensor(q.data.reshape(count, rows, q.data.shape[1]), name, (count, rows, cols))


def routed(m: int, top: int, count: int, seed: int) -> tuple[NDArray[np.int64], F32]:
    """Ids, some of them repeated and the last expert rarely, and weights of both signs."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, max(count - 1, 1), (m, top))
    if seed % 3 == 0:
        ids[rng.random(ids.shape) < 0.1] = count - 1
    return ids, (rng.random((m, top), np.float32) - np.float32(0.25)).astype(np.float32)


def pair(q: kvant.QTensor) -> tuple[Any, str]:
    """Weights as the reference takes them."""
    return q.data, q.format


def joined(activation: str) -> Any:
    """What the reference joins gate and up with."""
    return lambda gate, up: ops.activation_mul(gate, up, activation)


def products_by_expert(x: F32, q: Any, ids: NDArray[np.int64], act: str) -> F32:
    """`kvant.matmul` of each row [tokens, top, k] with its expert."""
    y = np.empty((*ids.shape, q.shape[1]), np.float32)
    for expert in np.unique(ids):
        mine = ids == expert
        y[mine] = kvant.matmul(np.ascontiguousarray(x[mine]), q[int(expert)], act=act)
    return y


def composed(
    x: Any,
    network: tuple[Any, Any, Any],
    ids: NDArray[np.int64],
    factors: F32,
    activation: str,
    act: str,
) -> F32:
    """`kvant.moe_ffn` as products and activations one after the other."""
    gate, up, down = network
    each = np.repeat(np.asarray(x, np.float32)[:, None], ids.shape[1], axis=1)
    hidden = kvant.activation_mul(
        products_by_expert(each, gate, ids, act), products_by_expert(each, up, ids, act), activation
    )
    outputs = products_by_expert(hidden, down, ids, act)
    y = np.zeros((len(ids), down.shape[1]), np.float32)
    with np.errstate(all="ignore"):
        for slot in range(ids.shape[1]):
            y = reference.fma(factors[:, slot, None], outputs[:, slot], y)
    words = y.view(np.uint32)
    words[np.isnan(y)] = CANONICAL_NAN
    return y
