"""Bytes of keys and values and of recurrent states, exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from kvant.errors import FormatError
from kvant.formats import format_info
from kvant.gguf.header import padded
from kvant.plan.layers import Layer

__all__ = ["cells", "kv_bytes", "model_cache_bytes", "state_bytes"]

_PAD = 256
# Of `kvant.models`: tokens of a page, and of a batch.
_PAGE, _BATCH = 64, 512
_F32 = 4


def cells(layer: Layer, capacity: int, batch: int | None = None) -> int:
    """Tokens that a layer has room for, of one sequence.

    Parameters
    ----------
    layer : Layer
    capacity : int
        Tokens of context.
    batch : int, optional
        Round as llama.cpp does with micro-batches of so many tokens: a whole batch is written
        before the window moves on, and sizes are multiples of 256.

    >>> cells(Layer("sliding", 1, 64, 64, window=128), 4096)
    128
    >>> cells(Layer("sliding", 1, 64, 64, window=128), 4096, batch=512)
    768
    """
    if layer.kind in ("shared", "recurrent"):
        return 0
    wanted = capacity
    if layer.kind in ("sliding", "chunked"):
        wanted = min(capacity, layer.window + (batch or 0))
    return wanted if batch is None else padded(wanted, _PAD)


def kv_bytes(
    layers: Iterable[Layer],
    capacity: int,
    sequences: int = 1,
    k: str = "f16",
    v: str = "f16",
    batch: int | None = None,
) -> int:
    """Bytes of all keys and values.

    Parameters
    ----------
    layers : of a model
    capacity : int
        Tokens of context for each sequence.
    sequences : int
        Each has a cache of its own.
    k, v : str
        Formats. A head's key and value are rows, so they must be whole blocks.
    batch : int, optional
        See `cells`.

    Raises
    ------
    FormatError
        There is no such format, or a row is not a whole number of its blocks.

    Examples
    --------
    >>> from kvant import plan
    >>> layers = plan.read("Qwen3.5 27B").layers
    >>> plan.kv_bytes(layers, 1), plan.kv_bytes(layers, 32768, k="q8_0", v="q4_0") >> 20
    (65536, 832)
    """
    total = 0
    for layer, count in Counter(layers).items():
        room = cells(layer, capacity, batch)
        if room:
            row = _row(k, layer.key) + _row(v, layer.value)
            total += count * room * layer.heads * row
    return sequences * total


def model_cache_bytes(layers: Iterable[Layer], tokens: int) -> int:
    """Bytes of f16 pages that `kvant.models` holds after a prompt of so many tokens.

    Pages are whole, and values padded to sixteen. Layers with a window let go of what no token of
    the last batch, and of a page before it, has seen.

    >>> model_cache_bytes([Layer("full", 2, 64, 64), Layer("sliding", 2, 64, 64, 128)], 8192)
    4554752
    """
    before = (tokens - 1) // _BATCH * _BATCH
    total = 0
    for layer in layers:
        pages = -(-tokens // _PAGE)
        if layer.window:
            pages -= max(before - layer.window - _PAGE, 0) // _PAGE
        total += 2 * pages * _PAGE * layer.heads * (layer.key + padded(layer.value, 16))
    return total


def state_bytes(layers: Iterable[Layer], sequences: int = 1) -> int:
    """Bytes of all recurrent states, which are f32.

    >>> state_bytes([Layer("recurrent", state=100)] * 2, sequences=3)
    2400
    """
    return sequences * sum(_F32 * layer.state for layer in layers)


def _row(format: str, elements: int) -> int:
    info = format_info(format)
    if elements % info.block:
        raise FormatError(
            f"[plan] expected heads of a multiple of {info.block} elements ({format}), "
            f"got {elements}"
        )
    return info.row_bytes(elements)
