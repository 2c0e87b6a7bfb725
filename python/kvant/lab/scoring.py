"""Windows of text and which of their positions are scored, as llama-perplexity does it.

Text is cut into windows of `ctx` tokens that do not overlap; the first token of each is replaced
by BOS if the model wants one; only predictions made in the second half are scored, so that each has
at least half a window of context.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import Error, ShapeError
from .divergence import F32, I64, Scores, compare_logits
from .metrics import Comparison, Divergence
from .workers import in_order

__all__ = [
    "DEFAULT_TOKENS",
    "Base",
    "BaseLogits",
    "LiveBase",
    "LogitModel",
    "Window",
    "model_texts",
    "sample_windows",
    "score",
    "scored_hidden",
    "scored_logits",
    "windows",
    "with_bos",
]

DEFAULT_TOKENS = 8192
"""Tokens to score where nobody says how many."""


class LogitModel(Protocol):
    """All that scoring asks of a model."""

    def logits(self, tokens: Any) -> F32:
        """Logits [T, vocab] after each of the T tokens."""


class Generator(Protocol):
    """All that sampling asks of a model."""

    def generate(
        self, tokens: Any, n: int, *, temperature: float = 0.0, seed: int = 0
    ) -> list[int]:
        """At most n new tokens; fewer where the model ends the text."""


@dataclass(frozen=True)
class Window:
    """One window: the tokens to run, and the first position whose prediction is scored."""

    tokens: I64
    first: int

    @property
    def targets(self) -> I64:
        """The tokens that the scored positions should have predicted."""
        return self.tokens[self.first + 1 :]

    @property
    def scored(self) -> slice:
        """The rows of the logits that are scored; the last row has no target."""
        return slice(self.first, len(self.tokens) - 1)


def windows(
    tokens: npt.ArrayLike, ctx: int = 512, *, bos: int | None = None, max_tokens: int | None = None
) -> list[Window]:
    """Cut tokens into windows of `ctx`; what is left at the end is not used.

    Parameters
    ----------
    tokens : int, shape [T]
    ctx : int
        Length of a window, at least 4.
    bos : int or None
        Replaces the first token of each window; None keeps the text as it is.
    max_tokens : int or None
        Use at most this many tokens of the text, but at least one window.

    Raises
    ------
    ShapeError
        If `ctx` is too short, or the text is shorter than one window.

    >>> [w] = windows(range(10), ctx=8, bos=99)
    >>> w.tokens.tolist(), w.first, w.targets.tolist()
    ([99, 1, 2, 3, 4, 5, 6, 7], 4, [5, 6, 7])
    """
    ids: I64 = np.asarray(tokens, dtype=np.int64)
    if ctx < 4:
        raise ShapeError(f"[windows] expected a context of at least 4 tokens, got {ctx}")
    count = ids.size // ctx
    if ids.ndim != 1 or count == 0:
        raise ShapeError(f"[windows] expected at least {ctx} tokens of text, got {ids.size}")
    if max_tokens is not None:
        count = max(1, min(count, max_tokens // ctx))
    return [Window(with_bos(ids[i * ctx : (i + 1) * ctx], bos), ctx // 2) for i in range(count)]


def with_bos(ids: I64, bos: int | None) -> I64:
    """A copy of a window's tokens whose first is `bos`, if there is one."""
    ids = ids.copy()
    if bos is not None:
        ids[0] = bos
    return ids


def sample_windows(
    model: Generator,
    count: int,
    ctx: int,
    bos: int = 0,
    *,
    seed: int = 0,
    executor: Executor | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Window]:
    """Text for scoring when there is none: what the model itself writes at temperature 1.

    Each window starts at `bos`; where the model ends a text, the next one starts with `bos` again.
    The same seed gives the same windows. Such text is from the very distribution that the
    divergence is measured against, so perplexities on it say nothing about real text.
    """

    def write(index: int) -> Window:
        ids: list[int] = []
        attempt = 0
        while len(ids) < ctx:
            ids.append(bos)
            draw = (seed * count + index) * 1009 + attempt
            start = np.array([bos], np.int64)
            ids += model.generate(start, ctx - len(ids), temperature=1.0, seed=draw)
            attempt += 1
        return Window(np.array(ids, np.int64), ctx // 2)

    result = []
    for window in in_order(executor, write, range(count)):
        result.append(window)
        if progress is not None:
            progress(len(result))
    return result


def model_texts(
    model: Any,
    text: str | Path | None,
    ctx: int,
    max_tokens: int | None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    executor: Executor | None = None,
) -> tuple[list[Window], str]:
    """Windows of a text for a model with a tokenizer, and words for where they come from.

    Parameters
    ----------
    model : kvant.models.Model
    text : str, Path or None
        The text itself, or the path of a UTF-8 file; None is what the model writes itself.
    ctx, max_tokens
        As for `windows`; without a text, 8192 tokens where `max_tokens` is None.
    seed : int
        Of the model's own text.
    progress : callable, optional
        Called with what is being done, the steps done and all steps.
    executor : Executor or None
        Writes windows side by side.
    """
    tokenizer = model.tokenizer
    if text is None:
        count = max(1, (max_tokens or DEFAULT_TOKENS) // ctx)
        report = progress or (lambda label, done, total: None)
        made = sample_windows(
            model,
            count,
            ctx,
            0 if tokenizer.bos_id is None else tokenizer.bos_id,
            seed=seed,
            executor=executor,
            progress=lambda done: report("writing text", done, count),
        )
        return made, f"written by the model itself (temperature 1, seed {seed})"
    content = text.read_text(encoding="utf-8") if isinstance(text, Path) else text
    ids = tokenizer.encode(content, bos=tokenizer.add_bos)
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    made = windows(ids, ctx, bos=bos, max_tokens=max_tokens)
    return made, text.name if isinstance(text, Path) else "given by the caller"


class Base(Protocol):
    """A base model's predictions, however they are kept."""

    @property
    def windows(self) -> tuple[Window, ...]:
        """The text that both models read."""

    def compare(self, index: int, test: F32) -> Scores:
        """Score a test model's logits at the scored positions of a window."""


class LiveBase:
    """A base model that is run beside the test model; nothing is kept."""

    def __init__(self, model: LogitModel, texts: Sequence[Window]) -> None:
        self.windows = tuple(texts)
        self._model = model

    def compare(self, index: int, test: F32) -> Scores:
        """Run the base model over a window and compare."""
        window = self.windows[index]
        return compare_logits(scored_logits(self._model, window), test, window.targets)


class BaseLogits:
    """The base model's logits at all scored positions, computed once and kept for every test model.

    Small sets stay in memory; larger ones go to an unnamed temporary file that vanishes with the
    object. Use it as a context manager.
    """

    def __init__(
        self,
        model: LogitModel,
        texts: Sequence[Window],
        *,
        memory_limit: int = 256 << 20,
        directory: str | Path | None = None,
        executor: Executor | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if not texts:
            raise ShapeError("[BaseLogits] expected at least one window, got none")
        self.windows = tuple(texts)
        self._starts = np.cumsum([0, *(len(w.targets) for w in texts)])
        store: F32 | None = None
        made = in_order(executor, lambda window: scored_logits(model, window), self.windows)
        for index, rows in enumerate(made):
            if store is None:
                store = self._allocate(rows.shape[1], memory_limit, directory)
            store[self._starts[index] : self._starts[index + 1]] = rows
            if progress is not None:
                progress(index + 1)
        assert store is not None
        self._store = store

    def _allocate(self, vocab: int, memory_limit: int, directory: str | Path | None) -> F32:
        shape = (int(self._starts[-1]), vocab)
        if 4 * shape[0] * vocab <= memory_limit:
            return np.empty(shape, np.float32)
        # The map keeps the disk space alive; the file has no name by then.
        with tempfile.TemporaryFile(dir=directory, prefix="kvant-logits-") as file:
            return np.memmap(file, np.float32, "w+", shape=shape)

    def __iter__(self) -> Iterator[tuple[Window, F32]]:
        for index, window in enumerate(self.windows):
            yield window, self._store[self._starts[index] : self._starts[index + 1]]

    def compare(self, index: int, test: F32) -> Scores:
        """Score a test model's logits of a window."""
        rows = self._store[self._starts[index] : self._starts[index + 1]]
        return compare_logits(rows, test, self.windows[index].targets)

    def close(self) -> None:
        """Give the memory, or the temporary file, back."""
        self._store = np.empty((0, 0), np.float32)

    def __enter__(self) -> BaseLogits:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def scored_logits(model: LogitModel, window: Window) -> F32:
    """The model's logits at the scored positions of a window, [len(targets), vocab].

    A model with `hidden` and `head` computes no others.
    """
    if hasattr(model, "hidden") and hasattr(model, "head"):
        return _finite(model.head(scored_hidden(model, window)))
    return _finite(_rows(model.logits(window.tokens), window))


def scored_hidden(model: Any, window: Window) -> F32:
    """The model's final hidden states at the scored positions, [len(targets), width]."""
    return _rows(model.hidden(window.tokens), window)


def _rows(found: Any, window: Window) -> F32:
    array = np.asarray(found, dtype=np.float32)
    if array.ndim != 2 or array.shape[0] != len(window.tokens):
        raise ShapeError(
            f"[score] expected logits of {len(window.tokens)} tokens, got shape {array.shape}"
        )
    rows: F32 = array[window.scored]
    return rows


def _finite(logits: Any) -> F32:
    rows: F32 = np.asarray(logits, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise Error("[score] expected finite logits, got NaN or infinity")
    return rows


def score(
    model: LogitModel,
    base: Base,
    *,
    executor: Executor | None = None,
    progress: Callable[[int], None] | None = None,
) -> Divergence:
    """Run a model over the base's windows and compare.

    Parameters
    ----------
    model : anything with `logits`
    base : BaseLogits, LiveBase, LogitBase or KldFile
    executor : Executor or None
        Runs windows side by side; the result is the same. See `kvant.lab.workers`.
    progress : callable or None
        Called with the number of windows done.

    >>> class Uniform:
    ...     def logits(self, tokens):
    ...         return np.zeros((len(tokens), 5), np.float32)
    >>> with BaseLogits(Uniform(), windows([1] * 8, ctx=8)) as base:
    ...     result = score(Uniform(), base)
    >>> result.tokens, round(result.perplexity, 6), result.kl_mean
    (3, 5.0, 0.0)
    """
    scores = Comparison()
    for done, found in enumerate(scored(model, base, executor)):
        scores.add(found)
        if progress is not None:
            progress(done + 1)
    return scores.result()


def scored(model: LogitModel, base: Base, executor: Executor | None) -> Iterator[Scores]:
    """The scores of each window in turn."""

    def one(index: int) -> Scores:
        return base.compare(index, scored_logits(model, base.windows[index]))

    return in_order(executor, one, range(len(base.windows)))
