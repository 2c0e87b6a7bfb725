"""Hugging Face `config.json` as the GGUF keys that llama.cpp's converter writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import ModelError
from kvant.models.config import FULL_LAYER_STEPS
from kvant.models.gemma3 import LAYERS_OF_27B

__all__ = ["FILE_TYPES", "architecture_metadata", "architecture_of", "rope_factors"]

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "OlmoeForCausalLM": "olmoe",
    "Gemma3ForCausalLM": "gemma3",
    "GptOssForCausalLM": "gpt-oss",
}

# Where the number of experts and the width of one stand; the former's name changed with version 5
# of transformers.
_EXPERT_KEYS = {
    "qwen3moe": (("num_experts", "num_local_experts"), "moe_intermediate_size"),
    "olmoe": (("num_experts", "num_local_experts"), "intermediate_size"),
    "gpt-oss": (("num_local_experts",), "intermediate_size"),
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
    kind = _rope_type(rope, architecture)
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
    if kind in ("linear", "yarn"):
        keys["rope.scaling.type"] = kind
        keys["rope.scaling.factor"] = _real(rope, "factor")
    if kind == "yarn":
        length = _size(rope, "original_max_position_embeddings")
        keys["rope.scaling.original_context_length"] = length
    if _has_windows(config, architecture):
        keys["attention.sliding_window"] = _size(config, "sliding_window")
    if architecture == "gemma3":
        keys["rope.freq_base_swa"] = _local_base(config)
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def _has_windows(config: dict[str, Any], architecture: str) -> bool:
    """Whether layers see a window, after checking that they are the ones that files mean."""
    if architecture == "llama":
        mistral = config["architectures"][0] == "MistralForCausalLM"
        return mistral and config.get("sliding_window") is not None
    step = FULL_LAYER_STEPS.get(architecture)
    if step is None:
        return False
    given = config.get("layer_types")
    if given is not None:
        # A config may claim any number of layers: what it lists is counted instead.
        count = int(_size(config, "num_hidden_layers"))
        listed = given if isinstance(given, list) else []
        names = ("full_attention", "sliding_attention")
        if len(listed) != count or any(
            kind != names[(i + 1) % step != 0] for i, kind in enumerate(listed)
        ):
            raise ModelError(
                f"[convert] expected full attention in every layer {step} of {step}, got {given}"
            )
    if given is None and config.get("sliding_window_pattern", step) != step:
        raise ModelError(
            f"[convert] expected sliding_window_pattern = {step}, "
            f"got {config['sliding_window_pattern']}"
        )
    return True


def expert_metadata(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Keys about experts; empty for dense models."""
    if architecture not in _EXPERT_KEYS:
        return {}
    names, width = _EXPERT_KEYS[architecture]
    count = next((name for name in names if name in config), names[-1])
    return {
        f"{architecture}.expert_count": _size(config, count),
        f"{architecture}.expert_used_count": _size(config, "num_experts_per_tok"),
        f"{architecture}.expert_feed_forward_length": _size(config, width),
    }


def rope_factors(config: dict[str, Any], head_dim: int) -> npt.NDArray[np.float32] | None:
    """Llama 3.1's divisors of the rope frequencies, f32 [head_dim / 2]; None if it has none.

    Waves shorter than `high` turn as ever, those longer than `low` turn `factor` times slower, and
    between them the speed goes from one to the other evenly in the number of turns.
    """
    rope = _rope(config)
    if rope.get("rope_type", rope.get("type")) != "llama3":
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
    # Gemma has settings for each kind of layer.
    if isinstance(rope.get("full_attention"), dict):
        rope = dict(rope["full_attention"])
    if "rope_theta" not in rope and "rope_theta" in config:
        rope["rope_theta"] = config["rope_theta"]
    return rope


def _local_base(config: dict[str, Any]) -> np.float32:
    """The rotary base of layers with a window."""
    nested = (config.get("rope_parameters") or {}).get("sliding_attention")
    if isinstance(nested, dict):
        if nested.get("rope_type", "default") != "default":
            raise ModelError("[convert] expected layers with windows without scaled rope, got some")
        return _real(nested, "rope_theta", 10000.0)
    return _real(config, "rope_local_base_freq", 10000.0)


def _rope_type(rope: dict[str, Any], architecture: str) -> str:
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise ModelError(f"[convert] expected rope of default, linear, llama3 or yarn, got {kind}")
    if kind == "yarn":
        granted = {
            "beta_fast": (32, 32),
            "beta_slow": (1, 1),
            "attention_factor": (None, None),
            "mscale": (None, None),
            "truncate": (True, architecture != "gpt-oss"),
        }
        _check_granted(rope, granted, "the rope settings")
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
    if architecture == "olmoe":
        granted |= {"norm_topk_prob": (False, False), "clip_qkv": (None, None)}
    if architecture == "gemma3":
        del granted["hidden_act"]
        granted |= {
            "hidden_activation": ("gelu_pytorch_tanh", "gelu_pytorch_tanh"),
            "attn_logit_softcapping": (None, None),
            "final_logit_softcapping": (None, None),
            "use_bidirectional_attention": (False, False),
        }
        granted["query_pre_attn_scalar"] = (256, _score_width(config))
    if architecture == "gpt-oss":
        granted["swiglu_limit"] = (7.0, 7.0)
    _check_granted(config, granted, "config.json")


def _score_width(config: dict[str, Any]) -> Any:
    """What readers of gemma3 files take the root of, to scale scores by its inverse."""
    if config.get("num_hidden_layers") == LAYERS_OF_27B:
        return int(_size(config, "hidden_size")) // int(_size(config, "num_attention_heads"))
    return config.get("head_dim", 256)


def _check_granted(config: dict[str, Any], granted: dict[str, tuple[Any, Any]], where: str) -> None:
    for key, (absent, needed) in granted.items():
        value = config.get(key, absent)
        if value != needed:
            raise ModelError(f"[convert] expected {key} = {needed} in {where}, got {value}")


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
