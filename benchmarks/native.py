"""kvant through its C ABI: the same kind of call, through the same cffi, as ggml gets."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvant
from kvant import _core

__all__ = ["Library", "library"]

_HEADER = Path(__file__).parent.parent / "csrc" / "capi" / "kvant.h"


class Library:
    """libkvant beside the extension. It is the copy the extension uses, so ISAs are shared."""

    def __init__(self, ffi: Any, path: Path) -> None:
        self.ffi = ffi
        self.lib = ffi.dlopen(str(path))

    def encoder(
        self,
        format: str,
        x: NDArray[np.float32],
        out: NDArray[np.uint8],
        importance: NDArray[np.float32] | None,
        threads: int = 1,
    ) -> Callable[[], int]:
        """A call that encodes x [rows, cols] into out."""
        number, (rows, cols) = kvant.format_info(format).number, x.shape
        source, target = self.ffi.from_buffer("float[]", x), self.ffi.from_buffer("uint8_t[]", out)
        weights = self.ffi.NULL
        if importance is not None:
            weights = self.ffi.from_buffer("float[]", importance)
        encode, null, nbytes = self.lib.kvant_encode, self.ffi.NULL, out.nbytes

        def call() -> int:
            code: int = encode(
                number, source, 0, rows, cols, cols, weights, rows, target, nbytes, threads, null
            )
            return code

        return self._tried(call)

    def decoder(
        self,
        format: str,
        data: NDArray[np.uint8],
        out: NDArray[np.float32],
        threads: int = 1,
    ) -> Callable[[], int]:
        """A call that decodes data [rows, row_bytes] into out [rows, cols]."""
        number, (rows, cols) = kvant.format_info(format).number, out.shape
        source, target = (
            self.ffi.from_buffer("uint8_t[]", data),
            self.ffi.from_buffer("float[]", out),
        )
        decode, null, stride = self.lib.kvant_decode, self.ffi.NULL, data.shape[1]

        def call() -> int:
            code: int = decode(number, source, stride, rows, null, rows, cols, 0, target, threads)
            return code

        return self._tried(call)

    def _tried(self, call: Callable[[], int]) -> Callable[[], int]:
        """The call, after it has succeeded once: a refused one would be very fast."""
        if call() != 0:
            raise kvant.Error(self.ffi.string(self.lib.kvant_error_text()).decode())
        return call


@cache
def library() -> Library | None:
    """The C ABI; None without cffi or where the shared library has another name."""
    try:
        ffi = import_module("cffi").FFI()
    except ImportError:
        return None
    found = sorted(Path(_core.__file__).parent.glob("libkvant.*"))
    if not found:
        return None
    text = _HEADER.read_text(encoding="utf-8")
    ffi.cdef(text.split("/* cffi:begin */")[1].split("/* cffi:end */")[0])
    return Library(ffi, found[0])
