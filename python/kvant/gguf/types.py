"""What the type numbers in a GGUF file mean: values of metadata and elements of tensors.

Pure tables. Nothing here reads a file. Quantized and floating formats come from `kvant.formats`;
the plain integer types and f64 are added here because they are stored but never quantized.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from kvant.formats import formats

__all__ = [
    "ARRAY",
    "BOOL",
    "SCALARS",
    "STRING",
    "TensorType",
    "removed_type",
    "tensor_type",
    "tensor_type_named",
    "value_type_name",
]

BOOL = 7
STRING = 8
ARRAY = 9

SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
"""Numeric value types: number in the file -> little-endian dtype."""

_PLAIN: dict[int, tuple[str, np.dtype[Any]]] = {
    24: ("i8", np.dtype("<i1")),
    25: ("i16", np.dtype("<i2")),
    26: ("i32", np.dtype("<i4")),
    27: ("i64", np.dtype("<i8")),
    28: ("f64", np.dtype("<f8")),
}

_REMOVED = {
    4: "q4_2",
    5: "q4_3",
    31: "q4_0_4_4",
    32: "q4_0_4_8",
    33: "q4_0_8_8",
    36: "iq4_nl_4_4",
    37: "iq4_nl_4_8",
    38: "iq4_nl_8_8",
}


@dataclass(frozen=True)
class TensorType:
    """One element type of tensors: `block` elements are stored in `block_bytes` bytes."""

    name: str
    number: int
    block: int
    block_bytes: int
    dtype: np.dtype[Any] | None
    """dtype of the plain types that are read as `ndarray`; None for those read as `QTensor`."""

    def nbytes(self, elements: int) -> int:
        """Bytes of `elements` elements; the caller has checked that they fill whole blocks."""
        return elements // self.block * self.block_bytes


@cache
def _by_number() -> dict[int, TensorType]:
    table = {
        f.ggml_type: TensorType(f.name, f.ggml_type, f.block, f.block_bytes, None)
        for f in formats()
    }
    for number, (name, dtype) in _PLAIN.items():
        table[number] = TensorType(name, number, 1, dtype.itemsize, dtype)
    return table


@cache
def _by_name() -> dict[str, TensorType]:
    return {t.name: t for t in _by_number().values()}


def tensor_type(number: int) -> TensorType | None:
    """Return the tensor type with this number, or None if kvant knows none."""
    return _by_number().get(number)


def tensor_type_named(name: str) -> TensorType | None:
    """Return the tensor type called `name` ("q4_k", "f32", "i32" ...), or None."""
    return _by_name().get(name)


def removed_type(number: int) -> str | None:
    """Return the name of a type that once had this number and no longer exists, or None."""
    return _REMOVED.get(number)


def value_type_name(number: int) -> str:
    """Return a readable name of a metadata value type, for messages."""
    if number in SCALARS:
        return str(SCALARS[number].name)
    return {BOOL: "bool", STRING: "string", ARRAY: "array"}.get(number, f"type {number}")
