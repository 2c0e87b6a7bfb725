"""Computations that ggml prepares once and repeats: a matrix product, a network with experts."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Error
from ..formats import FormatInfo
from .memory import buffer

if TYPE_CHECKING:
    from .ggml import Ggml

__all__ = ["Experts", "Graph", "Product"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

_CONTEXT_BYTES = 1 << 20
_HUGE = 2 << 20
_F32, _I32 = 0, 26


class Graph:
    """A context, tensors in memory of ours, threads; calling it computes."""

    def __init__(self, peer: Ggml, threads: int) -> None:
        self._peer, self._threads = peer, threads
        self._context = self._pool = peer.ffi.NULL
        self._buffers: list[Any] = []
        # Tensors of weights, and the bytes they were given.
        self.weights: list[tuple[Any, U8]] = []
        # The tensors only point here.
        self._kept: list[NDArray[Any]] = []
        null = peer.ffi.NULL
        self._context = peer.lib.ggml_init(
            {"size": _CONTEXT_BYTES, "memory": null, "no_alloc": True}
        )

    def tensor(self, kind: int, shape: Sequence[int], array: NDArray[Any]) -> Any:
        """A tensor of up to three axes, the last of `shape` the fastest, in memory of an array."""
        sizes = (*reversed(shape), 1, 1)[:3]
        made = self._peer.lib.ggml_new_tensor_3d(self._context, kind, *sizes)
        return self.place(made, array)

    def place(self, tensor: Any, array: NDArray[Any]) -> Any:
        """Let a tensor point to an array."""
        self._kept.append(array)
        tensor.data = self._peer.ffi.cast("void*", array.ctypes.data)
        return tensor

    def result(self, tensor: Any) -> Any:
        """Give memory to what an operation of f32 computes."""
        shape = [int(tensor.ne[axis]) for axis in range(4)]
        return self.place(tensor, buffer(4 * int(np.prod(shape))))

    def plan(self, result: Any) -> None:
        """Say what is computed; all before it is known then."""
        ffi, lib = self._peer.ffi, self._peer.lib
        self._graph = lib.ggml_new_graph(self._context)
        lib.ggml_build_forward_expand(self._graph, result)
        params = ffi.new("struct pool_params*", lib.ggml_threadpool_params_default(self._threads))
        self._pool = lib.ggml_threadpool_new(params)
        self._make_plan()

    def _make_plan(self) -> None:
        ffi, lib = self._peer.ffi, self._peer.lib
        planned = lib.ggml_graph_plan(self._graph, self._threads, self._pool)
        self._plan = ffi.new("struct plan*", planned)
        self._work = buffer(max(1, self._plan.work_size))
        self._plan.work = ffi.cast("uint8_t*", self._work.ctypes.data)

    def repack(self, weights: Sequence[tuple[Any, U8]]) -> bool:
        """Move weights into buffers that lay them out anew; False where there is no such layout."""
        kind = self._peer.repacking()
        if kind is None or not all(self._moved(kind, tensor, data) for tensor, data in weights):
            return False
        self._make_plan()
        return True

    def _moved(self, kind: Any, tensor: Any, data: U8) -> bool:
        ffi, lib = self._peer.ffi, self._peer.lib
        size = lib.ggml_backend_buft_get_alloc_size(kind, tensor)
        made = lib.ggml_backend_buft_alloc_buffer(kind, size)
        if made == ffi.NULL:
            return False
        self._buffers.append(made)
        address = lib.ggml_backend_buffer_get_base(made)
        # As much of it as can be in huge pages, like the memory of everybody else here.
        _advise(int(ffi.cast("uintptr_t", address)), size)
        tensor.data = ffi.NULL
        lib.ggml_backend_tensor_alloc(made, tensor, address)
        if tensor.extra == ffi.NULL:
            return False
        lib.ggml_backend_tensor_set(tensor, ffi.cast("void*", data.ctypes.data), 0, data.nbytes)
        return True

    def __call__(self) -> None:
        status = self._peer.lib.ggml_graph_compute(self._graph, self._plan)
        if status != 0:
            raise Error(f"[bench] expected ggml to compute, got status {status}")

    def close(self) -> None:
        """Give its memory and threads back; calling it afterwards is not allowed."""
        ffi, lib = self._peer.ffi, self._peer.lib
        if self._pool != ffi.NULL:
            lib.ggml_threadpool_free(self._pool)
        for made in self._buffers:
            lib.ggml_backend_buffer_free(made)
        if self._context != ffi.NULL:
            lib.ggml_free(self._context)
        self._pool = self._context = ffi.NULL
        self._buffers = []

    def __del__(self) -> None:
        if hasattr(self, "_buffers"):
            self.close()


class Product(Graph):
    """ggml_mul_mat of packed rows [n, row_bytes] and x [m, k]; `out` is [m, n]."""

    def __init__(self, peer: Ggml, info: FormatInfo, data: U8, x: F32, threads: int) -> None:
        super().__init__(peer, threads)
        n, (m, k) = data.shape[0], x.shape
        self.out: F32 = buffer(4 * m * n).view(np.float32).reshape(m, n)
        weights = self.tensor(info.ggml_type, (n, k), data)
        inputs = self.tensor(_F32, (m, k), x)
        result = peer.lib.ggml_mul_mat(self._context, weights, inputs)
        self.weights = [(weights, data)]
        self.plan(self.place(result, self.out))


class Experts(Graph):
    """The feed-forward network of chosen experts, with the operations that llama.cpp builds.

    Parameters
    ----------
    stacks
        Packed gate [experts, f, row_bytes], up and down [experts, k, row_bytes].
    x
        [m, k].
    scale
        [m, top], the weights of the chosen experts; which they are stands in `ids` [m, top], to
        be filled before a call.
    """

    def __init__(
        self, peer: Ggml, info: FormatInfo, stacks: Sequence[U8], x: F32, scale: F32, threads: int
    ) -> None:
        super().__init__(peer, threads)
        lib, context = peer.lib, self._context
        (m, k), top, (experts, f, _) = x.shape, scale.shape[1], stacks[0].shape
        self.ids: NDArray[np.int32] = np.zeros((m, top), np.int32)
        shapes = ((experts, f, k), (experts, f, k), (experts, k, f))
        tensors = [
            self.tensor(info.ggml_type, shape, data)
            for shape, data in zip(shapes, stacks, strict=True)
        ]
        self.weights = list(zip(tensors, stacks, strict=True))
        gate, up, down = tensors
        ids = self.tensor(_I32, (m, top), self.ids)
        inputs = self.tensor(_F32, (m, 1, k), x)
        opened = [self.result(lib.ggml_mul_mat_id(context, w, inputs, ids)) for w in (gate, up)]
        hidden = self.result(lib.ggml_swiglu_split(context, *opened))
        each = self.result(lib.ggml_mul_mat_id(context, down, hidden, ids))
        scaled = self.result(lib.ggml_mul(context, each, self.tensor(_F32, (m, top, 1), scale)))
        stride = 4 * k
        slots = [
            lib.ggml_view_2d(context, scaled, k, m, top * stride, slot * stride)
            for slot in range(top)
        ]
        total = slots[0] if top > 1 else scaled
        for slot in slots[1:]:
            total = self.result(lib.ggml_add(context, total, slot))
        self.out: F32 = buffer(4 * m * k).view(np.float32).reshape(m, k)
        self.plan(self.place(total, self.out))


def _advise(address: int, size: int) -> None:
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    start = (address + _HUGE - 1) // _HUGE * _HUGE
    if advice is not None and address + size > start:
        end = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)
