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

import kvant
from kvant.bench.experts import Networks, composed, routes

pytestmark = pytest.mark.benchmark(max_time=0.5, min_rounds=7, warmup=True, disable_gc=True)

SHAPE = EXPERTS, TOP, HIDDEN, COLS = 128, 8, 768, 2048
FORMATS = ("q4_0", "q4_k")
TOKENS = (1, 32, 512)
THREADS = 2


@cache
def networks(format: str) -> Networks:
    return Networks(format, SHAPE)


@pytest.mark.parametrize("kind", ["moe_ffn", "composed"])
@pytest.mark.parametrize("m", TOKENS)
@pytest.mark.parametrize("format", FORMATS)
def test_moe_ffn(meter: Any, format: str, m: int, kind: str) -> None:
    made, rng = networks(format), np.random.default_rng(m)
    net, chosen = made.packed[0], routes(EXPERTS, TOP, m)
    x, scale = rng.standard_normal((m, COLS), np.float32), rng.random((m, TOP), np.float32)
    out, turn = np.empty_like(x), cycle(chosen)

    def fused() -> object:
        return kvant.moe_ffn(x, *net, next(turn), scale, out=out, threads=THREADS)

    def apart() -> object:
        return composed(x, net, next(turn), scale, THREADS)

    asked = np.mean([len(np.unique(ids)) for ids in chosen])
    nbytes = int(asked / EXPERTS * made.nbytes) + x.nbytes + out.nbytes
    meter(f"moe_ffn {format}, m = {m}", fused if kind == "moe_ffn" else apart, nbytes)
    close = kvant.moe_ffn(x, *net, chosen[0], scale)
    assert np.allclose(close, composed(x, net, chosen[0], scale, THREADS), rtol=1e-4, atol=1e-6)
