"""What the readers of config.json share: sizes that every model has, and the metadata of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvant.plan.configs.tensors import Tensors
from kvant.plan.keys import MAX_LAYERS, Keys

__all__ = ["FULL", "SLIDING", "Found", "Sizes", "Tensors", "check_types", "metadata_of", "sizes_of"]

FULL, SLIDING = "full_attention", "sliding_attention"

Found = tuple[dict[str, Any], Tensors]
"""GGUF metadata, and the tensors."""


@dataclass(frozen=True)
class Sizes:
    """Names are short because every formula has them."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    context: int
    tied: bool


def sizes_of(config: Keys, *, tied: bool = False, head: int | None = None) -> Sizes:
    """The sizes of a decoder.

    Parameters
    ----------
    config : Keys
    tied : bool
        What an absent `tie_word_embeddings` means for this architecture.
    head : int, optional
        What an absent `head_dim` means; default: the width over the heads.
    """
    width, heads = config.size("hidden_size"), config.size("num_attention_heads")
    return Sizes(
        layers=config.size("num_hidden_layers", most=MAX_LAYERS),
        width=width,
        inner=config.count("intermediate_size"),
        heads=heads,
        kv_heads=config.size("num_key_value_heads", heads),
        head=config.size("head_dim", head or max(1, width // heads)),
        vocabulary=config.size("vocab_size"),
        context=config.count("max_position_embeddings"),
        tied=config.flag("tie_word_embeddings", tied),
    )


def metadata_of(arch: str, sizes: Sizes, **more: Any) -> dict[str, Any]:
    """GGUF keys. A double underscore in the name of an extra one stands for a dot."""
    keys: dict[str, Any] = {
        "block_count": sizes.layers,
        "context_length": sizes.context,
        "embedding_length": sizes.width,
        "feed_forward_length": sizes.inner,
        "attention.head_count": sizes.heads,
        "attention.head_count_kv": sizes.kv_heads,
        "attention.key_length": sizes.head,
        "attention.value_length": sizes.head,
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return {"general.architecture": arch, **{f"{arch}.{k}": v for k, v in keys.items()}}


def check_types(config: Keys, layers: int, kinds: Sequence[str]) -> None:
    """Refuse `layer_types` other than these over and over: all that the GGUF file could say."""
    if config.has("layer_types"):
        found = config.words("layer_types", layers, tuple(dict.fromkeys(kinds)))
        for index, kind in enumerate(found):
            if kind != kinds[index % len(kinds)]:
                expected = f"{kinds[index % len(kinds)]} in layer {index}"
                raise config.wrong("layer_types", expected, kind)
