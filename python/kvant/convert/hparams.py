"""Hugging Face `config.json` as the GGUF keys that llama.cpp's converter writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import ModelError

__all__ = ["FILE_TYPES", "architecture_metadata", "architecture_of", "rope_factors"]

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
}

FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}
"""Values of `general.file_type`, by the type of the matrices."""


def architecture_of(config: dict[str, Any]) -> str:
    """The GGUF name of the architecture; ModelError if it is not one of ours."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ModelError(f"[convert] expected architectures in config.json of {known}, got {name}")
    _refuse_what_gguf_cannot_say(config, _ARCHITECTURES[name])
    return _ARCHITECTURES[name]


def architecture_metadata(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Keys below the architecture's prefix, in order."""
    heads = _size(config, "num_attention_heads")
    width = _size(config, "hidden_size")
    head_dim = _size(config, "head_dim", width // heads)
    rope = _rope(config)
    keys: dict[str, Any] = {
        "context_length": _size(config, "max_position_embeddings"),
        "embedding_length": width,
        "block_count": _size(config, "num_hidden_layers"),
        "feed_forward_length": _size(config, "intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": _size(config, "num_key_value_heads", heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.freq_base": _real(rope, "rope_theta", 10000.0),
        "attention.layer_norm_rms_epsilon": _real(config, "rms_norm_eps"),
        "vocab_size": _size(config, "vocab_size"),
    }
    if architecture == "llama":
        keys["rope.dimension_count"] = head_dim
    if _rope_type(rope) == "linear":
        keys["rope.scaling.type"] = "linear"
        keys["rope.scaling.factor"] = _real(rope, "factor")
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def expert_metadata(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Keys about experts; empty for dense models."""
    if architecture != "qwen3moe":
        return {}
    # The name of the count changed with version 5 of transformers.
    count = "num_experts" if "num_experts" in config else "num_local_experts"
    return {
        f"{architecture}.expert_count": _size(config, count),
        f"{architecture}.expert_used_count": _size(config, "num_experts_per_tok"),
        f"{architecture}.expert_feed_forward_length": _size(config, "moe_intermediate_size"),
    }


def rope_factors(config: dict[str, Any], head_dim: int) -> npt.NDArray[np.float32] | None:
    """Llama 3.1's divisors of the rope frequencies, f32 [head_dim / 2]; None if it has none.

    Waves shorter than `high` turn as ever, those longer than `low` turn `factor` times slower, and
    between them the speed goes from one to the other evenly in the number of turns.
    """
    rope = _rope(config)
    if _rope_type(rope) != "llama3":
        return None
    factor = _real(rope, "factor")
    low, high = _real(rope, "low_freq_factor"), _real(rope, "high_freq_factor")
    if low >= high:
        raise ModelError(f"[convert] expected low_freq_factor < {high}, got {low}")
    base = _real(rope, "rope_theta", 10000.0)
    turns_per_token = base ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)
    turns = _real(rope, "original_max_position_embeddings") * turns_per_token
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / (share + (1.0 - share) / factor), dtype=np.float32)


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rope settings, which stand in one or the other place by version of transformers."""
    old = config.get("rope_scaling") or {}
    new = config.get("rope_parameters") or {}
    if not isinstance(old, dict) or not isinstance(new, dict):
        raise ModelError("[convert] expected an object for the rope settings, got another value")
    rope = {**old, **new}
    if "rope_theta" not in rope and "rope_theta" in config:
        rope["rope_theta"] = config["rope_theta"]
    return rope


def _rope_type(rope: dict[str, Any]) -> str:
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    if kind not in ("default", "linear", "llama3"):
        raise ModelError(f"[convert] expected rope of default, linear or llama3, got {kind}")
    return kind


def _refuse_what_gguf_cannot_say(config: dict[str, Any], architecture: str) -> None:
    """Settings that the file format or its readers take for granted."""
    granted: dict[str, tuple[Any, Any]] = {
        # key: (value when absent, the only value that converts)
        "hidden_act": ("silu", "silu"),
        "quantization_config": (None, None),
        "use_sliding_window": (False, False),
    }
    if architecture == "qwen3moe":
        granted |= {
            "norm_topk_prob": (False, True),
            "decoder_sparse_step": (1, 1),
            "mlp_only_layers": ([], []),
        }
    for key, (absent, needed) in granted.items():
        value = config.get(key, absent)
        if value != needed:
            raise ModelError(f"[convert] expected {key} = {needed} in config.json, got {value}")


def _size(config: dict[str, Any], key: str, default: Any = None) -> np.uint32:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelError(f"[convert] expected {key} in config.json, got none")
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ModelError(f"[convert] expected a whole number for {key}, got {value!r}")
    if not 0 < value < 2**31:
        raise ModelError(f"[convert] expected {key} from 1 to 2^31 - 1, got {value}")
    size: np.uint32 = np.uint32(value)
    return size


def _real(config: dict[str, Any], key: str, default: float | None = None) -> np.float32:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e38:
        raise ModelError(f"[convert] expected a positive number for {key}, got {value!r}")
    real: np.float32 = np.float32(value)
    return real
