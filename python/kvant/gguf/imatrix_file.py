"""The two files that llama.cpp keeps importance matrices in: GGUF and the older `.dat`.

Learned from llama.cpp (tools/imatrix, common/imatrix-loader). Read with the same distrust as any
other file; `kvant.imatrix` is the front door.
"""

from __future__ import annotations

import builtins
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvant.errors import GGUFError
from kvant.gguf.cursor import shown
from kvant.gguf.file import GGUFFile
from kvant.gguf.file import open as open_gguf
from kvant.gguf.replace import replacing
from kvant.gguf.strings import StringArray
from kvant.gguf.write import write
from kvant.qtensor import QTensor

__all__ = ["Entry", "ImatrixData", "read_imatrix", "write_gguf", "write_legacy"]

_SUMS = ".in_sum2"
_COUNTS = ".counts"
_DATASETS = "imatrix.datasets"
_CHUNK_COUNT = "imatrix.chunk_count"
_CHUNK_SIZE = "imatrix.chunk_size"
_F32_MAX = float(np.finfo(np.float32).max)
_MIN_LEGACY_ENTRY = 4 + 1 + 4 + 4 + 4


@dataclass(frozen=True)
class Entry:
    """Sums of squares [matrices, columns] and the tokens behind them [matrices] of one weight."""

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]

    def importance(self) -> NDArray[np.float32]:
        """Return the mean squares [matrices, columns] as llama-quantize computes them."""
        sums, counts = self.sums.astype(np.float32), self.counts.astype(np.float32)[:, None]
        mean = np.ones_like(sums)
        np.divide(sums, counts, out=mean, where=counts > 0)
        return mean


@dataclass
class ImatrixData:
    """What an imatrix file says."""

    chunk_size: int
    chunk_count: int = 0
    datasets: list[str] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)


def read_imatrix(path: str | os.PathLike[str], chunk_size: int) -> ImatrixData:
    """Read either file; `chunk_size` is what a legacy file does not say."""
    with builtins.open(path, "rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            if os.fstat(file.fileno()).st_size < 4 + _MIN_LEGACY_ENTRY:
                raise _refusal("the file", 0, "an imatrix, GGUF or legacy", f"{magic!r}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
                return _read_legacy(mapping, chunk_size)
    with open_gguf(path) as opened:
        return _read_gguf(opened)


def _refusal(what: str, offset: int, expected: str, got: str) -> GGUFError:
    return GGUFError(f"[imatrix.load] expected {expected} in {what} at byte {offset}, got {got}")


def _read_gguf(file: GGUFFile) -> ImatrixData:
    kind = file.metadata.get("general.type", "imatrix")
    if kind != "imatrix":
        raise GGUFError(f"[imatrix.load] expected general.type 'imatrix', got {shown(repr(kind))}")
    datasets = file.metadata.get(_DATASETS)
    if not isinstance(datasets, StringArray):
        got = "nothing" if datasets is None else "something else"
        raise GGUFError(f"[imatrix.load] expected an array of strings in {_DATASETS}, got {got}")
    data = ImatrixData(_integer(file, _CHUNK_SIZE, 1), _integer(file, _CHUNK_COUNT, 0))
    data.datasets = list(datasets)
    names = {n[: -len(_SUMS)] for n in file.tensors if n.endswith(_SUMS)}
    names |= {n[: -len(_COUNTS)] for n in file.tensors if n.endswith(_COUNTS)}
    for name in sorted(names):
        sums = _floats(file, name + _SUMS)
        counts = np.floor(_floats(file, name + _COUNTS) + 0.5)  # halves away from zero
        if counts.size == 0 or sums.size == 0 or sums.size % counts.size:
            at = file.tensors.info(name + _SUMS).start
            expected = f"a multiple of {counts.size} values"
            raise _refusal(f"tensor {shown(name + _SUMS)}", at, expected, str(sums.size))
        data.entries[name] = Entry(sums.reshape(counts.size, -1), counts.astype(np.int64))
    if not names:
        raise GGUFError("[imatrix.load] expected tensors named '*.in_sum2', got none")
    return data


def _integer(file: GGUFFile, key: str, least: int) -> int:
    value = file.metadata.get(key)
    if not isinstance(value, np.integer) or value < least:
        got = "nothing" if value is None else shown(repr(value))
        raise GGUFError(f"[imatrix.load] expected an integer from {least} in {key}, got {got}")
    return int(value)


def _floats(file: GGUFFile, name: str) -> NDArray[np.float64]:
    tensor = file.tensors.get(name)
    if not isinstance(tensor, QTensor) or tensor.format != "f32":
        got = "nothing" if tensor is None else "another type"
        raise GGUFError(f"[imatrix.load] expected f32 tensor {shown(name)}, got {got}")
    raw = np.ascontiguousarray(tensor.data).reshape(-1).view("<f4")
    values: NDArray[np.float64] = raw.astype(np.float64)
    start = file.tensors.info(name).start
    _check_values(values, f"tensor {shown(name)}", start)
    return values


def _check_values(values: NDArray[np.float64], what: str, start: int) -> None:
    wrong = ~((values >= 0) & (values <= _F32_MAX))  # true for NaN as well
    if wrong.any():
        index = int(wrong.argmax())
        expected = "finite values that are not negative"
        raise _refusal(what, start + 4 * index, expected, str(values[index]))


class _Legacy:
    """A bounds-checked walk over a legacy file."""

    def __init__(self, view: mmap.mmap) -> None:
        self.view = view
        self.at = 0

    def left(self) -> int:
        return len(self.view) - self.at

    def i32(self, what: str, low: int, high: int) -> int:
        if self.left() < 4:
            raise _refusal(what, self.at, "4 bytes", f"the end of the file after {self.left()}")
        value: int = struct.unpack_from("<i", self.view, self.at)[0]
        if not low <= value <= high:
            raise _refusal(what, self.at, f"{low} to {high}", str(value))
        self.at += 4
        return value

    def text(self, what: str, shortest: int) -> str:
        length = self.i32(f"the length of {what}", shortest, max(shortest, self.left() - 4))
        raw = self.view[self.at : self.at + length]
        try:
            if len(raw) != length:
                raise _refusal(what, self.at, f"{length} bytes", "the end of the file")
            text = raw.decode()
        except UnicodeDecodeError:
            raise _refusal(what, self.at, "valid UTF-8", shown(repr(raw[:64]))) from None
        self.at += length
        return text


def _read_legacy(view: mmap.mmap, chunk_size: int) -> ImatrixData:
    """Sums are stored as (mean square) * calls; both are scaled by the chunk to count tokens."""
    file = _Legacy(view)
    data = ImatrixData(chunk_size)
    most = max(1, (len(view) - 4) // _MIN_LEGACY_ENTRY)
    for i in range(file.i32("the number of entries", 1, most)):
        at = file.at
        name = file.text(f"the name of entry {i}", 1)
        if name in data.entries:
            raise _refusal(f"the name of entry {i}", at, "a new name", f"{shown(name)} again")
        calls = file.i32(f"the calls of entry {shown(name)}", 0, (1 << 31) - 1)
        what = f"entry {shown(name)}"
        count = file.i32(f"the number of values of {what}", 1, max(1, (file.left() - 4) // 4))
        raw = file.view[file.at : file.at + 4 * count]
        if len(raw) != 4 * count:
            raise _refusal(what, file.at, f"{4 * count} bytes", "the end of the file")
        values = np.frombuffer(raw, dtype="<f4").astype(np.float64)
        _check_values(values, what, file.at)
        # No calls means that the values are means already. A count that f32 cannot hold is
        # rounded as llama-quantize rounds it when it divides.
        scale = chunk_size * int(np.float32(max(calls, 1)))
        sums = values * chunk_size
        if sums.max() > _F32_MAX:
            raise _refusal(what, file.at, f"values within f32 / {chunk_size}", str(values.max()))
        data.entries[name] = Entry(sums[None], np.array([scale], dtype=np.int64))
        file.at += 4 * count
    if file.left():  # files of old versions end here
        data.chunk_count = file.i32("the number of chunks", 0, (1 << 31) - 1)
        dataset = file.text("the dataset", 0)
        data.datasets = [dataset] if dataset else []
    if file.left():
        raise _refusal("the file", file.at, "its end", f"{file.left()} more bytes")
    return data


def write_gguf(path: str | os.PathLike[str], data: ImatrixData) -> None:
    """Write the GGUF file, entries sorted by name."""
    metadata = {
        "general.type": "imatrix",
        _DATASETS: np.array(data.datasets, dtype=np.str_),
        _CHUNK_COUNT: np.uint32(data.chunk_count),
        _CHUNK_SIZE: np.uint32(data.chunk_size),
    }
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, entry in sorted(data.entries.items()):
        sums, counts = entry.sums.astype(np.float32), entry.counts.astype(np.float32)
        single = counts.size == 1  # ggml drops outer dimensions of one
        tensors[name + _SUMS] = sums[0] if single else sums
        tensors[name + _COUNTS] = counts if single else counts[:, None]
    write(path, metadata, tensors)


def write_legacy(
    path: str | os.PathLike[str], data: ImatrixData, entries: Mapping[str, Entry]
) -> None:
    """Write the `.dat` file with these entries, all of which have seen tokens."""
    with replacing(path) as file:
        file.write(struct.pack("<i", len(entries)))
        for name, entry in sorted(entries.items()):
            calls = -(-int(entry.counts.max()) // data.chunk_size)
            values = (entry.importance() * np.float32(calls)).astype("<f4")
            raw = name.encode()
            file.write(struct.pack("<i", len(raw)) + raw)
            file.write(struct.pack("<ii", calls, values.size))
            file.write(values.tobytes())
        dataset = data.datasets[-1].encode() if data.datasets else b""
        file.write(struct.pack("<ii", data.chunk_count, len(dataset)) + dataset)
