"""The llama layer: rotary pairs interleaved, because llama files store q and k rows permuted."""

from __future__ import annotations

from kvant.models.config import ModelConfig
from kvant.models.ops import Array, rope_interleaved
from kvant.models.step import Step

__all__ = ["layer", "layer_shapes"]


def layer(step: Step, index: int, x: Array) -> Array:
    """x [T, width] -> [T, width]."""
    config = step.config
    prefix = f"blk.{index}"
    h = step.norm(f"{prefix}.attn_norm", x)
    q = step.heads(f"{prefix}.attn_q", h, config.head_count)
    k = step.heads(f"{prefix}.attn_k", h, config.head_count_kv)
    v = step.heads(f"{prefix}.attn_v", h, config.head_count_kv)
    q = rope_interleaved(q, step.cos, step.sin)
    k = rope_interleaved(k, step.cos, step.sin)
    x = x + step.linear(f"{prefix}.attn_output", step.attend(index, q, k, v))
    return x + step.feed_forward(prefix, step.norm(f"{prefix}.ffn_norm", x))


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's tensors, by the part of the name after `blk.N.`."""
    return attention_shapes(config) | dense_shapes(config)


def dense_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The feed-forward part of the architectures without experts."""
    width, ffn = config.embedding_length, config.feed_forward_length
    return {
        "ffn_gate.weight": (ffn, width),
        "ffn_up.weight": (ffn, width),
        "ffn_down.weight": (width, ffn),
    }


def attention_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The part that all three architectures share."""
    width = config.embedding_length
    heads, kv_heads = config.head_count, config.head_count_kv
    return {
        "attn_norm.weight": (width,),
        "ffn_norm.weight": (width,),
        "attn_q.weight": (heads * config.key_length, width),
        "attn_k.weight": (kv_heads * config.key_length, width),
        "attn_v.weight": (kv_heads * config.value_length, width),
        "attn_output.weight": (width, heads * config.value_length),
    }
