"""A base model's predictions into a file, window by window."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from .. import models
from ..errors import FormatError
from .base_modes import MODES
from .divergence import F32, compare_logits
from .kld import write_kld
from .logit_base import LogitBase
from .metrics import Comparison, Divergence
from .running import (
    Progress,
    begun,
    bos_of,
    check_context,
    cut,
    digest_of_head,
    head_of,
    load_model,
)
from .scoring import Window, scored_hidden, scored_logits
from .workers import in_order, side_by_side

__all__ = ["save_base"]


def save_base(
    model_path: str | Path,
    out: str | Path,
    text: str | Path,
    *,
    ctx: int = 512,
    chunks: int | None = None,
    mode: str | None = None,
    k: int = 64,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Divergence:
    """Write a base model's predictions for later comparisons.

    Parameters
    ----------
    model_path, text, ctx, chunks, threads, progress
        As in `kvant.lab.evaluate`.
    out : path
        Ends in `.kld` for a file that llama-perplexity reads, or in `.kvl`. It appears when
        complete.
    mode : str or None
        Of a `.kvl` file: "hidden" (the default), "hidden-f16", "f16" or "topk".
    k : int
        Of mode topk.

    Returns
    -------
    Divergence
        Of the model from itself: its perplexity, and divergences of 0.

    Raises
    ------
    FormatError
        If `out` has another ending, or `mode` is unknown or not for it.
    ModelError, ShapeError
        As `evaluate`.
    """
    path = Path(out)
    chosen = ("kld" if path.suffix == ".kld" else "hidden") if mode is None else mode
    known = ["kld"] if path.suffix == ".kld" else list(MODES) if path.suffix == ".kvl" else []
    if chosen not in known:
        raise FormatError(
            f"[save_base] expected .kld, or .kvl and a mode of {', '.join(MODES)}, "
            f"got {path.name} and {mode}"
        )
    with ExitStack() as stack, side_by_side(threads) as (executor, each):
        model = load_model(stack, model_path, each)
        check_context("save_base", model, ctx)
        raw = cut(model, text, ctx, chunks)
        texts = begun(raw, bos_of(model))
        head = head_of("save_base", model) if chosen in MODES and MODES[chosen].hidden else None
        append = _writer(stack, model, path, chosen, raw, k)

        def run(window: Window) -> tuple[F32, F32]:
            """What is stored, and the logits."""
            if head is not None:
                states = scored_hidden(model, window)
                return states, head(states)
            logits = scored_logits(model, window)
            return logits, logits

        scores = Comparison()
        made = in_order(executor, run, texts)
        for done, (window, (rows, logits)) in enumerate(zip(texts, made, strict=True)):
            append(window, rows)
            scores.add(compare_logits(logits, logits, window.targets))
            if progress is not None:
                progress("running", done + 1, len(texts))
        return scores.result()


def _writer(
    stack: ExitStack, model: models.Model, path: Path, mode: str, raw: list[Window], k: int
) -> Callable[[Window, F32], None]:
    """Begin the file; it is complete when the stack is left without an error."""
    vocab = model.config.vocab_size
    if mode == "kld":
        kld = stack.enter_context(write_kld(path, [w.tokens for w in raw], vocab))
        return lambda window, rows: kld.append(rows)
    size, digest = min(k, vocab) if mode == "topk" else 0, bytes(32)
    if MODES[mode].hidden:
        size, digest = model.config.embedding_length, digest_of_head(model)
    ctx = len(raw[0].tokens)
    made = LogitBase.create(path, mode, vocab=vocab, ctx=ctx, size=size, head=digest)
    return stack.enter_context(made).append
