"""The qwen3moe layer: qwen3 attention, and experts instead of one feed-forward part."""

from __future__ import annotations

from kvant.models import llama, qwen3
from kvant.models.config import ModelConfig
from kvant.models.ops import Array
from kvant.models.step import Step

__all__ = ["layer", "layer_shapes"]


def layer(step: Step, index: int, x: Array) -> Array:
    """x [T, width] -> [T, width]."""
    x = qwen3.attend(step, index, x)
    return x + step.experts(f"blk.{index}", step.norm(f"blk.{index}.ffn_norm", x))


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's tensors, by the part of the name after `blk.N.`."""
    width, ffn = config.embedding_length, config.expert_feed_forward_length
    count = config.expert_count
    return (
        llama.attention_shapes(config)
        | qwen3.head_norm_shapes(config)
        | {
            "ffn_gate_inp.weight": (count, width),
            "ffn_gate_exps.weight": (count, ffn, width),
            "ffn_up_exps.weight": (count, ffn, width),
            "ffn_down_exps.weight": (count, width, ffn),
        }
    )
