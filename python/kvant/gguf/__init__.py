"""GGUF files: open them without copying, refuse hostile ones, write them as a stream.

See docs/gguf.md for what is checked and why.
"""

from kvant.gguf.file import GGUFFile, Metadata, Tensors, from_buffer, open
from kvant.gguf.header import TensorInfo
from kvant.gguf.strings import StringArray
from kvant.gguf.types import TensorType
from kvant.gguf.write import TensorData, TensorSource, write

__all__ = [
    "GGUFFile",
    "Metadata",
    "StringArray",
    "TensorData",
    "TensorInfo",
    "TensorSource",
    "TensorType",
    "Tensors",
    "from_buffer",
    "open",
    "write",
]
