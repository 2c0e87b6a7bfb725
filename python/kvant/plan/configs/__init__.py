"""Hugging Face config.json as a model: one function for each architecture, named in a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from kvant.errors import ModelError
from kvant.plan.configs import decoders, experts, gemma, hybrids
from kvant.plan.configs.common import Found
from kvant.plan.keys import Keys
from kvant.plan.layers import layers_of
from kvant.plan.model import Model

__all__ = ["MODEL_TYPES", "from_config"]

MODEL_TYPES: Mapping[str, Callable[[Keys], Found]] = {
    "llama": decoders.llama,
    "mistral": decoders.mistral,
    "ministral3": decoders.llama,
    "mixtral": decoders.llama,
    "qwen2": decoders.qwen2,
    "qwen3": decoders.qwen3,
    "qwen3_moe": decoders.qwen3moe,
    "olmoe": decoders.olmoe,
    "phi3": decoders.phi3,
    "gemma2": gemma.gemma2,
    "gemma3_text": gemma.gemma3,
    "gemma4_text": gemma.gemma4,
    "gemma4_unified_text": gemma.gemma4,
    "qwen3_next": hybrids.qwen3next,
    "qwen3_5_text": hybrids.qwen35,
    "qwen3_5_moe_text": hybrids.qwen35moe,
    "gpt_oss": experts.gpt_oss,
    "llama4_text": experts.llama4,
    "deepseek_v2": experts.deepseek2,
    "deepseek_v3": experts.deepseek2,
    "deepseek_v32": experts.deepseek32,
    "kimi_k2": experts.deepseek2,
}
"""`model_type` of the part that writes text -> what reads it."""

# GGUF keeps byte counts in 64 bits.
_MOST_ELEMENTS = 1 << 60


def from_config(config: Mapping[str, Any], name: str = "model", source: str = "") -> Model:
    """The model of a config.json: the tensors that a GGUF of it has, matrices in bf16.

    Models that also see or hear are reduced to the part that writes text.

    Parameters
    ----------
    config : mapping
        What the file holds.
    name, source : str
        Become those of the model.

    Raises
    ------
    ModelError
        The architecture is not known, or a size is missing or makes no sense.

    Examples
    --------
    >>> from kvant import plan
    >>> config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    ...           "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
    >>> plan.from_config(config).elements
    95040
    """
    inner = config.get("text_config")
    text: Mapping[str, Any] = config
    if isinstance(inner, Mapping):
        tied = {k: config[k] for k in ("tie_word_embeddings",) if k in config}
        text = {**tied, **inner}
    kind = text.get("model_type")
    # Files from before there were text configs name the whole model.
    builder = MODEL_TYPES.get(str(kind)) or MODEL_TYPES.get(f"{kind}_text")
    if builder is None:
        known = ", ".join(MODEL_TYPES)
        raise ModelError(f"[plan] expected a model_type of {known}, got {kind!r}")
    metadata, tensors = builder(Keys(text, place="config.json"))
    elements = sum(math.prod(info.shape) for info in tensors.found)
    if elements > _MOST_ELEMENTS:
        raise ModelError(f"[plan] expected a model below 2^60 weights, got {elements}")
    return Model(name, source or f"config of {kind}", metadata, tuple(tensors.found),
                 layers_of(metadata, {info.name for info in tensors.found}))  # fmt: skip
