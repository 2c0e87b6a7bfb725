"""kvant.moe_ffn beside its composition, in the shape of Qwen3-30B-A3B's layers, two threads.

Bytes moved are the packed bytes of the experts that the tokens chose, x and the result. The router
chooses others in every call, so that weights come from memory.
"""

from __future__ import annotations

from functools import cache
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kvant
from kvant.bench.inputs import packed_rows

pytestmark = pytest.mark.benchmark(max_time=0.5, min_rounds=7, warmup=True, disable_gc=True)

EXPERTS, TOP, HIDDEN, COLS = 128, 8, 768, 2048
FORMATS = ("q4_0", "q4_k")
TOKENS = (1, 32, 512)
THREADS = 2
F32 = NDArray[np.float32]
Network = tuple[kvant.PackedTensor, kvant.PackedTensor, kvant.PackedTensor]


@cache
def network(format: str) -> Network:
    def packed(rows: int, cols: int) -> kvant.PackedTensor:
        data = packed_rows(format, EXPERTS * rows, cols).reshape(EXPERTS, rows, -1)
        return kvant.QTensor(data, format, (EXPERTS, rows, cols)).pack()

    return packed(HIDDEN, COLS), packed(HIDDEN, COLS), packed(COLS, HIDDEN)


def composed(x: F32, net: Network, ids: NDArray[np.int64], weights: F32) -> F32:
    """The same by expert, one product after the other."""
    outputs = np.empty((*ids.shape, COLS), np.float32)
    for expert in np.unique(ids):
        token, slot = np.nonzero(ids == expert)
        gate, up, down = (w[int(expert)] for w in net)
        both = kvant.matmul_many(x[token], [gate, up], threads=THREADS)
        hidden = kvant.silu_mul(*both, out=both[0], threads=THREADS)
        outputs[token, slot] = kvant.matmul(hidden, down, threads=THREADS)
    return np.einsum("mt,mtn->mn", weights, outputs)


@pytest.mark.parametrize("kind", ["moe_ffn", "composed"])
@pytest.mark.parametrize("m", TOKENS)
@pytest.mark.parametrize("format", FORMATS)
def test_moe_ffn(meter: Any, format: str, m: int, kind: str) -> None:
    net, rng = network(format), np.random.default_rng(m)
    routes = [rng.permuted(np.tile(np.arange(EXPERTS), (m, 1)), axis=1)[:, :TOP] for _ in range(32)]
    x, weights = rng.standard_normal((m, COLS), np.float32), rng.random((m, TOP), np.float32)
    out, turn = np.empty_like(x), cycle(routes)

    def fused() -> F32:
        return kvant.moe_ffn(x, *net, next(turn), weights, out=out, threads=THREADS)

    def apart() -> F32:
        return composed(x, net, next(turn), weights)

    chosen = np.mean([len(np.unique(ids)) for ids in routes])
    nbytes = int(chosen * sum(w.nbytes for w in net) / EXPERTS) + x.nbytes + out.nbytes
    meter(f"moe_ffn {format}, m = {m}", fused if kind == "moe_ffn" else apart, nbytes)
    ids = routes[0]
    close = kvant.moe_ffn(x, *net, ids, weights)
    assert np.allclose(close, composed(x, net, ids, weights), rtol=1e-4, atol=1e-6)
