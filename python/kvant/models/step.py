"""One forward pass, and what the architectures share: norms, products, attention, experts.

Every product with a weight goes through this file, so an observer of activations sees all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvant.arithmetic import add, scale
from kvant.experts import matmul_experts, route
from kvant.kv import KVSequence
from kvant.models.config import ModelConfig
from kvant.models.rope import Rope
from kvant.models.routing import Ints, by_expert
from kvant.models.weights import Array, Linear, WeightTable
from kvant.networks import ffn, moe_ffn
from kvant.ops import activation_mul, embedding, rms_norm, rope
from kvant.products import matmul, matmul_many

__all__ = ["AttendObserver", "Observer", "Settings", "Step"]

Observer = Callable[[str, Array, int | None], None]
"""Called with (tensor name, rows f32 [n, k], expert id or None) before each product."""

AttendObserver = Callable[[int, Array, Array, Array, float, Array | None], None]
"""Called with (layer, q, k, v, scale of the scores, sinks) before a layer attends."""


@dataclass(frozen=True)
class Settings:
    """How products are computed (`act` and `threads` of `kvant.matmul`), and how keys are kept."""

    act: str = "q8"
    threads: int | None = None
    kv: str | None = None


class Step:
    """The operations of one pass of T new tokens through the layers.

    Attributes
    ----------
    positions : int64 [T]
        Where the tokens stand.
    on_attend : callable or None
        Shown what layers attend with.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightTable,
        sequence: KVSequence,
        tokens: int,
        settings: Settings,
        observe: Observer | None = None,
    ) -> None:
        self.config = config
        self.weights = weights
        self._sequence = sequence
        self.positions = np.arange(sequence.length, sequence.length + tokens)
        self._act = settings.act
        self._threads = settings.threads
        self._observe = observe
        self.on_attend: AttendObserver | None = None

    def embed(self, tokens: Ints, factor: float = 1.0) -> Array:
        """Rows [T, width] of the embedding, multiplied by a factor."""
        table = self.weights.table("token_embd.weight")
        x: Array = embedding(table, tokens, threads=self._threads)
        if factor != 1.0:
            scale(x, factor, threads=self._threads)
        return x

    def norm(self, name: str, x: Array) -> Array:
        """RMS norm over the last axis with the weights of `name`."""
        weight = self.weights.vector(f"{name}.weight")
        return rms_norm(x, weight, self.config.layer_norm_rms_epsilon, threads=self._threads)

    def add(self, x: Array, y: Array) -> Array:
        """Add y [T, n], or [n] for every token, to x [T, n] in place."""
        return add(x, y, threads=self._threads)

    def linear(self, name: str, x: Array) -> Array:
        """x [T, k] times the weight [n, k] of `name`, transposed, plus its bias if it has one."""
        own = self.weights.linear(name)
        self._show(own, x)
        y = matmul(x, own.matrix, act=self._act, threads=self._threads)
        return y if own.bias is None else self.add(y, own.bias)

    def qkv(self, prefix: str, x: Array) -> tuple[Array, Array, Array]:
        """Queries [T, heads, D], keys and values [T, kv_heads, D] of one layer's input."""
        parts = self.weights.linears(prefix, "attn_q", "attn_k", "attn_v")
        q, k, v = self._products(parts, x)
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
            self.positions,
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
        sequence, threads = self._sequence, self._threads
        sequence.append(layer, k, v, threads=threads)
        factor = self.config.key_length**-0.5 * score_scale
        if self.on_attend is not None:
            self.on_attend(layer, q, k, v, factor, sinks)
        y: Array = sequence.attend(layer, q, factor, sinks=sinks, threads=threads)
        return y.reshape(len(q), -1)

    def feed_forward(self, prefix: str, x: Array, activation: str = "silu") -> Array:
        """The gated feed-forward part of a dense layer."""
        gate, up, down = self.weights.linears(prefix, "ffn_gate", "ffn_up", "ffn_down")
        if self._observe is None and gate.bias is up.bias is down.bias is None:
            return ffn(
                x,
                gate.matrix,
                up.matrix,
                down.matrix,
                activation=activation,
                act=self._act,
                threads=self._threads,
            )
        gated, inner = self._products((gate, up), x)
        activation_mul(gated, inner, activation, out=inner, threads=self._threads)
        return self.linear(f"{prefix}.ffn_down", inner)

    def route(self, scores: Array, *, among: str = "all", norm: bool = True) -> tuple[Ints, Array]:
        """The experts of each token and their shares, as `kvant.route` has them."""
        used = self.config.expert_used_count
        return route(scores, used, among=among, norm=norm, threads=self._threads)

    def experts(
        self, prefix: str, x: Array, chosen: Ints, shares: Array, activation: str = "silu"
    ) -> Array:
        """The gated feed-forward part of a layer with experts, added up with their shares."""
        parts = self.weights.linears(prefix, "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
        gate, up, down = parts
        if self._observe is not None:
            # The fused call does not show what is between its products.
            self.show_experts(parts[:2], x, chosen)
            inner = activation_mul(
                self.expert_products(x, gate, chosen),
                self.expert_products(x, up, chosen),
                activation,
            )
            self.show_experts(parts[2:], inner, chosen)
        return moe_ffn(
            x,
            gate.matrix,
            up.matrix,
            down.matrix,
            chosen,
            shares,
            activation=activation,
            act=self._act,
            threads=self._threads,
        )

    def expert_products(self, x: Array, own: Linear, chosen: Ints) -> Array:
        """Rows of x times the experts chosen for them, and their biases, [T, top, n]."""
        y = matmul_experts(x, own.matrix, chosen, act=self._act, threads=self._threads)
        if own.bias is not None:
            y += own.bias[chosen]
        return y

    def show_experts(self, parts: Sequence[Linear], x: Array, chosen: Ints) -> None:
        """Show the observer x [T, k], or [T, top, k] of each slot, expert by expert."""
        if self._observe is None:
            return
        for expert, rows, slots in by_expert(chosen):
            own = x[rows] if x.ndim == 2 else x[rows, slots]
            for part in parts:
                self._observe(part.name, own, expert)

    def _products(self, parts: Sequence[Linear], x: Array) -> list[Array]:
        for part in parts:
            self._show(part, x)
        matrices = [part.matrix for part in parts]
        results = matmul_many(x, matrices, act=self._act, threads=self._threads)
        for part, y in zip(parts, results, strict=True):
            if part.bias is not None:
                self.add(y, part.bias)
        return results

    def _show(self, part: Linear, x: Array) -> None:
        if self._observe is not None:
            self._observe(part.name, x, None)
