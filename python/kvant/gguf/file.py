"""Open a GGUF file: map it, check the header, hand out views.

Nothing is copied. A tensor is a view on the memory map, made when it is asked for; long arrays
of strings stay undecoded. Views keep the map alive, so they outlive `close`.
"""

from __future__ import annotations

import builtins
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvant.errors import GGUFError
from kvant.gguf.header import Header, TensorInfo, parse_header
from kvant.gguf.split import Part, merge, part_paths
from kvant.gguf.strings import Text
from kvant.qtensor import QTensor

__all__ = ["GGUFFile", "Metadata", "Tensors", "from_buffer", "open"]


class Metadata(Mapping[str, Any]):
    """Metadata of a file, in file order.

    Numbers are NumPy scalars of the type in the file, flags are `bool`, strings are `str`
    (decoded when read), numeric arrays are read-only `ndarray` views, arrays of strings are
    `StringArray`.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        return value.decode() if isinstance(value, Text) else value

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Tensors(Mapping[str, "QTensor | NDArray[Any]"]):
    """Tensors of a file, in file order, as read-only views on the map.

    Floating and quantized types are `QTensor`, the integer types and f64 are `ndarray`. Shapes
    are in NumPy order: the last axis is the contiguous one.
    """

    def __init__(self, places: dict[str, tuple[NDArray[np.uint8], TensorInfo]]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> QTensor | NDArray[Any]:
        data, info = self._places[name]
        raw = data[info.start : info.start + info.nbytes]
        kind = info.type
        if kind.dtype is not None:
            return raw.view(kind.dtype).reshape(info.shape)
        row_bytes = kind.nbytes(info.shape[-1])
        return QTensor(raw.reshape(*info.shape[:-1], row_bytes), kind.name, info.shape)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def info(self, name: str) -> TensorInfo:
        """Return type, shape, first byte and size of a tensor without touching its data."""
        return self._places[name][1]


class GGUFFile:
    """An open GGUF file; `open` makes it. A context manager.

    Attributes
    ----------
    paths : tuple of Path
        The file, or all parts of a split model; empty for a file in memory.
    version, alignment : int
        As the file says.
    """

    def __init__(self, parts: list[Part]) -> None:
        self.paths = tuple(p.path for p in parts if p.path is not None)
        self.version = parts[0].header.version
        self.alignment = parts[0].header.alignment
        values, places = merge(parts)
        self._metadata: Metadata | None = Metadata(values)
        self._tensors: Tensors | None = Tensors(places)

    @property
    def metadata(self) -> Metadata:
        """Key -> value, in file order."""
        if self._metadata is None:
            raise GGUFError("[GGUFFile.metadata] expected an open file, got a closed one")
        return self._metadata

    @property
    def tensors(self) -> Tensors:
        """Name -> tensor, in file order."""
        if self._tensors is None:
            raise GGUFError("[GGUFFile.tensors] expected an open file, got a closed one")
        return self._tensors

    def close(self) -> None:
        """Let go of the map. It is unmapped when the last view taken from it is gone."""
        self._metadata = None
        self._tensors = None

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        name = str(self.paths[0]) if self.paths else "in memory"
        if self._metadata is None or self._tensors is None:
            return f"GGUFFile({name}, closed)"
        return f"GGUFFile({name}, {len(self._metadata)} keys, {len(self._tensors)} tensors)"


def open(path: str | os.PathLike[str], *, mapped: bool = True) -> GGUFFile:
    """Open a GGUF file, version 2 or 3, little-endian.

    The header is checked completely before anything is believed; see docs/gguf.md for what is
    refused. Of a split model (`name-00001-of-00003.gguf`) any part may be given: all parts are
    opened, their tensors joined, and the `split.*` keys left out.

    Parameters
    ----------
    path
        The file.
    mapped
        Map the file (default). False reads it into memory, for files that somebody else may
        truncate while they are open: touching a map beyond the new end kills the process.

    Raises
    ------
    GGUFError
        The file breaks a rule of the format; the message names the field and the byte offset.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import kvant.gguf
    >>> path = os.path.join(tempfile.mkdtemp(), "small.gguf")
    >>> kvant.gguf.write(path, {"general.name": "small"}, {"ids": np.arange(6).reshape(2, 3)})
    >>> with kvant.gguf.open(path) as file:
    ...     print(file.metadata["general.name"], file.tensors["ids"].tolist())
    small [[0, 1, 2], [3, 4, 5]]
    """
    first = _open_part(Path(path), mapped)
    others = part_paths(first)
    return GGUFFile([first if p is None else _open_part(p, mapped) for p in others])


def from_buffer(buffer: Any) -> GGUFFile:
    """Read a GGUF file that is already in memory.

    Parameters
    ----------
    buffer
        Contiguous bytes (bytes, mmap, uint8 array ...). The result keeps it alive and views it.

    Raises
    ------
    GGUFError
        As `open`; also if the file is one part of a split model.

    Examples
    --------
    >>> import kvant.gguf
    >>> kvant.gguf.from_buffer(b"GGUF" + (3).to_bytes(4, "little") + bytes(16)).version
    3
    """
    data = np.empty(0, np.uint8)
    if memoryview(buffer).nbytes:  # NumPy refuses to view nothing
        data = np.frombuffer(buffer, dtype=np.uint8)
    data.flags.writeable = False
    part = Part(None, data, parse_header(data))
    if len(part_paths(part)) != 1:
        raise GGUFError("[gguf.from_buffer] expected a whole file, got one part of a split model")
    return GGUFFile([part])


def _open_part(path: Path, mapped: bool) -> Part:
    # Asked before opening, because opening a pipe would wait for its other end.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise GGUFError(f"[gguf.open] expected a regular file, got {path}")
    try:
        data, header = _read(path, mapped)
    except GGUFError as error:
        raise GGUFError(f"{error} ({path})") from None
    return Part(path, data, header)


def _read(path: Path, mapped: bool) -> tuple[NDArray[np.uint8], Header]:
    with builtins.open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # mmap refuses to map nothing
            return np.empty(0, np.uint8), parse_header(np.empty(0, np.uint8))
        if not mapped:
            data = np.frombuffer(file.read(), dtype=np.uint8)
            return data, parse_header(data)
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    data = np.frombuffer(mapping, dtype=np.uint8)
    return data, parse_header(data, _releaser(mapping))


def _releaser(mapping: mmap.mmap) -> Callable[[int, int], None] | None:
    """Give checked pages of a long vocabulary back, so that opening leaves memory as it was."""
    if not hasattr(mapping, "madvise"):
        return None

    def release(start: int, end: int) -> None:
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        if end - first >= 1 << 18:
            mapping.madvise(mmap.MADV_DONTNEED, first, end - first)

    return release
