"""What evaluating a model and saving a base share: models, text, windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from .. import gguf, models
from ..errors import ModelError
from ..qtensor import QTensor
from .base_modes import Head
from .logit_base import head_digest
from .scoring import Window, windows, with_bos

__all__ = [
    "Progress",
    "begun",
    "bos_of",
    "check_context",
    "cut",
    "digest_of_head",
    "head_of",
    "load_model",
]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the windows done so far and all windows."""


def load_model(
    stack: ExitStack, path: str | Path, threads: int, kv: str | None = None
) -> models.Model:
    """A model whose file stays open as long as the stack."""
    return models.load(stack.enter_context(gguf.open(path)), threads=threads, kv=kv)


def check_context(function: str, model: models.Model, ctx: int) -> None:
    """Refuse windows that are longer than the model's context."""
    most = model.config.context_length
    if ctx > most:
        raise ModelError(
            f"[{function}] expected windows of at most {most} tokens (context_length), got {ctx}"
        )


def cut(model: models.Model, text: str | Path, ctx: int, chunks: int | None) -> list[Window]:
    """The text in windows, as it is: without BOS at the start of each."""
    content = text.read_text(encoding="utf-8") if isinstance(text, Path) else text
    ids = model.tokenizer.encode(content, bos=model.tokenizer.add_bos)
    return windows(ids, ctx, max_tokens=None if chunks is None else chunks * ctx)


def bos_of(model: models.Model) -> int | None:
    """The token that begins each window; None where the model wants none."""
    tokenizer = model.tokenizer
    return tokenizer.bos_id if tokenizer.add_bos else None


def begun(texts: Sequence[Window], bos: int | None) -> tuple[Window, ...]:
    """The windows with BOS at their start."""
    return tuple(Window(with_bos(w.tokens, bos), w.first) for w in texts)


def head_of(function: str, model: Any) -> Head:
    """What makes logits of the model's hidden states."""
    if not (hasattr(model, "hidden") and hasattr(model, "head")):
        raise ModelError(f"[{function}] expected a model that gives hidden states, got another")
    head: Head = model.head
    return head


def digest_of_head(model: models.Model) -> bytes:
    """What tells whether two models make the same logits of a hidden state."""
    names = ("output.weight", "token_embd.weight")
    weight: Any = next(model.tensors[name] for name in names if name in model.tensors)
    if isinstance(weight, QTensor):
        return head_digest(np.frombuffer(weight.format.encode(), np.uint8), weight.data)
    return head_digest(weight)
