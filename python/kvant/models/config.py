"""What a decoder needs to know besides its weights, read from GGUF metadata.

Fields carry the names of the GGUF keys they come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvant.errors import ModelError

__all__ = ["FULL_LAYER_STEPS", "ModelConfig", "read_config"]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder. Sizes are in elements; expert fields are 0 in dense models."""

    architecture: str
    block_count: int
    context_length: int
    embedding_length: int
    feed_forward_length: int
    head_count: int
    head_count_kv: int
    key_length: int
    value_length: int
    vocab_size: int
    rope_freq_base: float
    rope_scale: float
    layer_norm_rms_epsilon: float
    expert_count: int = 0
    expert_used_count: int = 0
    expert_feed_forward_length: int = 0
    sliding_window: int = 0
    """Tokens that a layer with a window sees; 0 where no layer has one."""
    full_layer_step: int = 0
    """One layer of so many, the last, sees all tokens in spite of the window; 0: none does."""
    rope_freq_base_swa: float = 10000.0
    """Rotary base of layers with a window, where it is another one."""
    rope_original_context: int = 0
    """Context before it was stretched by YaRN; 0 where it was not."""

    def window_of(self, layer: int) -> int | None:
        """Tokens that a layer sees at most, None for all."""
        step = self.full_layer_step
        if not self.sliding_window or (step and (layer + 1) % step == 0):
            return None
        return self.sliding_window


_EXPERTS = ("qwen3moe", "olmoe", "gpt-oss")

FULL_LAYER_STEPS = {"llama": 0, "gemma3": 6, "gpt-oss": 2}
"""Architectures whose layers may have windows, and which of them sees all tokens."""


_TOO_MUCH = 2**31


class _Keys:
    """Typed look-up below one architecture prefix."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self._metadata = metadata
        self._prefix = architecture

    def get(self, key: str, default: Any = None) -> Any:
        """The raw value of `key`, or `default`; ModelError where there is neither."""
        name = f"{self._prefix}.{key}"
        value = self._metadata.get(name, default)
        if value is None:
            raise ModelError(f"[load] expected the key {name!r}, got none")
        return value

    def size(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` to 2^31 - 1."""
        value = self.get(key, default)
        number: int | None = _as(int, value)
        if number is None or not least <= number < _TOO_MUCH or number != value:
            name = f"{self._prefix}.{key}"
            kind = "a positive integer" if least == 1 else "an integer of 0 or more"
            raise ModelError(f"[load] expected {kind} below 2^31 for {name!r}, got {value!r}")
        return number

    def real(self, key: str, default: float | None = None, least: float = 0.0) -> float:
        """A finite number above 0, and not below `least`."""
        value = self.get(key, default)
        number: float | None = _as(float, value)
        if number is None or not 0 < number < float("inf") or number < least:
            name = f"{self._prefix}.{key}"
            bound = "a positive number" if least == 0 else f"a number of at least {least:g}"
            raise ModelError(f"[load] expected {bound} for {name!r}, got {value!r}")
        return number

    def only(self, key: str, wanted: Any) -> None:
        """Refuse another value than the one that is computed with; none at all is as well."""
        value = self.get(key, wanted)
        if np.ndim(value) or value != wanted:
            name = f"{self._prefix}.{key}"
            raise ModelError(f"[load] expected {name} = {wanted}, got {value!r}")


def _as(kind: type, value: Any) -> Any:
    """The value as a number of a kind; None where it is no such thing."""
    try:
        return kind(value) if np.ndim(value) == 0 and not isinstance(value, str) else None
    except (TypeError, ValueError, OverflowError):
        return None


def read_config(metadata: Mapping[str, Any], architectures: tuple[str, ...]) -> ModelConfig:
    """Read and check the shape of a model.

    Parameters
    ----------
    metadata : mapping of GGUF keys
    architectures : the names this decoder knows

    Raises
    ------
    ModelError
        A key is missing, makes no sense, or asks for something the decoder does not do.
    """
    architecture = str(metadata.get("general.architecture", "none"))
    if architecture not in architectures:
        known = ", ".join(architectures)
        raise ModelError(f"[load] expected an architecture of {known}, got {architecture}")
    keys = _Keys(metadata, architecture)
    width = keys.size("embedding_length")
    heads = keys.size("attention.head_count")
    kv_heads = keys.size("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise ModelError(f"[load] expected head_count to be a multiple of {kv_heads}, got {heads}")
    key_length = keys.size("attention.key_length", width // heads)
    _refuse_what_is_not_done(keys, architecture, key_length)
    has_experts = architecture in _EXPERTS
    expert_ffn = 0
    if has_experts:
        # Files of olmoe say it with the key of dense models.
        dense = keys.size("feed_forward_length", 0, 0) if architecture == "olmoe" else 0
        expert_ffn = keys.size("expert_feed_forward_length", dense or None)
    config = ModelConfig(
        architecture=architecture,
        block_count=keys.size("block_count"),
        context_length=keys.size("context_length"),
        embedding_length=width,
        feed_forward_length=keys.size("feed_forward_length", expert_ffn or None),
        head_count=heads,
        head_count_kv=kv_heads,
        key_length=key_length,
        value_length=keys.size("attention.value_length", width // heads),
        vocab_size=_vocab_size(metadata, keys),
        rope_freq_base=keys.real("rope.freq_base", 10000.0, 1.0),
        rope_scale=_rope_scale(keys),
        layer_norm_rms_epsilon=keys.real("attention.layer_norm_rms_epsilon"),
        expert_count=keys.size("expert_count") if has_experts else 0,
        expert_used_count=keys.size("expert_used_count") if has_experts else 0,
        expert_feed_forward_length=expert_ffn,
        sliding_window=_window(keys, architecture),
        full_layer_step=FULL_LAYER_STEPS.get(architecture, 0),
        rope_freq_base_swa=keys.real("rope.freq_base_swa", 10000.0, 1.0),
        rope_original_context=_original_context(keys),
    )
    if config.expert_used_count > config.expert_count:
        used, count = config.expert_used_count, config.expert_count
        raise ModelError(f"[load] expected expert_used_count <= {count}, got {used}")
    return config


def _vocab_size(metadata: Mapping[str, Any], keys: _Keys) -> int:
    """Files older than the key have one token string per row of the embedding."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    return keys.size("vocab_size", len(tokens) if isinstance(tokens, Sized) else None)


def _rope_type(keys: _Keys) -> str:
    kind = keys.get("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise ModelError(f"[load] expected rope scaling none, linear or yarn, got {kind}")
    return str(kind)


def _rope_scale(keys: _Keys) -> float:
    if _rope_type(keys) == "none":
        return 1.0
    # Older files have another name for it, and no type.
    return keys.real("rope.scaling.factor", keys.real("rope.scale_linear", 1.0))


def _original_context(keys: _Keys) -> int:
    if _rope_type(keys) != "yarn":
        return 0
    for key, standard in (("yarn_beta_fast", 32.0), ("yarn_beta_slow", 1.0), ("attn_factor", 1.0)):
        keys.only(f"rope.scaling.{key}", standard)
    # Its bounds are logarithms to this base.
    keys.real("rope.freq_base", 10000.0, 1.001)
    return keys.size("rope.scaling.original_context_length")


def _window(keys: _Keys, architecture: str) -> int:
    window = keys.size("attention.sliding_window", 0, 0)
    if window and architecture not in FULL_LAYER_STEPS:
        raise ModelError("[load] expected full attention, got attention.sliding_window")
    return window


def _refuse_what_is_not_done(keys: _Keys, architecture: str, key_length: int) -> None:
    """Computing something else than the file means would be a silent wrong answer."""
    rotated = keys.size("rope.dimension_count", key_length)
    if rotated != key_length or key_length % 2:
        raise ModelError(
            f"[load] expected rope over all {key_length} (even) head elements, got {rotated}"
        )
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "attention.scale"):
        keys.only(key, 0.0)
    if architecture in FULL_LAYER_STEPS:
        keys.only("attention.sliding_window_pattern", FULL_LAYER_STEPS[architecture])
    if architecture != "gemma3":
        keys.only("rope.freq_base_swa", keys.get("rope.freq_base", 10000.0))
    elif _rope_type(keys) == "yarn":
        raise ModelError("[load] expected rope scaling none or linear in gemma3, got yarn")
    if architecture not in _EXPERTS:
        keys.only("expert_count", 0)
    if architecture == "qwen3moe":
        keys.only("expert_gating_func", 1)
        keys.only("expert_weights_norm", True)
    if architecture == "olmoe":
        keys.only("expert_weights_norm", False)
