"""The other implementations, each of which may be absent: ggml, libgguf and gguf-py.

A peer that is not installed, or does not know a format, answers None and leaves its column empty.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module, metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvant import FormatInfo
from kvant.bench.ggml import Ggml, ggml

__all__ = ["Ggml", "Libgguf", "ggml", "gguf_py_decoder", "libgguf", "versions"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


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
