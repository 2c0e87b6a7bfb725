"""A bounds-checked walk over the bytes of a GGUF header.

Every read says which field it is for, so that a refusal can name the field and the byte offset.
Nothing is believed before it has been compared with the bytes that are really there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvant import _core
from kvant.errors import GGUFError

__all__ = ["MAX_STRING", "Cursor", "refusal", "shown"]

MAX_STRING = 1 << 30
"""Longest string in bytes. ggml stops here as well, so no other program opens such a file."""

_SCAN = 1 << 16
"""Strings checked per step, so that the pages of a long array can be handed back on the way."""

_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from


def shown(text: str) -> str:
    """Quote a name from a hostile file for a message: printable ASCII, at most 80 characters."""
    quoted = ascii(text)
    return quoted if len(quoted) <= 80 else quoted[:76] + "...'"


def refusal(what: str, which: str | int | None, at: int, expected: str, got: str) -> GGUFError:
    """Build the error for a field at byte `at`.

    `what` and `which` are put together only here: labels for fields that are all right would
    cost more than checking them. A name is quoted, a number and None are not.
    """
    field = what if which is None else f"{what} {shown(which) if isinstance(which, str) else which}"
    return GGUFError(f"[gguf.open] expected {expected} in {field} at byte {at}, got {got}")


def _no_release(start: int, end: int) -> None:
    pass


class Cursor:
    """Reads little-endian values one after another from `data`.

    Parameters
    ----------
    data
        uint8 [file bytes], usually a view on a memory map.
    release
        Called with (start, end) when these bytes have been checked and are not needed soon.
    """

    __slots__ = ("at", "data", "release", "size", "view")

    def __init__(
        self, data: NDArray[np.uint8], release: Callable[[int, int], None] | None = None
    ) -> None:
        self.data = data
        self.view = data.data
        self.size = int(data.size)
        self.at = 0
        self.release = release or _no_release

    def need(self, count: int, what: str, which: str | int | None = None) -> None:
        """Refuse unless `count` more bytes exist."""
        left = self.size - self.at
        if count > left:
            got = f"the end of the file after {left}"
            raise refusal(what, which, self.at, f"{count} bytes", got)

    def u32(self, what: str, which: str | int | None = None) -> int:
        """Read an unsigned 32-bit integer."""
        self.need(4, what, which)
        value: int = _U32(self.view, self.at)[0]
        self.at += 4
        return value

    def u64(self, what: str, which: str | int | None = None) -> int:
        """Read an unsigned 64-bit integer."""
        self.need(8, what, which)
        value: int = _U64(self.view, self.at)[0]
        self.at += 8
        return value

    def u64s(self, count: int, what: str, which: str | int | None = None) -> tuple[int, ...]:
        """Read a few unsigned 64-bit integers."""
        self.need(8 * count, what, which)
        values = struct.unpack_from(f"<{count}Q", self.view, self.at)
        self.at += 8 * count
        return values

    def scalar(self, dtype: np.dtype[Any], what: str, which: str | int | None) -> Any:
        """Read one NumPy scalar, bit for bit (payloads of NaN survive)."""
        self.need(dtype.itemsize, what, which)
        value = self.data[self.at : self.at + dtype.itemsize].view(dtype)[0]
        self.at += dtype.itemsize
        return value

    def array(
        self, dtype: np.dtype[Any], count: int, what: str, which: str | int | None
    ) -> NDArray[Any]:
        """Return a read-only view on `count` values; nothing is copied."""
        nbytes = count * dtype.itemsize
        self.need(nbytes, what, which)
        values = self.data[self.at : self.at + nbytes].view(dtype)
        self.at += nbytes
        return values

    def name(self, max_bytes: int, what: str, which: int) -> str:
        """Read a short string that names something: 1 to `max_bytes` bytes of UTF-8 without NUL."""
        start = self.at
        length = self.u64(what, which)
        if not 1 <= length <= max_bytes:
            expected = f"1 to {max_bytes} bytes"
            raise refusal(f"the length of {what}", which, start, expected, str(length))
        self.need(length, what, which)
        raw = bytes(self.view[self.at : self.at + length])
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            at = self.at + error.start
            raise refusal(what, which, at, "valid UTF-8", shown(repr(raw))) from None
        if "\0" in text:
            raise refusal(what, which, self.at + raw.index(0), "no NUL in a name", shown(text))
        self.at += length
        return text

    def skip_strings(self, count: int, key: str) -> None:
        """Step over `count` length-prefixed strings after checking every length and its UTF-8."""
        done = 0
        while done < count:
            step = min(_SCAN, count - done)
            start = self.at
            end, valid = _core.scan_strings(self.data, start, step)
            if end < 0 or not valid or end - start > MAX_STRING:
                end = self._scan_slowly(step, done, key)
            self.at = end
            done += step
            self.release(start, end)

    def _scan_slowly(self, count: int, first: int, key: str) -> int:
        """Check one string after another, so that a refusal names the one that is wrong."""
        start = self.at
        for index in range(first, first + count):
            self.skip_string(f"string {index} of key", key)
        end, self.at = self.at, start
        return end

    def skip_string(self, what: str, key: str) -> None:
        """Step over one string after checking its length and its UTF-8."""
        start = self.at
        length = self.u64(what, key)
        most = min(MAX_STRING, self.size - self.at)
        if length > most:
            raise refusal(f"the length of {what}", key, start, f"at most {most}", str(length))
        _, valid = _core.scan_strings(self.data, start, 1)
        if not valid:
            raw = bytes(self.view[self.at : self.at + min(length, 16)])
            raise refusal(what, key, self.at, "valid UTF-8", shown(repr(raw)))
        self.at += length
