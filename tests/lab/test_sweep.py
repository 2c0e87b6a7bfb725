"""Sweeps of small random models: sizes, errors and divergences that can be checked otherwise."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from kvant import gguf, models
from kvant.errors import FormatError, ShapeError
from kvant.lab.metrics import kl_divergence
from kvant.lab.mix import choosing_windows
from kvant.lab.result import SweepResult
from kvant.lab.scoring import model_texts, windows
from kvant.lab.sweep import sweep
from kvant.quantize_file import quantize_file

TEXT = "The quick brown fox jumps over the lazy dog; then it rests. " * 6


@pytest.fixture(scope="module")
def result(dense: Path) -> SweepResult:
    return sweep(dense, ["Q8_0", "Q4_K_M", "q2_k"], text=TEXT, ctx=32)


def test_the_original_does_not_diverge(result: SweepResult) -> None:
    base = result.base
    assert base.name == "original (f16)"
    assert (base.divergence.kl_mean, base.divergence.kl_max) == (0.0, 0.0)
    assert (base.divergence.same_top, base.relative_rmse) == (1.0, 0.0)
    assert base.divergence.perplexity == base.divergence.base_perplexity


def test_fewer_bits_are_smaller_and_further_away(result: SweepResult) -> None:
    rows = result.rows
    assert [row.name for row in rows[1:]] == ["Q8_0", "Q4_K_M", "q2_k"]
    sizes = [row.bytes for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    for values in (
        [row.divergence.kl_mean for row in rows],
        [row.relative_rmse for row in rows],
        [-row.bits_per_weight for row in rows],
    ):
        assert all(a < b for a, b in pairwise(values))
    assert result.tested[-1].formats == {"q2_k": 15, "f32": 5}


def test_figures_agree_with_a_plain_computation(
    dense: Path, tmp_path: Path, result: SweepResult
) -> None:
    summary = quantize_file(dense, tmp_path / "q.gguf", "Q4_K_M")
    row = result.tested[1]
    assert row.bytes == summary.bytes
    assert row.bits_per_weight == pytest.approx(summary.bits_per_weight)
    base, test = models.load(dense), models.load(tmp_path / "q.gguf")
    ids = base.tokenizer.encode(TEXT, bos=True)
    cut = windows(ids, 32, bos=0)
    kl = np.concatenate(
        [
            kl_divergence(base.logits(w.tokens)[w.scored], test.logits(w.tokens)[w.scored])
            for w in cut
        ]
    )
    assert row.divergence.tokens == kl.size == 15 * len(cut)
    assert row.divergence.kl_mean == pytest.approx(kl.mean(), rel=1e-9)
    with gguf.open(dense) as a, gguf.open(tmp_path / "q.gguf") as b:
        error = weight = 0.0
        for change in summary.tensors:
            if change.format != change.source:
                x, y = (f.tensors[change.name].dequantize().astype(float) for f in (a, b))
                error += float(((x - y) ** 2).sum())
                weight += float((x**2).sum())
                found = next(t for t in row.tensors if t.name == change.name)
                assert found.format == change.format
                assert found.relative_rmse == pytest.approx(
                    (((x - y) ** 2).sum() / (x**2).sum()) ** 0.5, rel=1e-6
                )
    assert row.relative_rmse == pytest.approx((error / weight) ** 0.5, rel=1e-6)
    assert len(row.tensors) == sum(c.format != c.source for c in summary.tensors)


def test_own_text_is_repeatable_and_needs_no_file(moe: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    first = sweep(
        moe,
        ["q4_0", "mix:5"],
        max_tokens=128,
        out=tmp_path / "out",
        progress=lambda *step: seen.append(step),
        command="kvant sweep <model>",
    )
    assert first.ctx == 64  # the model's context is shorter than the default window
    assert first.base.divergence.windows == 2
    steps = [done for _, done, _ in seen]
    assert steps == list(range(1, seen[-1][2] + 1))
    assert first.mixes == "2 windows that the model wrote besides the scored ones"
    assert {label for label, _, _ in seen} == {
        *("writing text", "measuring tensors", "errors of formats", "original", "q4_0", "mix:5")
    }
    # Neither other types of the sweep nor threads change a figure: one, side by side, all together.
    for threads in (1, 2, 5):
        again = sweep(moe, ["q4_0"], max_tokens=128, threads=threads)
        assert again.tested[0].divergence == first.tested[0].divergence
    other = sweep(moe, ["q4_0"], max_tokens=128, seed=1)
    assert other.tested[0].divergence != first.tested[0].divergence
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"sweep.json", "sweep.png", "report.html"}
    stored = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert stored["command"] == "kvant sweep <model>"
    assert stored["rows"][1]["divergence"]["kl_mean"] == first.tested[0].divergence.kl_mean
    assert stored["mixes"] == first.mixes


def test_saved_models_are_what_quantize_file_writes(dense: Path, tmp_path: Path) -> None:
    found = sweep(dense, ["Q4_K_S", "q8_0"], text=TEXT, ctx=16, out=tmp_path, save=True)
    for row in found.tested:
        assert row.path == str(tmp_path / f"dense-{row.name}.gguf")
        quantize_file(dense, tmp_path / "expected.gguf", row.name)
        assert Path(row.path).read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def test_a_mix_keeps_its_size_and_what_was_asked_of_it(dense: Path, tmp_path: Path) -> None:
    found = sweep(
        dense,
        ["q4_k", "MIX:4.60", "mix:6", "Q4_K_M"],
        text=TEXT,
        ctx=32,
        max_tokens=64,
        overrides=[("attn_v", "q8_0")],
        out=tmp_path,
        save=True,
    )
    assert [row.name for row in found.tested] == ["q4_k", "mix:4.6", "mix:6", "Q4_K_M"]
    assert [row.kind for row in found.rows] == ["original", "uniform", "mix", "mix", "recipe"]
    assert found.mixes == "2 windows after the scored ones"
    for row, bits in ((found.tested[1], 4.6), (found.tested[2], 6.0)):
        assert 0.95 * bits < row.bits_per_weight <= bits
        assert len(row.formats) > 3
        assert {t.format for t in row.tensors if t.part == "attn_v"} == {"q8_0"}
        path = tmp_path / f"dense-{row.name.replace(':', '-')}.gguf"
        assert row.path == str(path)
        with gguf.open(path) as file:
            assert sum(file.tensors.info(name).nbytes for name in file.tensors) == row.bytes


def test_a_mix_says_when_it_was_chosen_on_scored_text(dense: Path) -> None:
    found = sweep(dense, ["mix:5"], text=TEXT, ctx=32, max_tokens=None)
    assert found.mixes == ("4 windows of the scored ones, as no text was left: this flatters them")


def test_mixes_are_chosen_on_other_windows(dense: Path) -> None:
    model = models.load(dense)
    every, _ = model_texts(model, TEXT, 32, None)
    for text, seed in ((TEXT, 0), (None, 0), (None, 3)):
        scored, _ = model_texts(model, text, 32, 96, seed)
        others, _ = choosing_windows(model, text, scored, 32, seed)
        assert len(others) == 3
        assert not {tuple(w.tokens) for w in others} & {tuple(w.tokens) for w in scored}
        if text is not None:
            assert [w.tokens.tolist() for w in others] == [w.tokens.tolist() for w in every[3:6]]


def test_text_from_a_file_is_named(dense: Path, tmp_path: Path) -> None:
    path = tmp_path / "fox.txt"
    path.write_text(TEXT)
    found = sweep(dense, ["q8_0"], text=path, ctx=16, max_tokens=32)
    assert found.text == "fox.txt"
    assert found.base.divergence.windows == 2


def test_refusals_come_before_any_work(dense: Path, tmp_path: Path) -> None:
    def never(*step: object) -> None:
        raise AssertionError(step)

    for formats, error in (
        (["q9_9"], "expected a format name"),
        (["IQ2_XS"], "can be encoded"),
        ([], "at least one"),
        (["Q4_K", "q4_k_m"], "Q4_K_M twice"),
        (["mix:4", "mix:4.0"], "mix:4 twice"),
        (["mix:"], "such as mix:4.25, got 'mix:'"),
        (["mix:-3"], "such as mix:4.25"),
        (["mix:nan"], "such as mix:4.25"),
    ):
        with pytest.raises(FormatError, match=error):
            sweep(dense, formats, text=TEXT, progress=never)
    with pytest.raises(ShapeError, match=r"at least 2\.\d+ bits .* got mix:2$"):
        sweep(dense, ["q8_0", "mix:4", "mix:2"], text=TEXT, progress=never)
    with pytest.raises(ShapeError, match="folder"):
        sweep(dense, ["q8_0"], text=TEXT, save=True, progress=never)
    with pytest.raises(ShapeError, match="at least 64 tokens"):
        sweep(dense, ["q8_0"], text="too short", progress=never)
