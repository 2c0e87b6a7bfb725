"""ggml beside kvant: the copy in llama-cpp-python, called through cffi in this process.

It is optional: `ggml()` answers None where it is not installed, and its methods answer None for a
format that it does not know. ggml ends the process when it is asked for what it lacks, so every
method asks first.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Error
from ..formats import FormatInfo
from .memory import buffer

__all__ = ["Ggml", "Product", "ggml"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

# Of ggml.h, ggml-cpu.h and ggml-backend.h, under names of our own where they are no symbols.
_DECLARED = """
typedef void (*to_float)(const void*, float*, int64_t);
typedef void (*from_float)(const float*, void*, int64_t);
struct traits { const char* name; int64_t block; int64_t interleave; size_t bytes; bool quantized;
                to_float decode; from_float reference; };
struct cpu_traits { from_float encode; void* dot; int dot_type; int64_t rows; };
const struct traits* ggml_get_type_traits(int type);
const struct cpu_traits* ggml_get_type_traits_cpu(int type);
void ggml_cpu_init(void);
void ggml_quantize_init(int type);
size_t ggml_quantize_chunk(int type, const float* src, void* dst, int64_t start, int64_t rows,
                           int64_t cols, const float* importance);
const char* ggml_version(void);
void ggml_log_set(void (*log)(int, const char*, void*), void* data);

struct ggml_tensor { int type; void* buffer; int64_t ne[4]; size_t nb[4]; int op;
                     int32_t op_params[16]; int32_t flags; void* src[10]; void* view_src;
                     size_t view_offs; void* data; char name[64]; void* extra; char padding[8]; };
struct init_params { size_t size; void* memory; bool no_alloc; };
struct plan { size_t work_size; uint8_t* work; int threads; void* pool; void* stop; void* stop_data;
              bool reference; };
struct pool_params { bool cpus[512]; int threads; int priority; uint32_t poll; bool strict;
                     bool paused; };
void* ggml_init(struct init_params);
void ggml_free(void* context);
struct ggml_tensor* ggml_new_tensor_2d(void* context, int type, int64_t ne0, int64_t ne1);
struct ggml_tensor* ggml_mul_mat(void* context, struct ggml_tensor* a, struct ggml_tensor* b);
void* ggml_new_graph(void* context);
void ggml_build_forward_expand(void* graph, struct ggml_tensor* tensor);
struct pool_params ggml_threadpool_params_default(int threads);
void* ggml_threadpool_new(struct pool_params*);
void ggml_threadpool_free(void* pool);
struct plan ggml_graph_plan(const void* graph, int threads, void* pool);
int ggml_graph_compute(void* graph, struct plan*);

void* ggml_backend_cpu_reg(void);
void* ggml_backend_reg_dev_get(void* registry, size_t index);
void* ggml_backend_reg_get_proc_address(void* registry, const char* name);
typedef void** (*extra_buffer_types)(void* device);
const char* ggml_backend_buft_name(void* kind);
size_t ggml_backend_buft_get_alloc_size(void* kind, const struct ggml_tensor*);
void* ggml_backend_buft_alloc_buffer(void* kind, size_t size);
void* ggml_backend_buffer_get_base(void* buffer);
int ggml_backend_tensor_alloc(void* buffer, struct ggml_tensor*, void* address);
void ggml_backend_tensor_set(struct ggml_tensor*, const void* data, size_t offset, size_t size);
void ggml_backend_buffer_free(void* buffer);
"""
_CONTEXT_BYTES = 1 << 20
_HUGE = 2 << 20


class Ggml:
    """libggml-base and libggml-cpu."""

    def __init__(self, ffi: Any, folder: Path) -> None:
        self.ffi = ffi
        self.base = ffi.dlopen(str(_shared(folder, "ggml-base")))
        self.cpu = ffi.dlopen(str(_shared(folder, "ggml-cpu")))
        # It would write about every tensor that it lays out anew.
        self._silence = ffi.callback("void(int, const char*, void*)", lambda *_: None)
        self.silence()
        self.cpu.ggml_cpu_init()
        self.version: str = ffi.string(self.base.ggml_version()).decode()

    def silence(self) -> None:
        """Log nothing; others in this process may have set their own since."""
        self.base.ggml_log_set(self._silence, self.ffi.NULL)

    def knows(self, info: FormatInfo) -> bool:
        """Whether this build has the type; asked for one it lacks, ggml would end the process."""
        name = info.name[:-1] + "K" if info.name.endswith("_k") else info.name
        if info.block == 1:
            return True
        # The exported encoder of that name says so. What cannot be encoded has been there for long.
        return not info.can_encode or _has(self.base, self.ffi, f"quantize_{name}")

    def chunk(
        self, info: FormatInfo, x: F32, out: U8, importance: F32 | None
    ) -> Callable[[], int] | None:
        """ggml_quantize_chunk on x [rows, cols]: what llama-quantize calls."""
        if not self.knows(info):
            return None
        rows, cols = x.shape
        source, target = self.ffi.from_buffer("float[]", x), self.ffi.from_buffer(out)
        weights = self.ffi.NULL
        if importance is not None:
            weights = self.ffi.from_buffer("float[]", importance)
        self.base.ggml_quantize_init(info.ggml_type)
        quantize, kind = self.base.ggml_quantize_chunk, info.ggml_type
        return lambda: quantize(kind, source, target, 0, rows, cols, weights)

    def from_float(self, info: FormatInfo, x: F32, out: U8) -> Callable[[], None] | None:
        """The CPU backend's own conversion, meant for activations; it may search less."""
        if not self.knows(info):
            return None
        convert = self.cpu.ggml_get_type_traits_cpu(info.ggml_type).encode
        if convert == self.ffi.NULL:
            return None
        source, target = self.ffi.from_buffer("float[]", x), self.ffi.from_buffer(out)
        size = x.size
        return lambda: convert(source, target, size)

    def to_float(self, info: FormatInfo, data: U8, out: F32) -> Callable[[], None] | None:
        """ggml's decoder on the packed rows."""
        if not self.knows(info):
            return None
        convert = self.base.ggml_get_type_traits(info.ggml_type).decode
        if convert == self.ffi.NULL:
            return None
        source, target = self.ffi.from_buffer(data), self.ffi.from_buffer("float[]", out)
        size = out.size
        return lambda: convert(source, target, size)

    def product(
        self, info: FormatInfo, data: U8, x: F32, threads: int, *, repack: bool = False
    ) -> Product | None:
        """ggml_mul_mat of packed rows [n, row_bytes] and x [m, k].

        Parameters
        ----------
        repack
            Let the CPU backend lay the weights out anew, in a buffer of its own kind; None where
            it has no such layout for the format.
        """
        if not self.knows(info) or not self._multiplies(info):
            return None
        made = Product(self, info, data, x, threads)
        if repack and not made.repack(data):
            return None
        return made

    def _multiplies(self, info: FormatInfo) -> bool:
        dot: bool = self.cpu.ggml_get_type_traits_cpu(info.ggml_type).dot != self.ffi.NULL
        return dot

    def repacking(self) -> Any:
        """The kind of buffer that lays weights out anew, or None."""
        registry = self.cpu.ggml_backend_cpu_reg()
        name = b"ggml_backend_dev_get_extra_bufts"
        address = self.base.ggml_backend_reg_get_proc_address(registry, name)
        if address == self.ffi.NULL:
            return None
        device = self.base.ggml_backend_reg_dev_get(registry, 0)
        kinds = self.ffi.cast("extra_buffer_types", address)(device)
        index = 0
        while kinds != self.ffi.NULL and kinds[index] != self.ffi.NULL:
            if self.ffi.string(self.base.ggml_backend_buft_name(kinds[index])) == b"CPU_REPACK":
                return kinds[index]
            index += 1
        return None


class Product:
    """One prepared matrix product; calling it computes `out` [m, n]."""

    def __init__(self, peer: Ggml, info: FormatInfo, data: U8, x: F32, threads: int) -> None:
        ffi, base, cpu = peer.ffi, peer.base, peer.cpu
        n, (m, k) = data.shape[0], x.shape
        self._peer, self._buffer = peer, ffi.NULL
        self._context = base.ggml_init(
            {"size": _CONTEXT_BYTES, "memory": ffi.NULL, "no_alloc": True}
        )
        self._pool = ffi.NULL
        self.out: F32 = buffer(4 * m * n).view(np.float32).reshape(m, n)
        # The tensors only point here.
        self._kept = (data, x)
        self._weights = base.ggml_new_tensor_2d(self._context, info.ggml_type, k, n)
        inputs = base.ggml_new_tensor_2d(self._context, 0, k, m)
        result = base.ggml_mul_mat(self._context, self._weights, inputs)
        for tensor, array in ((self._weights, data), (inputs, x), (result, self.out)):
            tensor.data = ffi.cast("void*", array.ctypes.data)
        self._graph = base.ggml_new_graph(self._context)
        base.ggml_build_forward_expand(self._graph, result)
        params = ffi.new("struct pool_params*", base.ggml_threadpool_params_default(threads))
        self._pool = cpu.ggml_threadpool_new(params)
        self._threads = threads
        self._make_plan()

    def _make_plan(self) -> None:
        ffi, cpu = self._peer.ffi, self._peer.cpu
        planned = cpu.ggml_graph_plan(self._graph, self._threads, self._pool)
        self._plan = ffi.new("struct plan*", planned)
        self._work = buffer(max(1, self._plan.work_size))
        self._plan.work = ffi.cast("uint8_t*", self._work.ctypes.data)

    def repack(self, data: U8) -> bool:
        """Move the weights into a buffer that lays them out anew; False where there is none."""
        self._peer.silence()
        ffi, base, kind = self._peer.ffi, self._peer.base, self._peer.repacking()
        if kind is None:
            return False
        size = base.ggml_backend_buft_get_alloc_size(kind, self._weights)
        self._buffer = base.ggml_backend_buft_alloc_buffer(kind, size)
        if self._buffer == ffi.NULL:
            return False
        address = base.ggml_backend_buffer_get_base(self._buffer)
        # As much of it as can be in huge pages, like the memory of everybody else here.
        _advise(int(ffi.cast("uintptr_t", address)), size)
        self._weights.data = ffi.NULL
        base.ggml_backend_tensor_alloc(self._buffer, self._weights, address)
        if self._weights.extra == ffi.NULL:
            return False
        base.ggml_backend_tensor_set(
            self._weights, ffi.cast("void*", data.ctypes.data), 0, data.nbytes
        )
        self._make_plan()
        return True

    def __call__(self) -> None:
        status = self._peer.cpu.ggml_graph_compute(self._graph, self._plan)
        if status != 0:
            raise Error(f"[bench] expected ggml to compute, got status {status}")

    def close(self) -> None:
        """Give its memory and threads back; calling it afterwards is not allowed."""
        ffi, base, cpu = self._peer.ffi, self._peer.base, self._peer.cpu
        if self._pool != ffi.NULL:
            cpu.ggml_threadpool_free(self._pool)
        if self._buffer != ffi.NULL:
            base.ggml_backend_buffer_free(self._buffer)
        if self._context != ffi.NULL:
            base.ggml_free(self._context)
        self._pool = self._buffer = self._context = ffi.NULL

    def __del__(self) -> None:
        if hasattr(self, "_pool"):
            self.close()


@cache
def ggml() -> Ggml | None:
    """ggml of the installed llama-cpp-python, or None."""
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    try:
        ffi = import_module("cffi").FFI()
        ffi.cdef(_DECLARED)
        return Ggml(ffi, Path(spec.origin).parent / "lib")
    except (ImportError, OSError, AttributeError):
        return None


def _shared(folder: Path, name: str) -> Path:
    for pattern in (f"lib{name}.so", f"lib{name}.dylib", f"{name}.dll"):
        if (folder / pattern).exists():
            return folder / pattern
    raise OSError(f"no {name} in {folder}")


def _has(lib: Any, ffi: Any, symbol: str) -> bool:
    # A cdef may be repeated; the symbol is looked up when it is touched.
    ffi.cdef(
        f"size_t {symbol}(const float*, void*, int64_t, int64_t, const float*);", override=True
    )
    return hasattr(lib, symbol)


def _advise(address: int, size: int) -> None:
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    start = (address + _HUGE - 1) // _HUGE * _HUGE
    if advice is not None and address + size > start:
        end = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)
