"""kvant: exact, fast block quantization for inference code.

Arrays in and out are NumPy; packed data are plain bytes plus a format and a shape. The bytes are
those of llama.cpp, and the same on every processor and for any number of threads.
"""

from __future__ import annotations

from kvant import _core, environment, isa
from kvant.errors import (
    CacheFullError,
    Error,
    FormatError,
    GGUFError,
    IsaError,
    ModelError,
    ShapeError,
    StateError,
)
from kvant.experts import matmul_experts, route
from kvant.formats import FormatInfo, format_info, formats
from kvant.kv import KVCache, KVPolicy, KVSide, attention, merge_lse
from kvant.networks import ffn, moe_ffn
from kvant.ops import activation_mul, embedding, rms_norm, rope, silu_mul, softmax
from kvant.packed import PackedTensor
from kvant.products import matmul, matmul_many
from kvant.qtensor import QTensor
from kvant.quant import QuantError, quant_error, quantize, validate
from kvant.transforms import hadamard

__all__ = [
    "CacheFullError",
    "Error",
    "FormatError",
    "FormatInfo",
    "GGUFError",
    "IsaError",
    "KVCache",
    "KVPolicy",
    "KVSide",
    "ModelError",
    "PackedTensor",
    "QTensor",
    "QuantError",
    "ShapeError",
    "StateError",
    "activation_mul",
    "attention",
    "embedding",
    "ffn",
    "format_info",
    "formats",
    "gguf",
    "hadamard",
    "isa",
    "matmul",
    "matmul_experts",
    "matmul_many",
    "merge_lse",
    "moe_ffn",
    "quant_error",
    "quantize",
    "reference",
    "rms_norm",
    "rope",
    "route",
    "set_threads",
    "silu_mul",
    "softmax",
    "threads",
    "validate",
]

__version__ = _core.version()

# What the environment asks for wrongly is an error at once, not at the first call.
if not environment.is_program():
    environment.check()


def threads() -> int:
    """Threads a call may use: physical cores of this process, `KVANT_THREADS`, or what was set."""
    return _core.threads()


def set_threads(n: int) -> None:
    """Set the number of threads of every later call; 0 for the default. Results do not change.

    Examples
    --------
    >>> import kvant
    >>> kvant.set_threads(1)
    >>> kvant.threads()
    1
    >>> kvant.set_threads(0)
    """
    _core.set_threads(n)


# Rooms that not every user needs are imported at their first use.
_ROOMS = ("bench", "convert", "gguf", "imatrix", "lab", "models", "plan", "recipes", "reference")


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        from importlib import import_module

        return import_module(f"kvant.{name}")
    raise AttributeError(f"module 'kvant' has no attribute {name!r}")
