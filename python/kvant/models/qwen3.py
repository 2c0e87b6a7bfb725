"""The qwen3 layer: q and k are normalised per head, and rotary pairs are half a head apart."""

from __future__ import annotations

from kvant.models.config import ModelConfig
from kvant.models.llama import Llama, Shapes
from kvant.models.step import Step
from kvant.models.weights import Array

__all__ = ["Qwen3"]


class Qwen3(Llama):
    """A norm more than llama."""

    rope_style = "half"

    def positions(self, step: Step, prefix: str, q: Array, k: Array) -> tuple[Array, Array]:
        """Each head has its norm before it is rotated."""
        q, k = step.norm(f"{prefix}.attn_q_norm", q), step.norm(f"{prefix}.attn_k_norm", k)
        return super().positions(step, prefix, q, k)

    @classmethod
    def attention_shapes(cls, config: ModelConfig) -> Shapes:
        """Those of llama, and the norms."""
        norms = {f"attn_{part}_norm.weight": (config.key_length,) for part in "qk"}
        return super().attention_shapes(config) | norms
