"""Metadata values as the bytes that stand in a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvant.errors import GGUFError
from kvant.gguf.cursor import MAX_STRING, shown
from kvant.gguf.strings import StringArray
from kvant.gguf.types import ARRAY, BOOL, SCALARS, STRING

__all__ = ["encode_name", "encode_value"]

_NUMBERS = {dtype: number for number, dtype in SCALARS.items()}
_STRINGS_PER_CHUNK = 1 << 14


def encode_name(text: str, max_bytes: int, what: str) -> bytes:
    """Return a key or a tensor name with its length in front.

    Raises
    ------
    GGUFError
        The name is empty, too long, holds NUL, or cannot be written as UTF-8.
    """
    raw = _utf8(text, what)
    if not 1 <= len(raw) <= max_bytes or b"\0" in raw:
        expected = f"a name of 1 to {max_bytes} bytes without NUL for {what}"
        raise GGUFError(f"[gguf.write] expected {expected}, got {len(raw)} bytes: {shown(text)}")
    return len(raw).to_bytes(8, "little") + raw


def encode_value(value: Any, key: str) -> Iterator[bytes | NDArray[Any]]:
    """Yield type and value of one metadata entry, in pieces.

    NumPy scalars and arrays keep their type. A plain int becomes u32, i32, u64 or i64, the first
    that holds it; a plain float becomes f32. A list takes the type of its items (ints: i32, u32,
    i64 or u64).

    Raises
    ------
    GGUFError
        GGUF has no type for the value.
    """
    if isinstance(value, StringArray):
        yield _u32(ARRAY) + _u32(STRING) + len(value).to_bytes(8, "little")
        yield value.raw
    elif isinstance(value, str):
        yield _u32(STRING) + _string(value, key)
    elif isinstance(value, bool | np.bool_):
        yield _u32(BOOL) + bytes([bool(value)])
    elif isinstance(value, int | float | np.generic):
        scalar = _typed_scalar(value, key)
        yield _u32(_NUMBERS[scalar.dtype]) + scalar.tobytes()
    elif isinstance(value, np.ndarray):
        yield from _array(value, key)
    elif isinstance(value, list | tuple):
        yield from _list(list(value), key)
    else:
        raise _unknown(key, type(value).__name__)


def _array(values: NDArray[Any], key: str) -> Iterator[bytes | NDArray[Any]]:
    if values.ndim != 1:
        raise GGUFError(f"[gguf.write] expected a flat array for {shown(key)}, got {values.ndim}-d")
    if values.dtype.kind == "U":
        yield from _strings(values.tolist(), key)
        return
    count = int(values.size).to_bytes(8, "little")
    if values.dtype == np.bool_:
        yield _u32(ARRAY) + _u32(BOOL) + count
        yield np.ascontiguousarray(values).view(np.uint8)
        return
    dtype = values.dtype.newbyteorder("<")
    if dtype not in _NUMBERS:
        raise _unknown(key, f"an array of {values.dtype}")
    yield _u32(ARRAY) + _u32(_NUMBERS[dtype]) + count
    yield np.ascontiguousarray(values, dtype=dtype)


def _list(values: list[Any], key: str) -> Iterator[bytes | NDArray[Any]]:
    if values and all(isinstance(v, str) for v in values):
        yield from _strings(values, key)
    elif values and all(isinstance(v, bool | np.bool_) for v in values):
        yield from _array(np.array(values, dtype=np.bool_), key)
    elif values and all(type(v) is int for v in values):
        yield from _array(_typed_ints(values, ("<i4", "<u4", "<i8", "<u8"), key), key)
    elif values and all(type(v) in (int, float) for v in values):
        yield from _array(np.array([_typed_scalar(float(v), key) for v in values]), key)
    elif values and all(isinstance(v, np.generic) and v.dtype == values[0].dtype for v in values):
        yield from _array(np.array(values), key)
    else:
        expected = "items of one type (an empty list has none: pass a typed NumPy array)"
        raise GGUFError(f"[gguf.write] expected {expected} for {shown(key)}, got {len(values)}")


def _strings(values: list[str], key: str) -> Iterator[bytes]:
    yield _u32(ARRAY) + _u32(STRING) + len(values).to_bytes(8, "little")
    for start in range(0, len(values), _STRINGS_PER_CHUNK):
        chunk = values[start : start + _STRINGS_PER_CHUNK]
        yield b"".join(_string(v, key) for v in chunk)


def _string(text: str, key: str) -> bytes:
    raw = _utf8(text, key)
    if len(raw) > MAX_STRING:
        expected = f"at most {MAX_STRING} bytes for {shown(key)}"
        raise GGUFError(f"[gguf.write] expected {expected}, got {len(raw)}")
    return len(raw).to_bytes(8, "little") + raw


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise GGUFError(
            f"[gguf.write] expected text that UTF-8 can hold for {shown(what)}, got {shown(text)}"
        ) from None


def _typed_scalar(value: Any, key: str) -> Any:
    if isinstance(value, np.generic):
        dtype = value.dtype.newbyteorder("<")
        if dtype not in _NUMBERS:
            raise _unknown(key, str(value.dtype))
        return value.astype(dtype)
    if isinstance(value, int):
        return _typed_ints([value], ("<u4", "<i4", "<u8", "<i8"), key)[0]
    if np.isfinite(value) and abs(value) > float(np.finfo(np.float32).max):
        raise GGUFError(f"[gguf.write] expected a value within f32 for {shown(key)}, got {value!r}")
    return np.float32(value)


def _typed_ints(values: list[int], choices: tuple[str, ...], key: str) -> NDArray[Any]:
    low, high = min(values), max(values)
    for choice in choices:
        if np.iinfo(choice).min <= low and high <= np.iinfo(choice).max:
            return np.array(values, dtype=choice)
    raise GGUFError(f"[gguf.write] expected integers of 64 bits for {shown(key)}, got {high}")


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _unknown(key: str, got: str) -> GGUFError:
    expected = "a number, a bool, a string, or a flat array of them"
    return GGUFError(f"[gguf.write] expected {expected} for {shown(key)}, got {got}")
