"""`kvant eval` and what it calls, on small models: themselves, their kin, and base files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant import gguf, models
from kvant.cli.main import main
from kvant.errors import FormatError, ModelError, ShapeError
from kvant.lab.evaluation import evaluate
from kvant.lab.kld import KldFile
from kvant.lab.logit_base import LogitBase
from kvant.lab.saving import save_base
from kvant.lab.scoring import score, windows
from kvant.quantize_file import quantize_file

TEXT = "The quick brown fox jumps over the lazy dog; then the other thing rests. " * 6
SETTINGS: dict[str, Any] = {"ctx": 32, "chunks": 5}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def small(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    quantize_file(dense, path, "q4_0")
    return path


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states and head of a model, where it has none of its own."""

    def states(self: Any, tokens: Any) -> Any:
        return self._forward(self._checked(tokens, "hidden"), None, None)[1]

    def head(self: Any, x: Any) -> Any:
        return x @ self._weights.f32(f"{self._head}.weight").T

    if not hasattr(models.Model, "hidden"):
        monkeypatch.setattr(models.Model, "hidden", states, raising=False)
        monkeypatch.setattr(models.Model, "head", head, raising=False)


def test_a_model_against_itself_and_another(dense: Path, small: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    same = evaluate(dense, dense, TEXT, **SETTINGS, progress=lambda *step: seen.append(step))
    assert same.kl_max == same.delta_p_rms == 0
    assert same.same_top == same.perplexity_ratio == 1
    assert seen == [("scoring", i, 5) for i in range(1, 6)]
    assert (same.tokens, same.windows) == (5 * 15, 5)
    found = evaluate(small, dense, TEXT, **SETTINGS)
    assert found.kl_mean > 0
    assert found.base_perplexity == same.perplexity
    assert evaluate(small, dense, TEXT, **SETTINGS, threads=1) == found
    # The sweep's way to the same figures.
    with gguf.open(dense) as a, gguf.open(small) as b:
        from kvant.lab.scoring import BaseLogits

        base, test = models.load(a), models.load(b)
        texts = windows(base.tokenizer.encode(TEXT, bos=True), 32, bos=0, max_tokens=160)
        with BaseLogits(base, texts) as logits:
            assert score(test, logits).kl_mean == pytest.approx(found.kl_mean, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "mode", "error"),
    [
        ("base.kvl", None, 0.0), ("base.kvl", "hidden-f16", 1e-4), ("base.kvl", "f16", 1e-5),
        ("base.kld", None, 2e-4),
    ],
)  # fmt: skip
def test_base_files(
    name: str,
    mode: str | None,
    error: float,
    dense: Path,
    small: Path,
    tmp_path: Path,
    hidden: None,
) -> None:
    path = tmp_path / name
    saved = save_base(dense, path, TEXT, **SETTINGS, mode=mode)
    live = evaluate(small, dense, TEXT, **SETTINGS)
    assert saved.kl_max == 0
    assert saved.perplexity == live.base_perplexity
    head = dense if mode in (None, "hidden-f16") and name.endswith("kvl") else None
    found = evaluate(small, path, head=head)
    assert (found.tokens, found.windows) == (live.tokens, live.windows)
    assert abs(found.kl_mean - live.kl_mean) <= error
    assert found.perplexity == live.perplexity
    assert abs(evaluate(dense, path).kl_mean) <= error
    # A text beside the file must be its own.
    assert evaluate(small, path, TEXT, head=head) == found
    with pytest.raises(ModelError, match="the text that the base was made from"):
        evaluate(small, path, "Another text altogether, and long enough. " * 20, head=head)
    assert evaluate(small, path, chunks=2, head=head).windows == 2


def test_a_topk_file_bounds_from_below(dense: Path, small: Path, tmp_path: Path) -> None:
    live = evaluate(small, dense, TEXT, **SETTINGS)
    last = 0.0
    for k in (1, 16, 258):
        save_base(dense, tmp_path / "base.kvl", TEXT, **SETTINGS, mode="topk", k=k)
        found = evaluate(small, tmp_path / "base.kvl")
        assert last <= found.kl_mean <= live.kl_mean + 1e-6
        assert found.base_perplexity == pytest.approx(live.base_perplexity, rel=1e-6)
        last = found.kl_mean
    assert last == pytest.approx(live.kl_mean, abs=1e-6)


def test_a_kld_file_keeps_the_text_as_it_is(dense: Path, tmp_path: Path) -> None:
    save_base(dense, tmp_path / "base.kld", TEXT, **SETTINGS)
    with gguf.open(dense) as file:
        ids = models.load(file).tokenizer.encode(TEXT, bos=True)
    with KldFile(tmp_path / "base.kld", bos=0) as base:
        assert base.tokens.reshape(-1).tolist() == ids[:160]
        assert [int(w.tokens[0]) for w in base.windows] == [0] * 5


def test_another_head_is_noticed(dense: Path, small: Path, tmp_path: Path, hidden: None) -> None:
    path = tmp_path / "base.kvl"
    save_base(dense, path, TEXT, **SETTINGS)
    with LogitBase(path) as base:
        assert base.head_digest != bytes(32)
    with pytest.raises(ModelError, match="name the base model with head="):
        evaluate(small, path)
    with pytest.raises(ModelError, match="another in"):
        evaluate(small, path, head=small)


def test_refusals(dense: Path, moe: Path, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="expected a text"):
        evaluate(dense, dense, ctx=32)
    with pytest.raises(ModelError, match=r"at most 64 tokens \(context_length\), got 512"):
        evaluate(dense, dense, TEXT)
    with pytest.raises(ModelError, match=r"\[save_base\] expected windows of at most 64"):
        save_base(dense, tmp_path / "x.kvl", TEXT, mode="f16")
    with pytest.raises(ShapeError, match="at least 32 tokens of text"):
        evaluate(dense, dense, "short", ctx=32)
    with pytest.raises(FileNotFoundError):
        evaluate(dense, tmp_path / "none.kvl", TEXT)
    (tmp_path / "odd.kvl").write_bytes(b"what is this?")
    with pytest.raises(FormatError, match=r"a GGUF, \.kld or \.kvl file"):
        evaluate(dense, tmp_path / "odd.kvl")
    for name, mode in (("x.bin", None), ("x.kld", "f16"), ("x.kvl", "u16")):
        with pytest.raises(FormatError, match="and a mode of hidden"):
            save_base(dense, tmp_path / name, TEXT, **SETTINGS, mode=mode)
    rows = np.zeros((15, 7), np.float32)
    made = LogitBase.create(tmp_path / "seven.kvl", "f16", vocab=7, ctx=32)
    with made as file:
        file.append(windows(np.zeros(32, int), 32)[0], rows)
    with pytest.raises(ModelError, match="258 tokens like the model, got 7"):
        evaluate(dense, tmp_path / "seven.kvl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd.kvl", "seven.kvl"]


def test_a_model_without_a_tokenizer(dense: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.gguf"
    with gguf.open(dense) as file:
        kept = {k: v for k, v in file.metadata.items() if not k.startswith("tokenizer.")}
        gguf.write(bare, kept, {name: file.tensors[name] for name in file.tensors})
    with pytest.raises(ModelError, match="tokenizer"):
        evaluate(bare, dense, TEXT, **SETTINGS)
    save_base(dense, tmp_path / "base.kvl", TEXT, **SETTINGS, mode="f16")
    # The file brings tokens, BOS included, so none is needed.
    assert evaluate(bare, tmp_path / "base.kvl").kl_mean < 1e-5


def test_the_command(dense: Path, small: Path, tmp_path: Path, capsys: Capture) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    words = ["eval", str(dense), "--text", str(text), "--ctx", "32", "--chunks", "5"]
    base = tmp_path / "base.kld"
    assert main([*words, "--save-base", str(base)]) == 0
    assert "written: " in capsys.readouterr().out
    assert main(["eval", str(small), "--base", str(base)]) == 0
    shown = capsys.readouterr().out
    found = evaluate(small, base)
    for figure in (found.perplexity, found.kl_mean, found.kl_quantiles["99.9%"]):
        assert f"{figure:.6f}" in shown
    assert f"{100 * found.same_top:.3f} %" in shown
    assert shown.index("PPL(model)") < shown.index("mean") < shown.index("same top token")
    words[1] = str(small)
    assert main([*words, "--base", str(dense), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["kind"] == "kvant.eval"
    assert record["kl_mean"] == evaluate(small, dense, TEXT, **SETTINGS).kl_mean


def test_the_command_says_what_is_wrong(dense: Path, tmp_path: Path, capsys: Capture) -> None:
    base = tmp_path / "base.kld"
    assert main(["eval", str(dense), "--save-base", str(base)]) == 2
    assert "expected --text with --save-base" in capsys.readouterr().err
    base.write_bytes(b"_logits_")
    assert main(["eval", str(dense), "--base", str(base)]) == 2
    assert capsys.readouterr().err.startswith("kvant: [KldFile] expected 12 bytes at 8, got 8")
