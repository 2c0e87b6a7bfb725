"""`python -m benchmarks.kv`, small: the same results as ggml's, and every part runs."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvant
from kvant.bench import probes
from kvant.bench.ggml import ggml
from support import ROOT

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(probes, "_SECONDS", 1e-5)
    monkeypatch.setattr(import_module("benchmarks.kv_caches"), "BYTES", 1e6)


def run(folder: Path, *words: str) -> dict[str, Any]:
    file = folder / "kv.json"
    assert import_module("benchmarks.kv").main([*words, "--rounds", "2", "--json", str(file)]) == 0
    return json.loads(file.read_text())


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Attention of the last tokens in f64: q [n, heads, d], k and v [T, kv_heads, d]."""
    (n, heads, dim), (seen, kv_heads, _) = q.shape, k.shape
    grouped = q.astype(np.float64).reshape(n, kv_heads, heads // kv_heads, dim)
    scores = np.einsum("nhgd,thd->nhgt", grouped, k) * dim**-0.5
    unseen = np.arange(seen) > np.arange(seen - n, seen)[:, None]
    weights = np.exp(np.where(unseen[:, None, None], -np.inf, scores))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("nhgt,thd->nhgd", weights, v).reshape(q.shape)


@pytest.mark.parametrize("queries", [1, 3, 100])
@pytest.mark.parametrize("codec", ["f16", "q8_0", "q4_0"])
def test_ggml_attends_over_the_same_codes(codec: str, queries: int) -> None:
    peer = ggml()
    if peer is None:
        pytest.skip("needs llama-cpp-python and cffi")
    attention = import_module("benchmarks.ggml_attention").Attention
    rng = np.random.default_rng(queries)
    kinds = [kvant.quantize(rng.standard_normal((4, 150, 64), np.float32), codec) for _ in range(4)]
    layers = [(kinds[0].data, kinds[1].data), (kinds[2].data, kinds[3].data)]
    q = rng.standard_normal((queries, 8, 64), np.float32)
    graph = attention(peer, kinds[0].info, [_cube(layer) for layer in layers], q, 2)
    for turn in range(3):
        graph()
        k, v = (side.dequantize().swapaxes(0, 1) for side in kinds[2 * (turn % 2) :][:2])
        wanted = exact(q, k, v)
        assert np.linalg.norm(graph.out - wanted) < 0.02 * np.linalg.norm(wanted)
    graph.close()


def _cube(layer: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, ...]:
    return tuple(data.reshape(4, 150, -1) for data in layer)


def test_peers(tmp_path: Path, capsys: Capture) -> None:
    rows = run(tmp_path, "--peers", "--tokens", "200", "--queries", "1", "20")["peers"]
    assert {(row["codec"], row["queries"]) for row in rows} == {
        (codec, queries) for codec in ("f16", "q8_0", "q4_0") for queries in (1, 20)
    }
    assert all(row["of_read"]["median"] > 0 for row in rows)
    beside = ggml() is not None
    assert all(("times_ggml" in row) == beside for row in rows)
    assert ("wanted 25" in capsys.readouterr().out) == beside


def test_results_that_differ_are_no_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if ggml() is None:
        pytest.skip("needs llama-cpp-python and cffi")
    module = import_module("benchmarks.ggml_attention")
    # Queries that see each other's keys.
    monkeypatch.setattr(module, "_causal", lambda n, tokens: np.zeros((n, tokens), np.float16))
    with pytest.raises(kvant.Error, match="expected what ggml computes over q8_0"):
        run(tmp_path, "--peers", "--tokens", "64", "--queries", "40", "--codecs", "q8_0")


def test_without_ggml_there_are_reads_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("benchmarks.kv_peers"), "ggml", lambda: None)
    (row,) = run(tmp_path, "--peers", "--tokens", "64", "--queries", "1", "--codecs", "q8_0",
                 "--threads", "1")["peers"]  # fmt: skip
    assert "times_ggml" not in row and row["ms"] >= row["ms_least"] > 0


def test_ik_figures_are_shares_of_what_its_machine_reads() -> None:
    module = import_module("benchmarks.kv_peers")
    row = {"codec": "q8_0", "tokens": 4096, "queries": 512, "threads": 2, "gops": 233.0}
    row |= {"read_gb_per_second": 34.0, "of_int8": {"median": 0.5}}
    found = module.beside_ik(row)
    assert found["times_ik"] == pytest.approx([1.0, 58 / 34])
    assert found["times_ik_of_peak"] == pytest.approx(0.5 * 924 / 233)
    for change in ({"codec": "lm4"}, {"tokens": 100}, {"threads": 4}, {"queries": 2}):
        assert module.beside_ik(row | change) == {}


def test_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("benchmarks.kv_sweep")
    monkeypatch.setattr(module, "TOKENS", 128)
    rows = run(tmp_path, "--sweep", "--threads", "1")["sweep"]
    assert len(rows) == 3 * len(module.SHAPES)
    assert {row["dim"] for row in rows} == {*module.DIMS, 576}
    for codec in module.CODECS:
        assert max(row["of_best"] for row in rows if row["codec"] == codec) == 1
    assert [row["value_dim"] for row in rows if row["view"]] == [512] * 3


def test_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("benchmarks.kv_depth")
    shape = module.SHAPES[module.SHAPE]
    keys = {"block_count": 2, "embedding_length": 128, "feed_forward_length": 96, "vocab_size": 64}
    keys |= {"attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 32}
    small = import_module("dataclasses").replace(shape, keys=shape.keys | keys)
    monkeypatch.setitem(module.SHAPES, module.SHAPE, small)
    monkeypatch.setattr(module, "DEPTH", 100)
    monkeypatch.setattr(module, "DECODED", 3)
    rows = run(tmp_path, "--depth", "--kv", "q8_0", "f16")["depth"]
    assert [row["kv"] for row in rows] == ["q8_0", "f16"]
    assert all(row["of_start"]["median"] > 0 and row["depth"] == 100 for row in rows)
    assert rows[1]["of_start_by_bytes"] < rows[0]["of_start_by_bytes"] < 1


def test_codecs(tmp_path: Path) -> None:
    found = run(tmp_path, "--tokens", "64", "128", "--codecs", "q8_0", "lm4", "--threads", "1")
    assert [row["tokens"] for row in found["attention"]] == [64, 64, 128, 128]
    assert set(found["append"]) == {"q8_0", "lm4"}
