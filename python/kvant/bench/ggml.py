"""ggml beside kvant: the copy in llama-cpp-python, called through cffi in this process.

It is optional: `ggml()` answers None where it is not installed, and its methods answer None for a
format that it does not know. ggml ends the process when it is asked for what it lacks, so every
method asks first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..formats import FormatInfo
from .ggml_graphs import Experts, Graph, Product

__all__ = ["Ggml", "ggml"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
G = TypeVar("G", bound=Graph)

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
typedef void (*logger)(int, const char*, void*);
void ggml_log_get(logger* log, void** data);
void ggml_log_set(logger log, void* data);

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
struct ggml_tensor* ggml_new_tensor_3d(void* context, int type, int64_t ne0, int64_t ne1,
                                       int64_t ne2);
struct ggml_tensor* ggml_view_2d(void* context, struct ggml_tensor* a, int64_t ne0, int64_t ne1,
                                 size_t nb1, size_t offset);
struct ggml_tensor* ggml_mul_mat(void* context, struct ggml_tensor* a, struct ggml_tensor* b);
struct ggml_tensor* ggml_mul_mat_id(void* context, struct ggml_tensor* experts,
                                    struct ggml_tensor* b, struct ggml_tensor* ids);
struct ggml_tensor* ggml_swiglu_split(void* context, struct ggml_tensor* a, struct ggml_tensor* b);
struct ggml_tensor* ggml_mul(void* context, struct ggml_tensor* a, struct ggml_tensor* b);
struct ggml_tensor* ggml_add(void* context, struct ggml_tensor* a, struct ggml_tensor* b);
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


class Ggml:
    """libggml-cpu, and libggml-base through it.

    Opened by its own name, libggml-base could be a second copy beside the one that libggml-cpu
    works with: packages hold copies under several names where a system would have links.
    """

    def __init__(self, ffi: Any, folder: Path) -> None:
        self.ffi = ffi
        self.lib = ffi.dlopen(str(_shared(folder, "ggml-cpu")))
        self._silence = ffi.callback("logger", lambda *_: None)
        with self.quiet():
            self.lib.ggml_cpu_init()
        self.version: str = ffi.string(self.lib.ggml_version()).decode()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Log nothing meanwhile: ggml would write about every tensor that it lays out anew.

        The log is one for the process; what others have set is put back.
        """
        log, data = self.ffi.new("logger*"), self.ffi.new("void**")
        self.lib.ggml_log_get(log, data)
        self.lib.ggml_log_set(self._silence, self.ffi.NULL)
        try:
            yield
        finally:
            self.lib.ggml_log_set(log[0], data[0])

    def knows(self, info: FormatInfo) -> bool:
        """Whether this build has the type; asked for one it lacks, ggml would end the process."""
        name = info.name[:-1] + "K" if info.name.endswith("_k") else info.name
        if info.block == 1:
            return True
        # The exported encoder of that name says so. What cannot be encoded has been there for long.
        return not info.can_encode or _has(self.lib, self.ffi, f"quantize_{name}")

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
        self.lib.ggml_quantize_init(info.ggml_type)
        quantize, kind = self.lib.ggml_quantize_chunk, info.ggml_type
        return lambda: quantize(kind, source, target, 0, rows, cols, weights)

    def from_float(self, info: FormatInfo, x: F32, out: U8) -> Callable[[], None] | None:
        """The CPU backend's own conversion, meant for activations; it may search less."""
        if not self.knows(info):
            return None
        convert = self.lib.ggml_get_type_traits_cpu(info.ggml_type).encode
        if convert == self.ffi.NULL:
            return None
        source, target = self.ffi.from_buffer("float[]", x), self.ffi.from_buffer(out)
        size = x.size
        return lambda: convert(source, target, size)

    def to_float(self, info: FormatInfo, data: U8, out: F32) -> Callable[[], None] | None:
        """ggml's decoder on the packed rows."""
        if not self.knows(info):
            return None
        convert = self.lib.ggml_get_type_traits(info.ggml_type).decode
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
        return self._prepared(lambda: Product(self, info, data, x, threads), repack)

    def experts(
        self,
        info: FormatInfo,
        stacks: Sequence[U8],
        x: F32,
        scale: F32,
        threads: int,
        *,
        repack: bool = False,
    ) -> Experts | None:
        """A gated network with experts: see `Experts`; `repack` as for `product`."""
        if not self.knows(info) or not self._multiplies(info):
            return None
        return self._prepared(lambda: Experts(self, info, stacks, x, scale, threads), repack)

    def _prepared(self, make: Callable[[], G], repack: bool) -> G | None:
        with self.quiet():
            made = make()
            return None if repack and not made.repack(made.weights) else made

    def _multiplies(self, info: FormatInfo) -> bool:
        dot: bool = self.lib.ggml_get_type_traits_cpu(info.ggml_type).dot != self.ffi.NULL
        return dot

    def repacking(self) -> Any:
        """The kind of buffer that lays weights out anew, or None."""
        registry = self.lib.ggml_backend_cpu_reg()
        name = b"ggml_backend_dev_get_extra_bufts"
        address = self.lib.ggml_backend_reg_get_proc_address(registry, name)
        if address == self.ffi.NULL:
            return None
        device = self.lib.ggml_backend_reg_dev_get(registry, 0)
        kinds = self.ffi.cast("extra_buffer_types", address)(device)
        index = 0
        while kinds != self.ffi.NULL and kinds[index] != self.ffi.NULL:
            if self.ffi.string(self.lib.ggml_backend_buft_name(kinds[index])) == b"CPU_REPACK":
                return kinds[index]
            index += 1
        return None


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
