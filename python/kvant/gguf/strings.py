"""Arrays of strings that stay in the file until somebody looks at them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import eq
from typing import overload

import numpy as np
from numpy.typing import NDArray

from kvant import _core

__all__ = ["StringArray", "Text"]


class Text:
    """One checked UTF-8 string in the file; decoded when it is asked for."""

    __slots__ = ("raw",)

    def __init__(self, raw: NDArray[np.uint8]) -> None:
        self.raw = raw

    def decode(self) -> str:
        """Return the string."""
        return str(self.raw.data, "utf-8")


class StringArray(Sequence[str]):
    """A read-only sequence of strings over the bytes of a GGUF file.

    Opening a file only checks the strings. The table of offsets (8 bytes a string) is made at
    the first access, and each string is decoded when it is read.

    Parameters
    ----------
    raw
        uint8 [bytes]: the strings as they stand in the file, each after its u64 length.
        They must have been checked already.
    count
        Number of strings.

    Examples
    --------
    >>> import numpy as np
    >>> raw = b"".join(len(s).to_bytes(8, "little") + s for s in (b"a", b"bc"))
    >>> words = StringArray(np.frombuffer(raw, np.uint8), 2)
    >>> len(words), words[1], list(words)
    (2, 'bc', ['a', 'bc'])
    """

    __slots__ = ("_count", "_offsets", "_raw")
    __hash__ = None  # type: ignore[assignment]  # equal to lists, so it cannot be hashable

    def __init__(self, raw: NDArray[np.uint8], count: int) -> None:
        self._raw = raw
        self._count = count
        self._offsets: NDArray[np.uint64] | None = None

    @property
    def raw(self) -> NDArray[np.uint8]:
        """The encoded strings, lengths included, as they stand in the file (uint8 view)."""
        return self._raw

    def _table(self) -> NDArray[np.uint64]:
        if self._offsets is None:
            self._offsets = _core.string_offsets(self._raw, 0, self._count)
        return self._offsets

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        head = ", ".join(ascii(s) for s in self[:3])
        return f"StringArray({self._count} strings: {head}{', ...' if self._count > 3 else ''})"

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        indices = range(self._count)[index]
        table = self._table()
        if isinstance(indices, int):
            start, end = int(table[indices]) + 8, int(table[indices + 1])
            return str(self._raw.data[start:end], "utf-8")
        view = self._raw.data
        return [str(view[int(table[i]) + 8 : int(table[i + 1])], "utf-8") for i in indices]

    def __iter__(self) -> Iterator[str]:
        ends = self._table().tolist()
        view = self._raw.data
        for start, end in pairwise(ends):
            yield str(view[start + 8 : end], "utf-8")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StringArray):
            return self._count == other._count and np.array_equal(self._raw, other._raw)
        if isinstance(other, list | tuple):
            return len(other) == self._count and all(map(eq, self, other))
        return NotImplemented

    def tolist(self) -> list[str]:
        """Return all strings as a list."""
        return list(self)
