"""The gemma3 layer: norms on both sides of each half, and sliding windows in five layers of six.

Layers with a window have a rotary base of their own, without scaling. Files hold norm weights as
they multiply (Hugging Face folders hold them less one).
"""

from __future__ import annotations

from kvant.models.config import ModelConfig
from kvant.models.llama import Shapes
from kvant.models.qwen3 import Qwen3
from kvant.models.rope import Rope
from kvant.models.routing import Ints
from kvant.models.step import Step
from kvant.models.weights import Array, WeightTable

__all__ = ["LAYERS_OF_27B", "Gemma3"]

# The one size, by its layers, whose scores are scaled by width / heads instead of a head's length.
LAYERS_OF_27B = 62


class Gemma3(Qwen3):
    """q and k are normalised per head, as in qwen3."""

    def __init__(self, config: ModelConfig, weights: WeightTable) -> None:
        super().__init__(config, weights)
        self.local_rope = Rope(config.rope_freq_base_swa, self.rope_style)
        self.score_scale = 1.0
        if config.block_count == LAYERS_OF_27B:
            per_head = config.embedding_length / config.head_count
            self.score_scale = (config.key_length / per_head) ** 0.5

    def embed(self, step: Step, tokens: Ints) -> Array:
        """Embeddings are multiplied by the root of their width."""
        return step.embed(tokens, self.config.embedding_length**0.5)

    def layer(self, step: Step, index: int, x: Array) -> Array:
        """One layer, x [T, width] -> [T, width], in place."""
        prefix = f"blk.{index}"
        h = self.attention(step, index, step.norm(f"{prefix}.attn_norm", x))
        step.add(x, step.norm(f"{prefix}.post_attention_norm", h))
        h = step.feed_forward(prefix, step.norm(f"{prefix}.ffn_norm", x), "gelu_tanh")
        return step.add(x, step.norm(f"{prefix}.post_ffw_norm", h))

    def attention(self, step: Step, index: int, h: Array) -> Array:
        """As in llama, with the positions of the layer's kind."""
        prefix = f"blk.{index}"
        q, k, v = step.qkv(prefix, h)
        q, k = step.norm(f"{prefix}.attn_q_norm", q), step.norm(f"{prefix}.attn_k_norm", k)
        how = self.rope_of(index)
        q, k = step.rotate(q, how), step.rotate(k, how)
        mixed = step.attend(index, q, k, v, score_scale=self.score_scale)
        return step.linear(f"{prefix}.attn_output", mixed)

    def rope_of(self, index: int) -> Rope:
        """Layers with a window have their own."""
        return self.rope if self.config.window_of(index) is None else self.local_rope

    @classmethod
    def attention_shapes(cls, config: ModelConfig) -> Shapes:
        """Those of qwen3, and the norms behind each half."""
        width = (config.embedding_length,)
        after = {"post_attention_norm.weight": width, "post_ffw_norm.weight": width}
        return super().attention_shapes(config) | after
