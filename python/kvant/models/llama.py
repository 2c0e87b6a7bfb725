"""The llama layer, which mistral has too; the other architectures say how they differ from it."""

from __future__ import annotations

from kvant.models.config import ModelConfig
from kvant.models.rope import Rope, read_rope
from kvant.models.routing import Ints
from kvant.models.step import Step
from kvant.models.weights import Array, WeightTable

__all__ = ["Llama", "Shapes"]

Shapes = dict[str, tuple[int, ...]]


class Llama:
    """Attention, then a gated feed-forward part, each behind a norm and added to what came in."""

    # Llama files store the rows of q and k in another order, so that pairs are neighbours.
    rope_style = "interleaved"
    # What files call the norm before the second half.
    second_norm = "ffn_norm"
    # Whether layers compute with operations of `Step` alone, which can be recorded and made again.
    replays = True

    def __init__(self, config: ModelConfig, weights: WeightTable) -> None:
        self.config = config
        self.rope = read_rope(config, weights, self.rope_style)

    def embed(self, step: Step, tokens: Ints) -> Array:
        """What goes into the first layer, [T, width]."""
        return step.embed(tokens)

    def hidden(self, step: Step, tokens: Ints) -> Array:
        """What the head is given, [T, width], for tokens int64 [T]."""
        x = self.embed(step, tokens)
        for index in range(self.config.block_count):
            x = self.layer(step, index, x)
        return step.norm("output_norm", x)

    def layer(self, step: Step, index: int, x: Array) -> Array:
        """One layer, x [T, width] -> [T, width], in place."""
        prefix = f"blk.{index}"
        step.add(x, self.attention(step, index, step.norm(f"{prefix}.attn_norm", x)))
        h = step.norm(f"{prefix}.{self.second_norm}", x)
        return step.add(x, self.feed_forward(step, prefix, h))

    def attention(self, step: Step, index: int, h: Array) -> Array:
        """Queries, keys and values of h, rotated; attention; and one product back to [T, width]."""
        prefix = f"blk.{index}"
        q, k, v = step.qkv(prefix, h)
        q, k = self.positions(step, prefix, q, k)
        sinks = self.sinks(step, prefix)
        mixed = step.attend(index, q, k, v, score_scale=self.rope.score_scale, sinks=sinks)
        return step.linear(f"{prefix}.attn_output", mixed)

    def rope_of(self, index: int) -> Rope:
        """How a layer puts positions into queries and keys."""
        return self.rope

    def sinks(self, step: Step, prefix: str) -> Array | None:
        """Scores [heads] that take their share of the softmax and add nothing; None without."""
        return None

    def positions(self, step: Step, prefix: str, q: Array, k: Array) -> tuple[Array, Array]:
        """Queries and keys with their positions in them."""
        return step.rotate(q, self.rope), step.rotate(k, self.rope)

    def feed_forward(self, step: Step, prefix: str, h: Array) -> Array:
        """The second half of the layer."""
        return step.feed_forward(prefix, h)

    @classmethod
    def layer_shapes(cls, config: ModelConfig) -> Shapes:
        """Shapes of a layer's tensors, by the part of the name after `blk.N.`."""
        return cls.attention_shapes(config) | cls.feed_forward_shapes(config)

    @classmethod
    def attention_shapes(cls, config: ModelConfig) -> Shapes:
        """The first half, and both norms."""
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

    @classmethod
    def feed_forward_shapes(cls, config: ModelConfig) -> Shapes:
        """The second half."""
        width, ffn = config.embedding_length, config.feed_forward_length
        return {
            "ffn_gate.weight": (ffn, width),
            "ffn_up.weight": (ffn, width),
            "ffn_down.weight": (width, ffn),
        }
