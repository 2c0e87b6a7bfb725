"""The other implementations, each of which may be absent: ggml, libgguf and gguf-py.

ggml is the one in llama-cpp-python, called through cffi without importing that package. A peer
that is not installed, or does not know a format, answers None and leaves its column empty.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvant import FormatInfo

__all__ = ["Ggml", "Libgguf", "ggml", "gguf_py_decoder", "libgguf", "versions"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

_DECLARED = """
typedef void (*to_float)(const void*, float*, int64_t);
typedef void (*from_float)(const float*, void*, int64_t);
struct traits { const char* name; int64_t block; int64_t interleave; size_t bytes; bool quantized;
                to_float decode; from_float reference; };
struct cpu_traits { from_float encode; };
const struct traits* ggml_get_type_traits(int type);
const struct cpu_traits* ggml_get_type_traits_cpu(int type);
void ggml_cpu_init(void);
void ggml_quantize_init(int type);
size_t ggml_quantize_chunk(int type, const float* src, void* dst, int64_t start, int64_t rows,
                           int64_t cols, const float* importance);
const char* ggml_version(void);
"""


class Ggml:
    """libggml-base and libggml-cpu."""

    def __init__(self, ffi: Any, folder: Path) -> None:
        self.ffi = ffi
        self.base = ffi.dlopen(str(_shared(folder, "ggml-base")))
        self.cpu = ffi.dlopen(str(_shared(folder, "ggml-cpu")))
        self.cpu.ggml_cpu_init()
        self.version: str = ffi.string(self.base.ggml_version()).decode()

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


class Libgguf:
    """The libgguf package: a scalar build of ggml's functions."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def _type(self, info: FormatInfo, cols: int) -> int | None:
        known = self.module.row_size(info.ggml_type, cols) == info.row_bytes(cols)
        return info.ggml_type if known else None

    def encoder(
        self, info: FormatInfo, x: F32, out: U8, importance: F32 | None
    ) -> Callable[[], int] | None:
        """A call that encodes x [rows, cols] into out."""
        rows, cols = x.shape
        kind = self._type(info, cols)
        if kind is None:
            return None
        quantize = self.module.quantize_rows_into_raw
        return lambda: quantize(kind, x, out, rows, cols, importance)

    def decoder(self, info: FormatInfo, data: U8, out: F32) -> Callable[[], int] | None:
        """A call that decodes data [rows, row_bytes] into out [rows, cols]."""
        rows, cols = out.shape
        kind = self._type(info, cols)
        if kind is None or info.block == 1:
            return None
        dequantize = self.module.dequantize_rows_into_raw
        return lambda: dequantize(kind, data, out, rows, cols)


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


@cache
def libgguf() -> Libgguf | None:
    """The installed libgguf, or None."""
    try:
        return Libgguf(import_module("libgguf"))
    except ImportError:
        return None


def gguf_py_decoder(info: FormatInfo, data: U8) -> Callable[[], F32] | None:
    """gguf-py's NumPy decoder on packed rows; None where it has none.

    f32 is left out: gguf-py returns a view of the bytes and moves nothing.
    """
    try:
        quants = import_module("gguf.quants")
    except ImportError:
        return None
    kind = quants.GGMLQuantizationType.__members__.get(info.name.upper())
    if kind is None or kind.value != info.ggml_type or info.name == "f32":
        return None

    def decode() -> F32:
        result: F32 = quants.dequantize(data, kind)
        return result

    try:
        decode()
    except NotImplementedError:
        return None
    return decode


def versions() -> dict[str, str]:
    """Versions of the peers; `absent` for those that are not installed."""
    found = {}
    for label, package in (
        ("llama-cpp-python", "llama_cpp_python"),
        ("gguf-py", "gguf"),
        ("libgguf", "libgguf"),
    ):
        try:
            found[label] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[label] = "absent"
    peer = ggml()
    found["ggml"] = peer.version if peer else "absent"
    return found


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
