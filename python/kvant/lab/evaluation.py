"""One model against a base: another model, or a file of a base's predictions."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from .. import models
from ..errors import FormatError, ModelError, ShapeError
from . import kld, logit_base
from .base_modes import MODES, Head
from .kld import KldFile
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
from .scoring import Base, LiveBase, scored
from .workers import side_by_side

__all__ = ["evaluate"]

_GGUF = b"GGUF"


def evaluate(
    model_path: str | Path,
    base: str | Path,
    text: str | Path | None = None,
    *,
    ctx: int = 512,
    chunks: int | None = None,
    head: str | Path | None = None,
    kv: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Divergence:
    """Measure how far a model's predictions are from a base's.

    Parameters
    ----------
    model_path : path
        GGUF file of the model to test.
    base : path
        GGUF file of the base model, or what `save_base` or llama-perplexity wrote: `.kvl`, `.kld`.
    text : str, Path or None
        The text itself, or the path of a UTF-8 file. A base file brings its own tokens; a text
        beside it must be the one it was made from.
    ctx : int
        Tokens in a window; a base file brings its own.
    chunks : int or None
        Score at most this many windows.
    head : path or None
        GGUF file whose head makes logits of the hidden states of a `.kvl` file; needed when the
        tested model's own head is another.
    kv : str or None
        How the tested model keeps keys and values, as for `kvant.KVCache.from_model`; the base
        keeps them as f16.
    threads : int or None
        Windows that run side by side; the result does not depend on it.
    progress : callable or None
        See `kvant.lab.running.Progress`.

    Returns
    -------
    Divergence
        Of a `.kvl` file in mode topk its KL figures are lower bounds; a `.kld` file is compared as
        llama-perplexity does it.

    Raises
    ------
    ModelError
        If the model has no tokenizer where one is needed, another vocabulary, or a shorter context.
    ShapeError
        If there is no text, or it is shorter than one window.
    FormatError
        If the base file is broken, or of no known kind.
    """
    with ExitStack() as stack, side_by_side(threads) as (executor, each):
        model = load_model(stack, model_path, each, kv)
        found = _open_base(stack, model, Path(base), text, ctx, head, each)
        if chunks is not None:
            found = _First(found, chunks)
        check_context("evaluate", model, len(found.windows[0].tokens))
        scores = Comparison()
        for done, window in enumerate(scored(model, found, executor)):
            scores.add(window)
            if progress is not None:
                progress("scoring", done + 1, len(found.windows))
        return scores.result()


class _First:
    """The first windows of a base."""

    def __init__(self, base: Base, count: int) -> None:
        self.windows = base.windows[:count]
        self.compare = base.compare


def _open_base(
    stack: ExitStack,
    model: models.Model,
    path: Path,
    text: str | Path | None,
    ctx: int,
    head: str | Path | None,
    threads: int,
) -> Base:
    with path.open("rb") as file:
        magic = file.read(8)
    if magic.startswith(_GGUF):
        other = load_model(stack, path, threads)
        _check_vocabulary(model, other.config.vocab_size)
        check_context("evaluate", other, ctx)
        if text is None:
            raise ShapeError("[evaluate] expected a text for a base that is a model, got none")
        # All windows: the caller takes the first of them, which are then the only ones to be run.
        return LiveBase(other, begun(cut(model, text, ctx, None), bos_of(model)))
    base: KldFile | LogitBase
    if magic == kld.MAGIC:
        base = stack.enter_context(KldFile(path, bos_of(model)))
    elif magic == logit_base.MAGIC:
        base = stack.enter_context(LogitBase(path))
        if MODES[base.mode].hidden:
            base.head = _head(stack, model, base, head, threads)
    else:
        raise FormatError(f"[evaluate] expected a GGUF, .kld or .kvl file, got {path}")
    _check_vocabulary(model, base.vocab)
    if text is not None:
        _check_text(model, base, text)
    return base


def _head(
    stack: ExitStack,
    model: models.Model,
    base: LogitBase,
    head: str | Path | None,
    threads: int,
) -> Head:
    owner = model if head is None else load_model(stack, head, threads)
    if base.head_digest not in (bytes(32), digest_of_head(owner)):
        raise ModelError(
            f"[evaluate] expected the head that the base's hidden states belong to, got another in "
            f"{'the model' if head is None else head}: name the base model with head="
        )
    width = owner.config.embedding_length
    if width != base.size:
        raise ModelError(f"[evaluate] expected hidden states of {width}, got {base.size}")
    return head_of("evaluate", owner)


def _check_vocabulary(model: models.Model, vocab: int) -> None:
    own = model.config.vocab_size
    if own != vocab:
        raise ModelError(f"[evaluate] expected a base of {own} tokens like the model, got {vocab}")


def _check_text(model: models.Model, base: KldFile | LogitBase, text: str | Path) -> None:
    texts = begun(cut(model, text, base.ctx, len(base.windows)), bos_of(model))
    pairs = zip(texts, base.windows, strict=False)
    same = (np.array_equal(a.tokens[1:], b.tokens[1:]) for a, b in pairs)
    if len(texts) != len(base.windows) or not all(same):
        raise ModelError("[evaluate] expected the text that the base was made from, got another")
