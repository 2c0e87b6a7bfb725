"""The header of a GGUF file: checked field by field, never believed.

`parse_header` refuses everything that docs/gguf.md lists before memory is set aside for it.
Memory used is bounded by the limits below and by the file itself, whatever the header claims.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvant.gguf.cursor import Cursor, refusal, shown
from kvant.gguf.strings import StringArray, Text
from kvant.gguf.types import (
    ARRAY,
    BOOL,
    SCALARS,
    STRING,
    TensorType,
    removed_type,
    tensor_type,
    value_type_name,
)

__all__ = [
    "ALIGNMENT_KEY",
    "DEFAULT_ALIGNMENT",
    "MAX_DIMS",
    "MAX_KEYS",
    "MAX_KEY_BYTES",
    "MAX_NAME_BYTES",
    "MAX_TENSORS",
    "Header",
    "TensorInfo",
    "is_alignment",
    "padded",
    "parse_header",
]

ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 21  # one huge page
MAX_DIMS = 4
MAX_NAME_BYTES = 63  # ggml keeps names in 64 bytes with a final NUL
MAX_KEY_BYTES = 1024
MAX_KEYS = 1 << 14
MAX_TENSORS = 100_000
MAX_ARRAY = 1 << 30  # elements, as in ggml
MAX_BYTES = (1 << 63) - 1

# The smallest encodings: a key of one letter with a one-byte value; a name of one letter without
# dimensions. They bound the counts by the size of the file.
_MIN_PAIR = 8 + 1 + 4 + 1
_MIN_TENSOR = 8 + 1 + 4 + 4 + 8


class TensorInfo(NamedTuple):
    """One tensor of the header; `start` counts from the beginning of the file."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """A header that has passed every check."""

    version: int
    alignment: int
    metadata: dict[str, Any]
    tensors: list[TensorInfo]


def padded(size: int, alignment: int) -> int:
    """Round `size` up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


def is_alignment(value: int) -> bool:
    """Tell whether `value` may be an alignment: a power of two from 8 to 2 MiB."""
    return 8 <= value <= MAX_ALIGNMENT and value & (value - 1) == 0


def parse_header(
    data: NDArray[np.uint8], release: Callable[[int, int], None] | None = None
) -> Header:
    """Check the header of a GGUF file and return what it says.

    Parameters
    ----------
    data
        uint8 [file bytes], the whole file.
    release
        See `Cursor`.

    Raises
    ------
    GGUFError
        The file breaks a rule; the message names the field and the byte offset.
    """
    cursor = Cursor(data, release)
    version = _magic_and_version(cursor)
    n_tensors, n_pairs = _counts(cursor)
    metadata: dict[str, Any] = {}
    alignment = DEFAULT_ALIGNMENT
    for i in range(n_pairs):
        at = cursor.at
        key = cursor.name(MAX_KEY_BYTES, "key", i)
        if key in metadata:
            raise refusal("key", i, at, "a new key", f"{shown(key)} again")
        at = cursor.at
        metadata[key] = _value(cursor, key)
        if key == ALIGNMENT_KEY:
            alignment = _alignment(metadata[key], at)
    tensors = _tensors(cursor, n_tensors, alignment)
    return Header(version, alignment, metadata, tensors)


def _magic_and_version(cursor: Cursor) -> int:
    cursor.need(4, "the magic")
    magic = bytes(cursor.view[:4])
    if magic != b"GGUF":
        raise refusal("the magic", None, 0, "'GGUF'", ascii(magic))
    cursor.at = 4
    version = cursor.u32("the version")
    if version != 0 and version & 0xFFFF == 0:
        got = f"a big-endian file (version bytes swapped: {version:#010x})"
        raise refusal("the version", None, 4, "a little-endian file", got)
    if version not in (2, 3):
        raise refusal("the version", None, 4, "2 or 3", str(version))
    return version


def _counts(cursor: Cursor) -> tuple[int, int]:
    at = cursor.at
    n_tensors = cursor.u64("the number of tensors")
    n_pairs = cursor.u64("the number of keys")
    left = cursor.size - cursor.at
    most = min(MAX_TENSORS, left // _MIN_TENSOR)
    if n_tensors > most:
        raise refusal("the number of tensors", None, at, f"at most {most}", str(n_tensors))
    most = min(MAX_KEYS, (left - n_tensors * _MIN_TENSOR) // _MIN_PAIR)
    if n_pairs > most:
        raise refusal("the number of keys", None, at + 8, f"at most {most}", str(n_pairs))
    return n_tensors, n_pairs


def _value(cursor: Cursor, key: str) -> Any:
    at = cursor.at
    kind = cursor.u32("the type of key", key)
    if kind == ARRAY:
        return _array(cursor, key)
    if kind == STRING:
        return _text(cursor, key)
    if kind == BOOL:
        cursor.need(1, "key", key)
        byte = int(cursor.data[cursor.at])
        if byte > 1:
            raise refusal("key", key, cursor.at, "a bool of 0 or 1", str(byte))
        cursor.at += 1
        return byte == 1
    if kind not in SCALARS:
        raise refusal("the type of key", key, at, "a value type from 0 to 12", str(kind))
    return cursor.scalar(SCALARS[kind], "key", key)


def _text(cursor: Cursor, key: str) -> Text:
    at = cursor.at
    cursor.skip_string("key", key)
    return Text(cursor.data[at + 8 : cursor.at])


def _array(cursor: Cursor, key: str) -> Any:
    at = cursor.at
    kind = cursor.u32("the element type of key", key)
    if kind == ARRAY:
        raise refusal("the element type of key", key, at, "no arrays of arrays", "an array")
    if kind not in SCALARS and kind not in (BOOL, STRING):
        expected = "a value type from 0 to 12"
        raise refusal("the element type of key", key, at, expected, str(kind))
    at = cursor.at
    count = cursor.u64("the number of elements of key", key)
    itemsize = 8 if kind == STRING else 1 if kind == BOOL else SCALARS[kind].itemsize
    most = min(MAX_ARRAY, (cursor.size - cursor.at) // itemsize)
    if count > most:
        expected = f"at most {most} ({value_type_name(kind)})"
        raise refusal("the number of elements of key", key, at, expected, str(count))
    start = cursor.at
    if kind == STRING:
        cursor.skip_strings(count, key)
        return StringArray(cursor.data[start : cursor.at], count)
    if kind == BOOL:
        values = cursor.array(np.dtype(np.uint8), count, "key", key)
        if count and int(values.max()) > 1:
            bad = int((values > 1).argmax())
            raise refusal("key", key, start + bad, "bools of 0 or 1", str(int(values[bad])))
        return values.view(np.bool_)
    return cursor.array(SCALARS[kind], count, "key", key)


def _alignment(value: Any, at: int) -> int:
    if not isinstance(value, np.uint32):
        raise refusal("the type of key", ALIGNMENT_KEY, at, "uint32", type(value).__name__)
    if not is_alignment(int(value)):
        expected = f"a power of two from 8 to {MAX_ALIGNMENT}"
        raise refusal("key", ALIGNMENT_KEY, at + 4, expected, str(int(value)))
    return int(value)


def _tensors(cursor: Cursor, count: int, alignment: int) -> list[TensorInfo]:
    """Read all tensor infos, then place them in the file: offsets are checked as they come."""
    found: list[TensorInfo] = []
    seen: set[str] = set()
    running = 0
    for i in range(count):
        at = cursor.at
        name = cursor.name(MAX_NAME_BYTES, "the name of tensor", i)
        if name in seen:
            raise refusal("the name of tensor", i, at, "a new name", f"{shown(name)} again")
        seen.add(name)
        shape, kind, nbytes = _shape_and_type(cursor, name)
        at = cursor.at
        offset = cursor.u64("the offset of tensor", name)
        if offset != running:
            expected = f"{running} (the padded end of the tensor before)"
            raise refusal("the offset of tensor", name, at, expected, str(offset))
        running += padded(nbytes, alignment)
        if running > MAX_BYTES:
            raise refusal("tensor", name, at, "all tensors to end below 2**63", str(running))
        found.append(TensorInfo(name, kind, shape, offset, nbytes))
    start = padded(cursor.at, alignment) if count else cursor.at
    if start > cursor.size:
        got = f"the end of the file at {cursor.size}"
        raise refusal("the padding after the header", None, cursor.at, f"data at {start}", got)
    for info in found:
        if info.nbytes > cursor.size - start - info.start:
            got = f"the end of the file at {cursor.size}"
            at = start + info.start
            raise refusal("the data of tensor", info.name, at, f"{info.nbytes} bytes", got)
    return [TensorInfo(n, kind, shape, start + o, size) for n, kind, shape, o, size in found]


def _shape_and_type(cursor: Cursor, name: str) -> tuple[tuple[int, ...], TensorType, int]:
    at = cursor.at
    n_dims = cursor.u32("the number of dimensions of tensor", name)
    if n_dims > MAX_DIMS:
        expected = f"at most {MAX_DIMS}"
        raise refusal("the number of dimensions of tensor", name, at, expected, str(n_dims))
    dims_at = cursor.at
    dims = cursor.u64s(n_dims, "the dimensions of tensor", name)
    span = 1  # zeros count as one, so that an empty tensor cannot hide absurd dimensions
    for d, dim in enumerate(dims):
        at = dims_at + 8 * d
        if dim > MAX_BYTES:
            got = str(dim - (1 << 64))
            raise refusal(f"dimension {d} of tensor", name, at, "0 or more", got)
        span *= max(dim, 1)
        if span > MAX_BYTES:
            expected = "fewer than 2**63 elements up to here"
            raise refusal(f"dimension {d} of tensor", name, at, expected, str(span))
    at = cursor.at
    number = cursor.u32("the type of tensor", name)
    kind = tensor_type(number)
    if kind is None:
        gone = removed_type(number)
        got = f"type {number}" if gone is None else f"type {number} ({gone}, removed from GGUF)"
        raise refusal("the type of tensor", name, at, "a known tensor type", got)
    columns = dims[0] if dims else 1
    if columns % kind.block:
        expected = f"a multiple of {kind.block} ({kind.name})"
        raise refusal("dimension 0 of tensor", name, dims_at, expected, str(columns))
    if kind.nbytes(span) > MAX_BYTES:
        got = str(kind.nbytes(span))
        raise refusal("tensor", name, dims_at, "fewer than 2**63 bytes", got)
    # A scalar is given as one element, because a packed tensor needs an axis to be packed along.
    return dims[::-1] or (1,), kind, 0 if 0 in dims else kind.nbytes(span)
