"""ggml's attention over caches, prepared once and repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvant import FormatInfo
from kvant.bench.ggml import Ggml
from kvant.bench.ggml_graphs import Graph
from kvant.bench.memory import buffer

from .kv_caches import cycle

__all__ = ["Attention"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

_F32, _F16 = 0, 1
_DECLARED = """
struct ggml_tensor* ggml_flash_attn_ext(void* context, struct ggml_tensor* q, struct ggml_tensor* k,
                                        struct ggml_tensor* v, struct ggml_tensor* mask,
                                        float scale, float max_bias, float softcap);
"""


class Attention(Graph):
    """ggml_flash_attn_ext of the last tokens over the layers of a cache, at each call the next.

    Parameters
    ----------
    layers
        Keys and values of each layer, [kv_heads, tokens, row bytes]: each head's rows one after
        another, the layout that it reads fastest.
    q
        [T, heads, dim]. A single token sees all keys and has no mask; more have one of f16, with
        which ggml skips what a token does not see.

    Attributes
    ----------
    out : f32 [T, heads, dim]
    """

    def __init__(
        self, peer: Ggml, info: FormatInfo, layers: Sequence[tuple[U8, ...]], q: F32, threads: int
    ) -> None:
        super().__init__(peer, threads)
        peer.ffi.cdef(_DECLARED, override=True)
        queries, heads, dim = q.shape
        kv_heads, tokens, _ = layers[0][0].shape
        self._layers, self._turn = layers, cycle(len(layers))
        shape = (kv_heads, tokens, dim)
        self._sides = [self.tensor(info.ggml_type, shape, data) for data in layers[0]]
        asked = _copy(np.ascontiguousarray(q.swapaxes(0, 1)))
        asking = self.tensor(_F32, (heads, queries, dim), asked)
        mask = peer.ffi.NULL
        if queries > 1:
            mask = self.tensor(_F16, (1, queries, tokens), _copy(_causal(queries, tokens)))
        result = peer.lib.ggml_flash_attn_ext(
            self._context, asking, *self._sides, mask, dim**-0.5, 0.0, 0.0
        )
        self.out: F32 = buffer(4 * q.size).view(np.float32).reshape(q.shape)
        self.plan(self.place(result, self.out))

    def __call__(self) -> None:
        for tensor, data in zip(self._sides, self._layers[next(self._turn)], strict=True):
            tensor.data = self._peer.ffi.cast("void*", data.ctypes.data)
        super().__call__()


def _causal(queries: int, tokens: int) -> NDArray[np.float16]:
    """What is added to the scores of the last tokens: nothing, or minus infinity."""
    unseen = np.arange(tokens) > np.arange(tokens - queries, tokens)[:, None]
    return np.where(unseen, -np.inf, 0).astype(np.float16)


def _copy(array: NDArray[Any]) -> NDArray[Any]:
    """The array in huge pages."""
    made = buffer(array.nbytes).view(array.dtype).reshape(array.shape)
    made[:] = array
    return made
