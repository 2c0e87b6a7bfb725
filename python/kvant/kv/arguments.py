"""What calls of caches and their sequences are given, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvant.arrays import FLOAT_TYPES, bits, checked_out, empty, f32_array, f32_vector, float_type
from kvant.errors import ShapeError

if TYPE_CHECKING:
    from kvant.kv.cache import KVCache

__all__ = ["GivenQuery", "GivenRows", "check_values", "own_place", "query_of", "rows_of"]

Array = NDArray[np.float32]
_F32 = np.dtype(np.float32)


class GivenRows(NamedTuple):
    """Keys and values of new tokens, their bits and numbers of their types."""

    place: int
    k: NDArray[Any]
    k_type: int
    v: NDArray[Any] | None
    v_type: int


class GivenQuery(NamedTuple):
    """Queries, and arrays for results."""

    place: int
    q: Array
    scale: float
    sinks: Array | None
    out: Array
    sums: Array | None

    @property
    def result(self) -> Any:
        """What the caller gets."""
        return self.out if self.sums is None else (self.out, self.sums)


def own_place(function: str, cache: KVCache, layer: int) -> int:
    """The place of a layer that has keys of its own.

    Raises
    ------
    ShapeError
        There is no such layer, or it shares another's keys.
    """
    place, owner = cache.place(layer), cache.owners[layer]
    if owner != layer:
        raise ShapeError(
            f"[{function}] expected a layer with keys of its own, got {layer}, which shares "
            f"those of {owner}"
        )
    return place


def check_values(function: str, cache: KVCache, layer: int, v: Any) -> bool:
    """Whether the layer has values of its own, which are given then and only then.

    Raises
    ------
    ShapeError
        They are missing, or are given though they are a view of keys.
    """
    view = cache.shapes[layer].view
    if view == (v is None):
        return not view
    how = "no values, which are a view of the keys" if view else "values"
    raise ShapeError(f"[{function}] expected {how} in layer {layer}, got {'some' if view else v}")


def rows_of(function: str, cache: KVCache, layer: int, k: Any, v: Any) -> GivenRows:
    """Keys and values for a layer.

    Raises
    ------
    ShapeError
        They do not fit it.
    """
    place, shape = own_place(function, cache, layer), cache.shapes[layer]
    k, k_type = _heads(function, "keys", k, shape.kv_heads, shape.head_dim)
    v_type = 0
    if check_values(function, cache, layer, v):
        v, v_type = _heads(function, "values", v, shape.kv_heads, shape.value_dim)
        if len(v) != len(k):
            raise ShapeError(f"[{function}] expected {len(k)} values as of keys, got {len(v)}")
    return GivenRows(place, k, k_type, v, v_type)


def query_of(
    function: str,
    cache: KVCache,
    layer: int,
    q: Any,
    scale: float | None,
    causal: bool,
    lse: bool,
    out: Array | None,
    sinks: Array | None,
) -> GivenQuery:
    """Queries of a layer; arguments are those of `KVSequence.attend`.

    Raises
    ------
    ShapeError
        They do not fit it.
    """
    place, shape = cache.place(layer), cache.shapes[layer]
    q = f32_array(function, "q", q)
    if q.ndim != 3 or not q.shape[1] or q.shape[1] % shape.kv_heads or q.shape[2] != shape.head_dim:
        raise ShapeError(
            f"[{function}] expected q [T, a multiple of {shape.kv_heads}, {shape.head_dim}], "
            f"got {q.shape}"
        )
    if not causal and not shape.sees_all:
        raise ShapeError(
            f"[{function}] expected causal attention in a layer with a window or chunks"
        )
    if sinks is not None:
        sinks = f32_vector(function, "sinks", sinks, q.shape[1])
    wanted = (*q.shape[:2], shape.value_dim)
    if out is None:
        out = empty(wanted, _F32)
    else:
        checked_out(function, out, wanted, _F32)
    sums = np.empty(q.shape[:2], np.float32) if lse else None
    factor = shape.head_dim**-0.5 if scale is None else scale
    return GivenQuery(place, q, factor, sinks, out, sums)


def _heads(function: str, name: str, x: Any, heads: int, dim: int) -> tuple[NDArray[Any], int]:
    array = np.asarray(x)
    kind = float_type(array.dtype)
    if kind is None:
        raise ShapeError(f"[{function}] expected {name} f32, f16 or bf16, got {array.dtype}")
    if array.ndim != 3 or array.shape[1:] != (heads, dim):
        raise ShapeError(f"[{function}] expected {name} [T, {heads}, {dim}], got {array.shape}")
    if (
        array.strides[2] != array.itemsize
        or any(s % array.itemsize for s in array.strides)
        or not array.flags.aligned
    ):
        array = array.copy()
    return bits(array), FLOAT_TYPES.index(kind)
