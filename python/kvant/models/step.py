"""One forward step: the tokens, where they stand, what was seen before, and the layer operations.

Every multiplication by a weight goes through `linear` or `experts`: a faster matmul has two places
to go, and an observer of activations sees all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kvant.models import ops
from kvant.models.config import ModelConfig
from kvant.models.moe import by_expert, route
from kvant.models.ops import Array
from kvant.models.weights import Weights

__all__ = ["KeyValues", "Observer", "Step"]

Observer = Callable[[str, Array, int | None], None]
"""Called with (tensor name, rows f32 [n, k], expert id or None) before each product."""


class KeyValues:
    """Keys and values of all layers so far: plain f32, growing by doubling."""

    def __init__(self, config: ModelConfig) -> None:
        heads = config.head_count_kv
        empty = [(heads, 0, config.key_length), (heads, 0, config.value_length)]
        self._stores = [
            [np.empty(shape, dtype=np.float32) for shape in empty]
            for _ in range(config.block_count)
        ]
        self.length = 0

    def append(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Add k and v [T, heads, D] to a layer; returns all of it as [heads, S, D] views."""
        end = self.length + len(k)
        store = self._stores[layer]
        for i, new in enumerate((k, v)):
            if end > store[i].shape[1]:
                grown = np.empty((new.shape[1], 2 * end, new.shape[2]), dtype=np.float32)
                grown[:, : self.length] = store[i][:, : self.length]
                store[i] = grown
            store[i][:, self.length : end] = new.swapaxes(0, 1)
        return store[0][:, :end], store[1][:, :end]


class Step:
    """The operations of one forward pass over T new tokens."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        tokens: int,
        past: KeyValues | None,
        observe: Observer | None,
    ) -> None:
        self.config = config
        self._weights = weights
        self._past = past
        self._observe = observe
        factors = weights.f32("rope_freqs.weight") if "rope_freqs.weight" in weights else None
        self.cos, self.sin = ops.rope_angles(
            past.length if past else 0,
            tokens,
            config.key_length,
            config.rope_freq_base,
            factors,
            config.rope_scale,
        )

    def norm(self, name: str, x: Array) -> Array:
        """RMS norm over the last axis with the weights of `name`."""
        weight = self._weights.f32(f"{name}.weight")
        return ops.rms_norm(x, weight, self.config.layer_norm_rms_epsilon)

    def linear(self, name: str, x: Array) -> Array:
        """x [T, k] times the weight [n, k] of `name`, transposed, plus its bias if it has one."""
        if self._observe:
            self._observe(f"{name}.weight", x, None)
        y: Array = x @ self._weights.f32(f"{name}.weight").T
        if f"{name}.bias" in self._weights:
            y += self._weights.f32(f"{name}.bias")
        return y

    def heads(self, name: str, x: Array, count: int) -> Array:
        """`linear`, split into heads: [T, count, D]."""
        return self.linear(name, x).reshape(len(x), count, -1)

    def attend(self, layer: int, q: Array, k: Array, v: Array) -> Array:
        """Causal attention over everything seen; q, k, v are [T, heads, D]."""
        if self._past:
            return ops.attention(q, *self._past.append(layer, k, v))
        return ops.attention(q, k.swapaxes(0, 1), v.swapaxes(0, 1))

    def feed_forward(self, prefix: str, x: Array) -> Array:
        """The gated feed-forward part of a dense layer."""
        gate = self.linear(f"{prefix}.ffn_gate", x)
        up = self.linear(f"{prefix}.ffn_up", x)
        return self.linear(f"{prefix}.ffn_down", ops.swiglu(gate, up))

    def experts(self, prefix: str, x: Array) -> Array:
        """The gated feed-forward part of a layer with experts."""
        scores = self.linear(f"{prefix}.ffn_gate_inp", x)
        chosen, shares = route(scores, self.config.expert_used_count)
        out = np.zeros_like(x)
        for expert, rows, slots in by_expert(chosen):
            own = x[rows]
            gate = self._expert(f"{prefix}.ffn_gate_exps", own, expert)
            up = self._expert(f"{prefix}.ffn_up_exps", own, expert)
            down = self._expert(f"{prefix}.ffn_down_exps", ops.swiglu(gate, up), expert)
            # A token chooses an expert once, so no row occurs twice here.
            out[rows] += down * shares[rows, slots, None]
        return out

    def _expert(self, name: str, x: Array, expert: int) -> Array:
        if self._observe:
            self._observe(f"{name}.weight", x, expert)
        y: Array = x @ self._weights.f32(f"{name}.weight")[expert].T
        return y
