"""Windows, the base's logits, and what is scored."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant.errors import Error, ShapeError
from kvant.lab.scoring import BaseLogits, Window, sample_windows, score, windows
from kvant.lab.workers import in_order


class Counting:
    """Logits that depend on the position and the token; remembers what it was asked."""

    def __init__(self, vocab: int = 11, scale: float = 1.0) -> None:
        self.vocab, self.scale, self.seen = vocab, np.float32(scale), 0

    def logits(self, tokens: Any) -> Any:
        self.seen += 1
        table = np.sin(np.arange(self.vocab * self.vocab, dtype=np.float32))
        rows = table.reshape(self.vocab, self.vocab)[np.asarray(tokens)]
        position = np.arange(len(tokens), dtype=np.float32)[:, None] / 50
        return (rows + position * rows[:, ::-1]) * self.scale


@given(st.integers(0, 70), st.integers(4, 20), st.none() | st.integers(1, 60))
def test_windows_cover_the_text_once(length: int, ctx: int, limit: int | None) -> None:
    text = np.arange(length)
    if length < ctx:
        with pytest.raises(ShapeError, match=f"at least {ctx} tokens"):
            windows(text, ctx, max_tokens=limit)
        return
    cut = windows(text, ctx, bos=None, max_tokens=limit)
    joined = np.concatenate([w.tokens for w in cut])
    assert (joined == np.arange(len(joined))).all()
    most = length if limit is None else max(ctx, min(limit, length))
    assert len(joined) == most // ctx * ctx
    for w in cut:
        assert len(w.targets) == len(range(*w.scored.indices(ctx))) == ctx - 1 - ctx // 2
        assert (w.targets == w.tokens[w.scored] + 1).all()


def test_bos_replaces_the_first_token_and_the_text_is_left_alone() -> None:
    text = np.arange(100, 124)
    cut = windows(text, 8, bos=7)
    assert [w.tokens[0] for w in cut] == [7, 7, 7]
    assert [w.tokens[1] for w in cut] == [101, 109, 117]
    assert (text == np.arange(100, 124)).all()
    with pytest.raises(ShapeError, match="at least 4"):
        windows(text, 3)


def test_perplexity_is_over_the_second_half_only() -> None:
    model = Counting()
    [window] = windows(np.arange(10) % 11, 10)
    logits = model.logits(window.tokens).astype(float)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = np.exp(-np.mean([log_p[i, window.tokens[i + 1]] for i in range(5, 9)]))
    with BaseLogits(model, [window]) as base:
        found = score(model, base)
    assert found.tokens == 4
    assert found.perplexity == pytest.approx(expected, rel=1e-6)
    assert found.kl_max == 0.0


@pytest.mark.parametrize("threads", [None, 3])
def test_memory_and_file_and_threads_give_the_same(tmp_path: Any, threads: int | None) -> None:
    texts = windows(np.arange(160) * 7 % 11, 16, bos=0)
    executor = ThreadPoolExecutor(threads) if threads else None
    seen: list[int] = []
    with (
        BaseLogits(Counting(), texts) as memory,
        BaseLogits(
            Counting(),
            texts,
            memory_limit=0,
            directory=tmp_path,
            executor=executor,
            progress=seen.append,
        ) as disk,
    ):
        assert list(tmp_path.iterdir()) == []
        other = Counting(scale=1.1)
        assert score(other, memory) == score(other, disk, executor=executor)
    assert seen == list(range(1, 11))
    assert other.seen == 20
    if executor:
        executor.shutdown()


def test_logits_that_are_not_finite_are_refused() -> None:
    class Broken:
        def logits(self, tokens: Any) -> Any:
            return np.full((len(tokens), 3), np.nan, np.float32)

    with pytest.raises(Error, match="finite"):
        BaseLogits(Broken(), windows(np.arange(8), 8))
    with pytest.raises(ShapeError, match="at least one window"):
        BaseLogits(Counting(), [])


class Author:
    """Writes its seed; ends the first text of each window after three tokens."""

    def generate(
        self, tokens: Any, n: int, *, temperature: float = 0.0, seed: int = 0
    ) -> list[int]:
        assert temperature == 1.0
        assert list(tokens) == [5]
        return [seed % 97 + 10] * (min(3, n) if seed % 1009 == 0 else n)


def test_sampled_windows_are_full_and_repeatable() -> None:
    made = sample_windows(Author(), 3, 12, 5, seed=1)
    assert [len(w.tokens) for w in made] == [12, 12, 12]
    assert [w.first for w in made] == [6, 6, 6]
    assert all(w.tokens[0] == w.tokens[4] == 5 for w in made)
    assert len({tuple(w.tokens) for w in made}) == 3
    again = sample_windows(Author(), 3, 12, 5, seed=1)
    assert all((a.tokens == b.tokens).all() for a, b in zip(made, again, strict=True))
    other = sample_windows(Author(), 3, 12, 5, seed=2)
    assert not any((a.tokens == b.tokens).all() for a, b in zip(made, other, strict=True))


def test_results_come_in_order_and_errors_come_through() -> None:
    with ThreadPoolExecutor(4) as executor:
        assert list(in_order(executor, lambda n: n * n, range(50))) == [n * n for n in range(50)]
        with pytest.raises(ZeroDivisionError):
            list(in_order(executor, lambda n: 1 // n, [1, 0, 2, 3, 4, 5]))


def test_a_window_knows_its_targets() -> None:
    w = Window(np.array([9, 1, 2, 3]), 2)
    assert w.targets.tolist() == [3]
    assert w.scored == slice(2, 3)
