"""One forward pass, and what the architectures share: norms, products, attention, experts.

Every product with a weight goes through this file, so an observer of activations sees all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvant.experts import matmul_experts
from kvant.models.cache import Cache
from kvant.models.config import ModelConfig
from kvant.models.rope import Rope
from kvant.models.routing import by_expert
from kvant.models.weights import Array, WeightTable
from kvant.networks import ffn, moe_ffn
from kvant.ops import activation_mul, embedding, rms_norm, rope
from kvant.packed import PackedTensor
from kvant.products import matmul, matmul_many
from kvant.qtensor import QTensor

__all__ = ["Observer", "Settings", "Step"]

Observer = Callable[[str, Array, int | None], None]
"""Called with (tensor name, rows f32 [n, k], expert id or None) before each product."""


@dataclass(frozen=True)
class Settings:
    """How products are computed: `act` and `threads` of `kvant.matmul`."""

    act: str = "q8"
    threads: int | None = None


class Step:
    """The operations of one pass of T new tokens through the layers."""

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightTable,
        cache: Cache,
        tokens: int,
        settings: Settings,
        observe: Observer | None = None,
    ) -> None:
        self.config = config
        self.weights = weights
        self._cache = cache
        self._positions = np.arange(cache.length, cache.length + tokens)
        self._act = settings.act
        self._threads = settings.threads
        self._observe = observe

    def embed(self, tokens: np.ndarray) -> Array:
        """Rows [T, width] of the embedding."""
        table = self.weights.table("token_embd.weight")
        x: Array = embedding(table, tokens, threads=self._threads)
        return x

    def norm(self, name: str, x: Array) -> Array:
        """RMS norm over the last axis with the weights of `name`."""
        weight = self.weights.vector(f"{name}.weight")
        return rms_norm(x, weight, self.config.layer_norm_rms_epsilon, threads=self._threads)

    def linear(self, name: str, x: Array) -> Array:
        """x [T, k] times the weight [n, k] of `name`, transposed, plus its bias if it has one."""
        self._show(name, x)
        y = matmul(x, self.weights.matrix(f"{name}.weight"), act=self._act, threads=self._threads)
        return self._with_bias(name, y)

    def qkv(self, prefix: str, x: Array) -> tuple[Array, Array, Array]:
        """Queries [T, heads, D], keys and values [T, kv_heads, D] of one layer's input."""
        names = [f"{prefix}.attn_{part}" for part in "qkv"]
        q, k, v = (
            self._with_bias(name, y)
            for name, y in zip(names, self._products(names, x), strict=True)
        )
        heads, kv_heads, tokens = self.config.head_count, self.config.head_count_kv, len(x)
        return (
            q.reshape(tokens, heads, -1),
            k.reshape(tokens, kv_heads, -1),
            v.reshape(tokens, kv_heads, -1),
        )

    def rotate(self, x: Array, how: Rope) -> Array:
        """Rotary positions of x [T, heads, D], in place."""
        return rope(
            x,
            self._positions,
            theta=how.theta,
            style=how.style,
            freq_factors=how.factors,
            scale=how.scale,
            out=x,
            threads=self._threads,
        )

    def attend(
        self,
        layer: int,
        q: Array,
        k: Array,
        v: Array,
        *,
        score_scale: float = 1.0,
        sinks: Array | None = None,
    ) -> Array:
        """Causal attention over everything the layer sees, [T, heads * D]."""
        cache, config = self._cache, self.config
        cache.append(layer, k, v, threads=self._threads)
        scale = config.key_length**-0.5 * score_scale
        window = config.window_of(layer)
        y = cache.attend(layer, q, scale, window=window, sinks=sinks, threads=self._threads)
        return y.reshape(len(q), -1)

    def feed_forward(self, prefix: str, x: Array, activation: str = "silu") -> Array:
        """The gated feed-forward part of a dense layer."""
        names = [f"{prefix}.ffn_{part}" for part in ("gate", "up", "down")]
        gate, up, down = (self.weights.matrix(f"{name}.weight") for name in names)
        if self._observe is None and not any(f"{name}.bias" in self.weights for name in names):
            return ffn(
                x, gate, up, down, activation=activation, act=self._act, threads=self._threads
            )
        gated, inner = map(self._with_bias, names, self._products(names[:2], x))
        activation_mul(gated, inner, activation, out=inner, threads=self._threads)
        return self.linear(names[2], inner)

    def experts(
        self, prefix: str, x: Array, chosen: np.ndarray, shares: Array, activation: str = "silu"
    ) -> Array:
        """The gated feed-forward part of a layer with experts, added up with their shares."""
        names = [f"{prefix}.ffn_{part}_exps" for part in ("gate", "up", "down")]
        gate, up, down = (self.weights.matrix(f"{name}.weight") for name in names)
        if self._observe is not None:
            # The fused call does not show what is between its products.
            self.show_experts(names[:2], x, chosen)
            inner = activation_mul(
                self.expert_products(x, gate, chosen),
                self.expert_products(x, up, chosen),
                activation,
            )
            self.show_experts(names[2:], inner, chosen)
        return moe_ffn(
            x,
            gate,
            up,
            down,
            chosen,
            shares,
            activation=activation,
            act=self._act,
            threads=self._threads,
        )

    def expert_products(self, x: Array, w: QTensor | PackedTensor, chosen: np.ndarray) -> Array:
        """Rows of x times the experts chosen for them, [T, top, n]."""
        return matmul_experts(x, w, chosen, act=self._act, threads=self._threads)

    def show_experts(self, names: Sequence[str], x: Array, chosen: np.ndarray) -> None:
        """Show the observer x [T, k], or [T, top, k] of each slot, expert by expert."""
        if self._observe is None:
            return
        for expert, rows, slots in by_expert(chosen):
            own = x[rows] if x.ndim == 2 else x[rows, slots]
            for name in names:
                self._observe(f"{name}.weight", own, expert)

    def _products(self, names: Sequence[str], x: Array) -> list[Array]:
        for name in names:
            self._show(name, x)
        weights = [self.weights.matrix(f"{name}.weight") for name in names]
        return matmul_many(x, weights, act=self._act, threads=self._threads)

    def _with_bias(self, name: str, y: Array) -> Array:
        bias = f"{name}.bias"
        if bias in self.weights:
            y += self.weights.vector(bias)
        return y

    def _show(self, name: str, x: Array) -> None:
        if self._observe is not None:
            self._observe(f"{name}.weight", x, None)
