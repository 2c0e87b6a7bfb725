"""The olmoe layer: q and k are normalised whole, and experts keep the shares of the softmax."""

from __future__ import annotations

from kvant.models.config import ModelConfig
from kvant.models.llama import Llama, Shapes
from kvant.models.qwen3moe import expert_shapes
from kvant.models.step import Step
from kvant.models.weights import Array

__all__ = ["Olmoe"]


class Olmoe(Llama):
    """Experts as in qwen3moe, but their shares do not add up to one."""

    rope_style = "half"

    def positions(self, step: Step, prefix: str, q: Array, k: Array) -> tuple[Array, Array]:
        """All heads of a token together have a norm before they are rotated."""
        q = step.norm(f"{prefix}.attn_q_norm", q.reshape(len(q), -1)).reshape(q.shape)
        k = step.norm(f"{prefix}.attn_k_norm", k.reshape(len(k), -1)).reshape(k.shape)
        return super().positions(step, prefix, q, k)

    def feed_forward(self, step: Step, prefix: str, h: Array) -> Array:
        """The best experts of each token."""
        scores = step.linear(f"{prefix}.ffn_gate_inp", h)
        chosen, shares = step.route(scores, norm=False)
        return step.experts(prefix, h, chosen, shares)

    @classmethod
    def attention_shapes(cls, config: ModelConfig) -> Shapes:
        """Those of llama, and the norms."""
        shapes = super().attention_shapes(config)
        norms = {f"attn_{p}_norm.weight": shapes[f"attn_{p}.weight"][:1] for p in "qk"}
        return shapes | norms

    @classmethod
    def feed_forward_shapes(cls, config: ModelConfig) -> Shapes:
        """Router and experts."""
        return expert_shapes(config)
