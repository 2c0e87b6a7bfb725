"""ggml as it stands beside kvant: the same numbers from the same bytes, and silent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kvant
from kvant.bench.ggml import Ggml, ggml

FORMATS = ["q4_0", "q8_0", "q4_k", "mxfp4", "f16"]


@pytest.fixture
def peer() -> Ggml:
    found = ggml()
    if found is None:
        pytest.skip("needs llama-cpp-python and cffi")
    return found


@pytest.mark.parametrize("repack", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_ggml_multiplies_the_same_bytes(peer: Ggml, format: str, repack: bool) -> None:
    rng = np.random.default_rng(0)
    q = kvant.quantize(rng.standard_normal((64, 512), np.float32), format)
    x = rng.standard_normal((3, 512), np.float32)
    product = peer.product(q.info, q.data, x, 2, repack=repack)
    if product is None:
        assert repack
        return
    product()
    wanted = x @ q.dequantize().T
    assert np.abs(product.out - wanted).max() < 0.02 * np.abs(wanted).max()
    product.close()


@pytest.mark.parametrize("top", [1, 3])
@pytest.mark.parametrize("repack", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_ggml_asks_the_same_experts(peer: Ggml, format: str, repack: bool, top: int) -> None:
    experts, hidden, cols, m = 4, 256, 512, 5
    rng = np.random.default_rng(0)
    stacks = [
        kvant.quantize(rng.standard_normal((experts, *shape), np.float32), format)
        for shape in ((hidden, cols), (hidden, cols), (cols, hidden))
    ]
    x, scale = rng.standard_normal((m, cols), np.float32), rng.random((m, top), np.float32)
    info, data = stacks[0].info, [q.data for q in stacks]
    network = peer.experts(info, data, x, scale, 2, repack=repack)
    if network is None:
        assert repack
        return
    for _ in range(2):
        network.ids[:] = [rng.permutation(experts)[:top] for _ in range(m)]
        network()
        wanted = kvant.moe_ffn(x, *stacks, network.ids, scale)
        assert np.abs(network.out - wanted).max() < 0.03 * np.abs(wanted).max()
    network.close()


def test_ggml_is_silent_and_leaves_the_log_of_others(peer: Ggml, capfd: Any) -> None:
    heard: list[int] = []
    ours = peer.ffi.callback("logger", lambda level, text, data: heard.append(level))
    before, data = peer.ffi.new("logger*"), peer.ffi.new("void**")
    peer.lib.ggml_log_get(before, data)
    peer.lib.ggml_log_set(ours, peer.ffi.NULL)
    try:
        q = kvant.quantize(np.ones((64, 512), np.float32), "q4_0")
        product = peer.product(q.info, q.data, np.ones((1, 512), np.float32), 1, repack=True)
        found = peer.ffi.new("logger*")
        peer.lib.ggml_log_get(found, peer.ffi.new("void**"))
        assert found[0] == ours
    finally:
        peer.lib.ggml_log_set(before[0], data[0])
    if product is None:
        pytest.skip("this ggml lays nothing out anew")
    product.close()
    assert heard == [] and "repack" not in capfd.readouterr().err
