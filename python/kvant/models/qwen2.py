"""The qwen2 layer: rotary pairs are half a head apart, and q, k and v have biases."""

from __future__ import annotations

from kvant.models.config import ModelConfig
from kvant.models.llama import Llama, Shapes

__all__ = ["Qwen2"]


class Qwen2(Llama):
    """Products add their biases by themselves, wherever a file has any."""

    rope_style = "half"

    @classmethod
    def attention_shapes(cls, config: ModelConfig) -> Shapes:
        """Those of llama, and the biases."""
        shapes = super().attention_shapes(config)
        biases = {f"attn_{p}.bias": shapes[f"attn_{p}.weight"][:1] for p in "qkv"}
        return shapes | biases
