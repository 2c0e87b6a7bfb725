"""The qwen3moe layer: qwen3 attention, and experts instead of one feed-forward part."""

from __future__ import annotations

from kvant.models.config import ModelConfig
from kvant.models.llama import Shapes
from kvant.models.qwen3 import Qwen3
from kvant.models.step import Step
from kvant.models.weights import Array

__all__ = ["Qwen3Moe", "expert_shapes"]


class Qwen3Moe(Qwen3):
    """Softmax over all experts, the best few, shares divided by their sum."""

    def feed_forward(self, step: Step, prefix: str, h: Array) -> Array:
        """The best experts of each token."""
        scores = step.linear(f"{prefix}.ffn_gate_inp", h)
        chosen, shares = step.route(scores)
        return step.experts(prefix, h, chosen, shares)

    @classmethod
    def feed_forward_shapes(cls, config: ModelConfig) -> Shapes:
        """Router and experts."""
        return expert_shapes(config)


def expert_shapes(config: ModelConfig) -> Shapes:
    """A router, and experts stacked in three tensors."""
    width, ffn = config.embedding_length, config.expert_feed_forward_length
    count = config.expert_count
    return {
        "ffn_gate_inp.weight": (count, width),
        "ffn_gate_exps.weight": (count, ffn, width),
        "ffn_up_exps.weight": (count, ffn, width),
        "ffn_down_exps.weight": (count, width, ffn),
    }
