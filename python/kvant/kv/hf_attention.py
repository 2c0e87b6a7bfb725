"""Attention of `transformers` that runs inside kvant, over the pages of a cache where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvant.errors import ModelError
from kvant.kv.hf_rows import Rows

__all__ = ["NAME", "Pending", "attention", "mask", "package", "register", "to_numpy", "to_torch"]

NAME = "kvant"
_MARK = "kvant_pending"
# Masks of transformers that a cache makes by itself; all others are refused.
_KNOWN_MASKS = ("causal_mask_function", "sliding_window_overlay.<locals>.inner_mask")
_BOTH = "and_masks.<locals>.and_mask"


def package(name: str) -> Any:
    """torch or transformers, which are optional.

    Raises
    ------
    ImportError
        It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"[kvant.kv.hf] expected the packages torch and transformers, got none of {name}; "
            "install them with: pip install torch transformers"
        ) from error


def register() -> None:
    """Make `attn_implementation="kvant"` known to transformers; before the model is loaded.

    Raises
    ------
    ImportError
        torch or transformers is not installed.
    """
    package("torch")
    transformers = package("transformers")
    transformers.AttentionInterface.register(NAME, attention)
    transformers.AttentionMaskInterface.register(NAME, mask)


def to_numpy(x: Any) -> NDArray[np.float32]:
    """[batch, heads, T, dim] of torch as f32 [batch, T, heads, dim]."""
    array: NDArray[np.float32] = x.detach().transpose(1, 2).to("cpu", package("torch").float32)
    return np.asarray(array)


def to_torch(x: NDArray[np.float32], like: Any) -> Any:
    """An array as a tensor of the same type and place as another."""
    return package("torch").from_numpy(x).to(like.device, like.dtype)


@dataclass
class Pending:
    """Keys and values that a layer was given and whose mask is not known before it attends."""

    rows: Rows
    layer: int
    k: Any
    v: Any
    exact: bool
    done: bool = False

    def mark(self) -> tuple[Any, Any]:
        """The new keys and values, the keys with this attached, for `attention` to find."""
        marked = self.k.view_as(self.k)
        setattr(marked, _MARK, self)
        return marked, self.v

    def attend(self, q: Any, seen: Any, **options: Any) -> Any:
        """Append, unless another layer that shares these keys did, and attend."""
        if not self.done:
            known = None if seen is None else np.asarray(seen.to("cpu"))
            self.done = True
            self.rows.append(self.layer, to_numpy(self.k), to_numpy(self.v), known)
            self.k = self.v = None
        out = self.rows.attend(self.layer, to_numpy(q), exact=self.exact, **options)
        return to_torch(out, q)


def attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Any = None,
    **options: Any,
) -> tuple[Any, None]:
    """What `AttentionInterface` calls: query [batch, heads, T, dim] -> [batch, T, heads, dim].

    Raises
    ------
    ModelError
        The keys are not of a `TransformersCache`, or the attention is of a kind that it cannot do.
    """
    pending: Pending | None = getattr(key, _MARK, None)
    if pending is None:
        raise ModelError(
            f'[kvant.kv.hf] expected keys of a TransformersCache for "{NAME}" attention: pass '
            "past_key_values=TransformersCache.from_config(model.config)"
        )
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ModelError(
            f"[kvant.kv.hf] expected a mask of tokens, got one of {attention_mask.ndim} dimensions"
        )
    if dropout:
        raise ModelError("[kvant.kv.hf] expected no dropout: call model.eval() first")
    if options.get("is_causal") is False or options.get("position_bias") is not None:
        raise ModelError("[kvant.kv.hf] expected causal attention without a bias of positions")
    window = pending.rows.cache.shapes[pending.layer].window
    if options.get("sliding_window", window) != window:
        raise ModelError(
            f"[kvant.kv.hf] expected the cache's window {window} in layer {pending.layer}, "
            f"got {options['sliding_window']}"
        )
    sinks = None if s_aux is None else s_aux.detach().to("cpu", package("torch").float32).numpy()
    out = pending.attend(query, attention_mask, scale=scaling, softcap=softcap or 0.0, sinks=sinks)
    return out, None


def mask(
    q_length: int,
    q_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Any = None,
    **_: Any,
) -> Any:
    """What `AttentionMaskInterface` calls: the tokens that are seen, or None for all of them.

    Raises
    ------
    ModelError
        The mask is neither causal nor a sliding window.
    """
    if not _is_known(mask_function):
        raise ModelError(
            "[kvant.kv.hf] expected causal masks and sliding windows only, got "
            f"{getattr(mask_function, '__qualname__', mask_function)}; use another "
            "attn_implementation with the same cache"
        )
    if attention_mask is None or bool(attention_mask.all()):
        return None
    return attention_mask[:, : int(q_offset) + q_length]


def _is_known(function: Any) -> bool:
    name = getattr(function, "__qualname__", "")
    if name == _BOTH:
        (cell,) = function.__closure__
        return all(_is_known(part) for part in cell.cell_contents)
    return name in _KNOWN_MASKS
