"""Models that are split over several files, `name-00001-of-00003.gguf` and so on.

The first part carries the metadata, every part its own tensors; `split.no`, `split.count` and
`split.tensors.count` say how they belong together.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvant.errors import GGUFError
from kvant.gguf.cursor import shown
from kvant.gguf.header import Header, TensorInfo

__all__ = ["SPLIT_KEYS", "Part", "merge", "part_paths"]

SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")

MAX_PARTS = 65_535  # the key is a uint16

_PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


class Part(NamedTuple):
    """One file: where it is, its bytes, its checked header. No path if it is in memory."""

    path: Path | None
    data: NDArray[np.uint8]
    header: Header


def part_paths(part: Part) -> list[Path | None]:
    """List the files of the model that `part` belongs to, in order; None stands for `part`.

    Raises
    ------
    GGUFError
        The split keys, the file name and the files beside it do not agree.
    """
    count = _split_key(part, "split.count", default=0)
    if count <= 1:
        return [None]
    number = _split_key(part, "split.no")
    if number >= count:
        raise _mismatch(part, f"split.no below split.count ({count})", str(number))
    if count > MAX_PARTS:
        raise _mismatch(part, f"at most {MAX_PARTS} for split.count", str(count))
    if part.path is None:
        return [None] * count
    match = _PART_NAME.fullmatch(part.path.name)
    expected = f"-{number + 1:05d}-of-{count:05d}.gguf"
    if match is None or (int(match[2]), int(match[3])) != (number + 1, count):
        raise _mismatch(part, f"a file name ending in '{expected}'", shown(part.path.name))
    paths: list[Path | None] = []
    for i in range(count):
        path = part.path.with_name(f"{match[1]}-{i + 1:05d}-of-{count:05d}.gguf")
        if i == number:
            paths.append(None)
        elif path.is_file():
            paths.append(path)
        else:
            raise _mismatch(part, f"part {i + 1} of {count} beside it", "no such file")
    return paths


def merge(
    parts: list[Part],
) -> tuple[dict[str, Any], dict[str, tuple[NDArray[np.uint8], TensorInfo]]]:
    """Join the metadata of the first part and the tensors of all parts.

    Raises
    ------
    GGUFError
        A part is not the one its place says, a tensor stands in two parts, or the number of
        tensors is not `split.tensors.count`.
    """
    values = parts[0].header.metadata
    for i, part in enumerate(parts[1:], 1):
        for key, value in (("split.no", i), ("split.count", len(parts))):
            found = _split_key(part, key)
            if found != value:
                raise _mismatch(part, f"{key} {value}", str(found))
    if len(parts) > 1:
        if _split_key(parts[0], "split.no") != 0:
            raise _mismatch(parts[0], "split.no 0", "another")
        values = {k: v for k, v in values.items() if k not in SPLIT_KEYS}
    places: dict[str, tuple[NDArray[np.uint8], TensorInfo]] = {}
    for part in parts:
        for info in part.header.tensors:
            if info.name in places:
                raise _mismatch(part, "each tensor in one part", f"{shown(info.name)} again")
            places[info.name] = (part.data, info)
    if len(parts) > 1:
        total = _split_key(parts[0], "split.tensors.count")
        if total != len(places):
            raise _mismatch(parts[0], f"{len(places)} for split.tensors.count", str(total))
    return values, places


def _split_key(part: Part, key: str, default: int | None = None) -> int:
    value = part.header.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        got = "nothing" if value is None else shown(repr(value))
        raise _mismatch(part, f"an integer for {key}", got)
    return int(value)


def _mismatch(part: Part, expected: str, got: str) -> GGUFError:
    where = "" if part.path is None else f" ({part.path})"
    return GGUFError(f"[gguf.open] expected {expected}, got {got}{where}")
