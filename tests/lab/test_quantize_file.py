"""quantize_file: what it writes, what it refuses, and that it leaves nothing half done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvant import gguf, quantize
from kvant import quantize_tensor as module
from kvant.errors import FormatError, GGUFError, ShapeError
from kvant.imatrix import Imatrix
from kvant.qtensor import QTensor
from kvant.quantize_file import quantize_file
from kvant.quantize_tensor import quantize_tensor


def tensor(file: gguf.GGUFFile, name: str) -> QTensor:
    found = file.tensors[name]
    assert isinstance(found, QTensor)
    return found


def test_tensors_are_the_quantized_source(dense: Path, tmp_path: Path) -> None:
    summary = quantize_file(dense, tmp_path / "q.gguf", "Q4_K_M")
    with gguf.open(dense) as a, gguf.open(tmp_path / "q.gguf") as b:
        assert [change.name for change in summary.tensors] == list(b.tensors)
        assert set(a.tensors) == set(b.tensors)
        for change in summary.tensors:
            x, y = tensor(a, change.name), tensor(b, change.name)
            assert (y.format, y.nbytes) == (change.format, change.bytes)
            assert y == (x if change.format == x.format else quantize(x.dequantize(), y.format))
        kinds = {y.format for y in (tensor(b, name) for name in b.tensors)}
        assert kinds == {"q4_k", "q6_k", "f32"}
        total = sum(tensor(b, name).nbytes for name in b.tensors)
        assert summary.bytes == total
    assert len(summary.without_importance) == 15


def test_metadata_says_what_was_done(dense: Path, tmp_path: Path) -> None:
    matrix = Imatrix(datasets=["book.txt", "other.txt"])
    matrix.add("blk.0.attn_q.weight", np.ones((1024, 256)))
    matrix.save(tmp_path / "imatrix.gguf")
    quantize_file(dense, tmp_path / "q.gguf", "Q5_K_S", imatrix=tmp_path / "imatrix.gguf")
    with gguf.open(dense) as a, gguf.open(tmp_path / "q.gguf") as b:
        kept = [key for key in a.metadata if key != "general.file_type"]
        added = list(b.metadata)[len(kept) :]
        assert list(b.metadata)[: len(kept)] == kept
        assert added == [
            "general.quantization_version",
            "general.file_type",
            "quantize.imatrix.file",
            "quantize.imatrix.dataset",
            "quantize.imatrix.entries_count",
            "quantize.imatrix.chunks_count",
        ]
        assert [b.metadata[key] for key in added] == [
            2, 16, str(tmp_path / "imatrix.gguf")[:127], "book.txt", 1, 2,
        ]  # fmt: skip
        assert isinstance(b.metadata["general.file_type"], np.uint32)


def test_each_expert_has_its_own_importance(moe: Path, tmp_path: Path) -> None:
    name = "blk.1.ffn_down_exps.weight"
    rng = np.random.default_rng(0)
    matrix = Imatrix()
    x = rng.standard_normal((30, 256)) * rng.uniform(0, 5, 256)
    matrix.add(name, x, np.arange(30) % 4, 4)
    summary = quantize_file(moe, tmp_path / "q.gguf", "q4_k", imatrix=matrix)
    importance = matrix.importance(name)
    assert importance is not None
    assert importance.shape == (4, 256)
    with gguf.open(moe) as a, gguf.open(tmp_path / "q.gguf") as b:
        for expert in range(4):
            w = tensor(a, name)[expert].dequantize()
            expected = quantize(w, "q4_k", importance=importance[expert])
            assert tensor(b, name)[expert] == expected
            assert expected != quantize(w, "q4_k")
    used = {change.name for change in summary.tensors if change.importance}
    assert used == {name}
    assert name not in summary.without_importance
    assert "blk.0.attn_q.weight" in summary.without_importance


def test_slabs_of_rows_do_not_change_the_bytes(moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gguf.open(moe) as file:
        source = tensor(file, "blk.0.ffn_up_exps.weight")
        importance = np.linspace(0.1, 2, 4 * 256, dtype=np.float32).reshape(4, 256)
        for given in (None, importance, importance[0]):
            monkeypatch.setattr(module, "_SLAB_WEIGHTS", 1 << 24)
            whole = list(quantize_tensor(source, "q4_k", given))
            monkeypatch.setattr(module, "_SLAB_WEIGHTS", 7 * 256)
            slabs = list(quantize_tensor(source, "q4_k", given))
            assert (len(whole), len(slabs)) == (4, 4 * 37)
            joined = [np.concatenate([q.data.reshape(-1) for q in part]) for part in (whole, slabs)]
            assert np.array_equal(*joined)


def test_a_dry_run_tells_the_truth(moe: Path, tmp_path: Path) -> None:
    dry = quantize_file(moe, None, "Q3_K_M", dry_run=True)
    wet = quantize_file(moe, tmp_path / "q.gguf", "Q3_K_M")
    assert dry.tensors == wet.tensors
    assert dry.bits_per_weight == wet.bits_per_weight
    assert dry.source_bytes > dry.bytes
    assert list(tmp_path.iterdir()) == [tmp_path / "q.gguf"]


def test_progress_ends_at_all_weights(moe: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    summary = quantize_file(
        moe, tmp_path / "q.gguf", "Q8_0", progress=lambda *step: seen.append(step)
    )
    done = [count for _, count, _ in seen]
    assert done == sorted(done)
    assert seen[-1][1] == seen[-1][2] == summary.weights
    assert {name for name, _, _ in seen} == {change.name for change in summary.tensors}


def test_quantized_sources_are_refused_unless_allowed(dense: Path, tmp_path: Path) -> None:
    once = tmp_path / "once.gguf"
    quantize_file(dense, once, "Q8_0")
    with pytest.raises(FormatError, match=r"expected f32, f16 or bf16 weights, got q8_0"):
        quantize_file(once, tmp_path / "twice.gguf", "Q4_0")
    quantize_file(once, tmp_path / "same.gguf", "Q8_0")
    assert (tmp_path / "same.gguf").read_bytes() == once.read_bytes()
    quantize_file(once, tmp_path / "twice.gguf", "q4_0", allow_requantize=True)
    with gguf.open(once) as a, gguf.open(tmp_path / "twice.gguf") as b:
        name = "blk.0.ffn_up.weight"
        assert tensor(b, name) == quantize(tensor(a, name).dequantize(), "q4_0")


def test_an_unfit_importance_is_refused(dense: Path, tmp_path: Path) -> None:
    matrix = Imatrix()
    matrix.add("blk.0.attn_q.weight", np.ones((4, 128)))
    with pytest.raises(ShapeError, match=r"importance of 256 values for blk\.0\.attn_q"):
        quantize_file(dense, tmp_path / "q.gguf", "Q4_K_M", imatrix=matrix)
    table = Imatrix()
    table.add("token_embd.weight", np.ones((4, 128)))
    quantize_file(dense, tmp_path / "q.gguf", "Q4_K_M", imatrix=table)


def test_formats_that_cannot_be_encoded_are_refused_first(dense: Path, tmp_path: Path) -> None:
    for type in ("IQ2_XS", "iq3_s"):
        with pytest.raises(FormatError, match="can be encoded"):
            quantize_file(dense, tmp_path / "q.gguf", type)
    with pytest.raises(FormatError, match="expected an importance matrix for q2_k"):
        quantize_file(dense, tmp_path / "q.gguf", "Q2_K_S")
    assert list(tmp_path.iterdir()) == []


def test_source_and_destination(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="two different files"):
        quantize_file(dense, dense, "Q8_0")
    with pytest.raises(ShapeError, match="got None without dry_run"):
        quantize_file(dense, None, "Q8_0")
    with pytest.raises(FileNotFoundError):
        quantize_file(tmp_path / "none.gguf", tmp_path / "q.gguf", "Q8_0")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense and nothing else")
    with pytest.raises(GGUFError):
        quantize_file(tmp_path / "bad.gguf", tmp_path / "q.gguf", "Q8_0")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.gguf"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_when_it_stops(
    dense: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "q.gguf"
    target.write_bytes(b"as it was")

    def stop(name: str, done: int, total: int) -> None:
        if done > total // 2:
            raise error

    with pytest.raises(error):
        quantize_file(dense, target, "Q8_0", progress=stop)
    assert target.read_bytes() == b"as it was"
    assert list(tmp_path.iterdir()) == [target]


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    w = np.ones((4, 256), np.float32)
    w[2, 7] = np.nan
    bad = {"blk.0.ffn_up.weight": QTensor.from_bytes(w.tobytes(), "f32", w.shape)}
    gguf.write(tmp_path / "bad.gguf", {"general.architecture": "llama"}, bad)
    with pytest.raises(ShapeError, match=r"nan at \(2, 7\) in blk\.0\.ffn_up\.weight"):
        quantize_file(tmp_path / "bad.gguf", tmp_path / "q.gguf", "q8_0")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.gguf"]
