"""Write a GGUF file, tensor after tensor.

The same input gives the same bytes. The file is written beside its place and renamed when it is
complete, so that a reader never meets half a file; on failure nothing is left behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kvant.errors import GGUFError
from kvant.gguf.cursor import shown
from kvant.gguf.encode import encode_name, encode_value
from kvant.gguf.header import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    MAX_DIMS,
    MAX_KEY_BYTES,
    MAX_KEYS,
    MAX_NAME_BYTES,
    MAX_TENSORS,
    is_alignment,
    padded,
)
from kvant.gguf.replace import replacing
from kvant.gguf.types import TensorType, tensor_type_named
from kvant.qtensor import QTensor

__all__ = ["TensorData", "TensorSource", "write"]

_VERSION = 3

TensorData = QTensor | np.ndarray[Any, np.dtype[Any]]
"""What a tensor may be given as: packed, or an array of a plain type."""


@dataclass(frozen=True)
class TensorSource:
    """A tensor that is made only when its turn to be written comes.

    Attributes
    ----------
    format
        Name of the element type: "q4_k", "f32", "i32" ...
    shape
        NumPy order, last axis contiguous.
    load
        Called once, with nothing. Returns the tensor, or an iterable of its consecutive pieces
        (`QTensor`, `ndarray` or bytes), so that no tensor need be in memory at once.

    Examples
    --------
    >>> import numpy as np
    >>> rows = TensorSource("f32", (2, 4), lambda: (np.full(4, i, np.float32) for i in range(2)))
    >>> rows.shape
    (2, 4)
    """

    format: str
    shape: tuple[int, ...]
    load: Callable[[], TensorData | Iterable[TensorData | bytes]]


@dataclass(frozen=True)
class _Planned:
    name: str
    kind: TensorType
    shape: tuple[int, ...]
    nbytes: int
    item: TensorData | TensorSource


def write(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, TensorData | TensorSource],
    alignment: int | None = None,
) -> None:
    """Write a GGUF file, version 3, little-endian.

    Parameters
    ----------
    path
        The file; replaced if it exists.
    metadata
        Key -> value, written in this order. What `open` returns is written back byte for byte;
        see docs/gguf.md for the types that plain Python values take.
    tensors
        Name -> `QTensor`, `ndarray` (f32, f16, f64, i8, i16, i32, i64) or `TensorSource`, written
        in this order. One tensor at a time is in memory.
    alignment
        Bytes between tensors are padded with zeros to a multiple of this: a power of two from 8
        to 2 MiB. Default: `general.alignment` of the metadata, or 32. Any other value than 32 is
        recorded under that key.

    Raises
    ------
    GGUFError
        A name, value or tensor cannot be written, or a source gave other bytes than announced.
    OSError
        The file cannot be written.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import kvant.gguf
    >>> path = os.path.join(tempfile.mkdtemp(), "small.gguf")
    >>> kvant.gguf.write(path, {"answer": 42}, {"w": np.ones((2, 32), np.float32)})
    >>> os.path.getsize(path)
    352
    """
    alignment = _alignment(metadata, alignment)
    if alignment != DEFAULT_ALIGNMENT and ALIGNMENT_KEY not in metadata:
        metadata = {**metadata, ALIGNMENT_KEY: np.uint32(alignment)}
    if len(metadata) > MAX_KEYS or len(tensors) > MAX_TENSORS:
        raise GGUFError(
            f"[gguf.write] expected at most {MAX_KEYS} keys and {MAX_TENSORS} tensors, "
            f"got {len(metadata)} and {len(tensors)}"
        )
    parts = metadata.get("split.count")
    if isinstance(parts, int | np.integer) and parts > 1:
        raise GGUFError("[gguf.write] expected a whole model, got the metadata of a split one")
    planned = [_plan(name, item) for name, item in tensors.items()]
    with replacing(path) as file:
        _write_header(file, metadata, planned, alignment)
        for tensor in planned:
            _pad(file, alignment)
            _write_data(file, tensor)
        if planned:
            _pad(file, alignment)


def _alignment(metadata: Mapping[str, Any], asked: int | None) -> int:
    recorded = metadata.get(ALIGNMENT_KEY)
    if recorded is not None and type(recorded) not in (int, np.uint32):
        raise GGUFError(
            f"[gguf.write] expected {ALIGNMENT_KEY} as uint32, got {type(recorded).__name__}"
        )
    if recorded is not None and asked is not None and int(recorded) != asked:
        raise GGUFError(
            f"[gguf.write] expected alignment {recorded} as in {ALIGNMENT_KEY}, got {asked}"
        )
    value = asked
    if value is None:
        value = DEFAULT_ALIGNMENT if recorded is None else int(recorded)
    if not is_alignment(value):
        expected = "an alignment that is a power of two from 8 to 2 MiB"
        raise GGUFError(f"[gguf.write] expected {expected}, got {value}")
    return value


def _plan(name: str, item: TensorData | TensorSource) -> _Planned:
    encode_name(name, MAX_NAME_BYTES, f"tensor {shown(name)}")
    kind = _kind(name, item)
    shape = tuple(int(n) for n in item.shape) or (1,)
    if len(shape) > MAX_DIMS or any(n < 0 for n in shape):
        raise GGUFError(
            f"[gguf.write] expected at most {MAX_DIMS} dimensions for {shown(name)}, got {shape}"
        )
    if shape and shape[-1] % kind.block:
        raise GGUFError(
            f"[gguf.write] expected a last dimension that is a multiple of {kind.block} "
            f"({kind.name}) for {shown(name)}, got {shape[-1]}"
        )
    elements = 1
    for n in shape:
        elements *= n
    return _Planned(name, kind, shape, kind.nbytes(elements), item)


def _kind(name: str, item: TensorData | TensorSource) -> TensorType:
    if isinstance(item, QTensor | TensorSource):
        kind, got = tensor_type_named(item.format), item.format
    elif isinstance(item, np.ndarray):
        code = {"f": "f", "i": "i"}.get(item.dtype.kind, "?")
        kind, got = tensor_type_named(f"{code}{item.dtype.itemsize * 8}"), str(item.dtype)
    else:
        kind, got = None, type(item).__name__
    if kind is None:
        expected = "a QTensor, a TensorSource or an array of f16, f32, f64, i8, i16, i32 or i64"
        raise GGUFError(f"[gguf.write] expected {expected} for {shown(name)}, got {got}")
    return kind


def _write_header(
    file: BinaryIO, metadata: Mapping[str, Any], planned: list[_Planned], alignment: int
) -> None:
    file.write(b"GGUF" + _VERSION.to_bytes(4, "little"))
    file.write(len(planned).to_bytes(8, "little") + len(metadata).to_bytes(8, "little"))
    for key, value in metadata.items():
        file.write(encode_name(key, MAX_KEY_BYTES, f"key {shown(key)}"))
        for piece in encode_value(value, key):
            file.write(piece if isinstance(piece, bytes) else piece.data)
    offset = 0
    for tensor in planned:
        file.write(encode_name(tensor.name, MAX_NAME_BYTES, "a tensor"))
        file.write(len(tensor.shape).to_bytes(4, "little"))
        for n in reversed(tensor.shape):
            file.write(n.to_bytes(8, "little"))
        file.write(tensor.kind.number.to_bytes(4, "little"))
        file.write(offset.to_bytes(8, "little"))
        offset += padded(tensor.nbytes, alignment)


def _write_data(file: BinaryIO, tensor: _Planned) -> None:
    left = tensor.nbytes
    for piece in _pieces(tensor):
        raw = piece if isinstance(piece, bytes) else _bytes_of(piece, tensor).data
        left -= len(raw)
        if left < 0:
            break
        file.write(raw)
    if left:
        raise GGUFError(
            f"[gguf.write] expected {tensor.nbytes} bytes from the source of "
            f"{shown(tensor.name)}, got {'more' if left < 0 else tensor.nbytes - left}"
        )


def _pieces(tensor: _Planned) -> Iterator[TensorData | bytes]:
    made = tensor.item.load() if isinstance(tensor.item, TensorSource) else tensor.item
    if isinstance(made, QTensor | np.ndarray | bytes):
        yield made
    else:
        yield from made


def _bytes_of(piece: TensorData, tensor: _Planned) -> NDArray[np.uint8]:
    if isinstance(piece, QTensor):
        if piece.format != tensor.kind.name:
            raise GGUFError(
                f"[gguf.write] expected {tensor.kind.name} from the source of "
                f"{shown(tensor.name)}, got {piece.format}"
            )
        array: NDArray[Any] = piece.data
    else:
        array = piece.astype(piece.dtype.newbyteorder("<"), copy=False)
        if array.dtype != np.uint8 and _kind(tensor.name, array) is not tensor.kind:
            raise GGUFError(
                f"[gguf.write] expected {tensor.kind.name} from the source of "
                f"{shown(tensor.name)}, got {array.dtype}"
            )
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _pad(file: BinaryIO, alignment: int) -> None:
    at = file.tell()
    file.write(bytes(padded(at, alignment) - at))
