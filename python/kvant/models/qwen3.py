"""The qwen3 layer: q and k are normalised per head, and rotary pairs are half a head apart."""

from __future__ import annotations

from kvant.models import llama
from kvant.models.config import ModelConfig
from kvant.models.ops import Array, rope_half
from kvant.models.step import Step

__all__ = ["attend", "layer", "layer_shapes"]


def layer(step: Step, index: int, x: Array) -> Array:
    """x [T, width] -> [T, width]."""
    x = attend(step, index, x)
    return x + step.feed_forward(f"blk.{index}", step.norm(f"blk.{index}.ffn_norm", x))


def attend(step: Step, index: int, x: Array) -> Array:
    """The attention half of the layer, residual included; qwen3moe has the same."""
    config = step.config
    prefix = f"blk.{index}"
    h = step.norm(f"{prefix}.attn_norm", x)
    q = step.heads(f"{prefix}.attn_q", h, config.head_count)
    k = step.heads(f"{prefix}.attn_k", h, config.head_count_kv)
    v = step.heads(f"{prefix}.attn_v", h, config.head_count_kv)
    q = rope_half(step.norm(f"{prefix}.attn_q_norm", q), step.cos, step.sin)
    k = rope_half(step.norm(f"{prefix}.attn_k_norm", k), step.cos, step.sin)
    return x + step.linear(f"{prefix}.attn_output", step.attend(index, q, k, v))


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's tensors, by the part of the name after `blk.N.`."""
    return llama.attention_shapes(config) | head_norm_shapes(config) | llama.dense_shapes(config)


def head_norm_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The norms that llama does not have."""
    return {
        "attn_q_norm.weight": (config.key_length,),
        "attn_k_norm.weight": (config.key_length,),
    }
