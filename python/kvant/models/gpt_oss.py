"""The gpt-oss layer: attention with sinks, a window in every other layer, experts with biases."""

from __future__ import annotations

import numpy as np

from kvant.models.config import ModelConfig
from kvant.models.llama import Llama, Shapes
from kvant.models.qwen3moe import expert_shapes
from kvant.models.step import Step
from kvant.models.weights import Array
from kvant.ops import silu_mul

__all__ = ["GptOss"]

_LIMIT = np.float32(7)
_ALPHA = np.float32(1.702)


class GptOss(Llama):
    """Each head has a score that takes its share of the softmax and adds nothing."""

    rope_style = "half"
    second_norm = "post_attention_norm"
    # The activation is computed with NumPy.
    replays = False

    def sinks(self, step: Step, prefix: str) -> Array | None:
        """Every layer has them."""
        return step.weights.vector(f"{prefix}.attn_sinks.weight")

    def feed_forward(self, step: Step, prefix: str, h: Array) -> Array:
        """Clamped SwiGLU: gate * sigmoid(1.702 gate) * (up + 1)."""
        scores = step.linear(f"{prefix}.ffn_gate_inp", h)
        chosen, shares = step.route(scores, among="chosen")
        parts = step.weights.linears(prefix, "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
        step.show_experts(parts[:2], h, chosen)
        gate = np.minimum(step.expert_products(h, parts[0], chosen), _LIMIT)
        up = np.clip(step.expert_products(h, parts[1], chosen), -_LIMIT, _LIMIT)
        # gate * sigmoid(a gate) is silu(a gate) / a.
        inner = silu_mul(_ALPHA * gate, (up + np.float32(1)) / _ALPHA)
        step.show_experts(parts[2:], inner, chosen)
        y = step.expert_products(inner, parts[2], chosen)
        y *= shares[..., None]
        # Added up in order, so that the bits are the same everywhere.
        return np.add.accumulate(y, axis=1)[:, -1]

    @classmethod
    def attention_shapes(cls, config: ModelConfig) -> Shapes:
        """Those of llama with biases, sinks, and another name for the second norm."""
        shapes = super().attention_shapes(config)
        del shapes["ffn_norm.weight"]
        biases = {
            name.replace(".weight", ".bias"): shape[:1]
            for name, shape in shapes.items()
            if len(shape) == 2
        }
        more: Shapes = {
            "post_attention_norm.weight": (config.embedding_length,),
            "attn_sinks.weight": (config.head_count,),
        }
        return shapes | biases | more

    @classmethod
    def feed_forward_shapes(cls, config: ModelConfig) -> Shapes:
        """Router and experts, all with biases."""
        shapes = expert_shapes(config)
        biases = {name.replace(".weight", ".bias"): shape[:-1] for name, shape in shapes.items()}
        return shapes | biases
