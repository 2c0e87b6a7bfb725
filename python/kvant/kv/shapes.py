"""What a cache is told of its layers, made one shape for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvant.errors import ShapeError
from kvant.kv.codecs import KVSide
from kvant.kv.spec import NO_KEYS, LayerShape

__all__ = ["PerLayer", "block_of", "owners_of", "shapes_of"]

PerLayer = int | Sequence[int]
_Limit = int | Sequence[int | None] | None


def shapes_of(
    layers: int,
    kv_heads: PerLayer,
    head_dim: PerLayer,
    value_dim: PerLayer | None,
    value_view: bool | Sequence[bool],
    window: _Limit,
    chunk: _Limit,
) -> list[LayerShape]:
    """The shape of every layer; arguments are those of `KVCache`.

    Raises
    ------
    ShapeError
        A size is out of range, or there are not as many as layers.
    """
    columns = [
        _each("kv_heads", kv_heads, layers),
        _each("head_dim", head_dim, layers),
        _each("value_dim", head_dim if value_dim is None else value_dim, layers),
        _each("window", window, layers),
        _each("value_view", value_view, layers),
        _each("chunk", chunk, layers),
    ]
    return [_shape(*column) for column in zip(*columns, strict=True)]


def _each(name: str, value: Any, layers: int) -> list[Any]:
    if value is None or np.ndim(value) == 0:
        return [value] * layers
    if len(value) != layers:
        raise ShapeError(f"[KVCache] expected {name} of {layers} layers, got {len(value)}")
    return list(value)


def _shape(heads: int, dim: int, value: int, window: Any, view: bool, chunk: Any) -> LayerShape:
    if heads == 0:
        return NO_KEYS
    if heads < 1 or not 1 <= dim <= 1024 or not 1 <= value <= 1024:
        raise ShapeError(
            "[KVCache] expected at least one head and 1 to 1024 elements, "
            f"got {heads} of {dim} and {value}"
        )
    if view and value > dim:
        raise ShapeError(f"[KVCache] expected a view of at most {dim} elements, got {value}")
    # Sizes out of a file are NumPy's unsigned numbers, which wrap.
    reach = [None if limit is None else int(limit) for limit in (window, chunk)]
    for name, limit in zip(("window", "chunk"), reach, strict=True):
        if limit is not None and limit < 1:
            raise ShapeError(f"[KVCache] expected a {name} of at least 1, got {limit}")
    return LayerShape(int(heads), int(dim), int(value), reach[0], bool(view), reach[1])


def owners_of(share: Mapping[int, int], shapes: Sequence[LayerShape]) -> list[int]:
    """For each layer the one whose keys it reads, mostly its own.

    Raises
    ------
    ShapeError
        A layer cannot read another's.
    """
    layers = len(shapes)
    owners = list(range(layers))
    for layer, owner in share.items():
        known = 0 <= layer < layers and 0 <= owner < layers
        fits = known and shapes[layer] == shapes[owner] and shapes[owner].kv_heads
        if not fits or owner in share:
            raise ShapeError(
                f"[KVCache] expected layer {layer} to share a layer of its shape that has keys of "
                f"its own, got {owner}"
            )
        owners[layer] = owner
    return owners


def block_of(shape: LayerShape, side: KVSide, dim: int) -> int:
    """The block that rows of a layer's keys or values, `dim` elements, are rotated in.

    >>> latent = LayerShape(1, 576, 512, None, view=True)
    >>> block_of(latent, KVSide("q4_0", rotate="auto"), 512)
    64
    """
    # Where values are what keys begin with, whole blocks of both.
    return side.rotation(math.gcd(shape.head_dim, shape.value_dim) if shape.view else dim)
