"""Bytes of weights and of cache that a decoded token reads: what its speed is bound by."""

from __future__ import annotations

from kvant.kv import KVCache
from kvant.models.model import Model

__all__ = ["cache_bytes_per_token", "weight_bytes_per_token"]


def weight_bytes_per_token(model: Model) -> int:
    """Bytes of all matrices that a token is multiplied by.

    Of experts those that a token uses; the embedding only where it is also the head, because of
    the embedding itself one row is read.
    """
    config, total = model.config, 0
    for name, tensor in model.tensors.items():
        if len(tensor.shape) < 2 or (name == "token_embd.weight" and model.has_own_head):
            continue
        if "_exps." in name:
            total += tensor.nbytes * config.expert_used_count // config.expert_count
        else:
            total += tensor.nbytes
    return total


def cache_bytes_per_token(cache: KVCache, position: int) -> int:
    """Bytes of keys and values that the token at a position reads, its own among them."""
    total = 0.0
    for shape, sides in zip(cache.shapes, cache.sides, strict=True):
        seen = min(position + 1, shape.window or position + 1)
        bits = sum(side.bits(dim) * dim for side, dim in zip(sides, shape.stored, strict=False))
        total += seen * shape.kv_heads * bits / 8
    return int(total)
