"""Read a Hugging Face model folder: JSON files, and safetensors whole or in shards.

Tensors stay in their files (memory-mapped) until they are asked for. The `safetensors` package
checks each file first; bytes are then taken by offset, because NumPy has no bf16.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import ModelError

__all__ = ["Stored", "open_tensors", "read_json"]

Bytes = npt.NDArray[np.uint8]

_DTYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: element type (f32, f16 or bf16), shape, and its bytes, still mapped."""

    dtype: str
    shape: tuple[int, ...]
    data: Bytes


def read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """A JSON object from a file; {} if the file is absent and not required."""
    if not path.is_file():
        if required:
            raise ModelError(f"[convert] expected the file {path.name} in the folder, got none")
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"[convert] expected JSON in {path.name}, got {error}") from None
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise ModelError(f"[convert] expected an object in {path.name}, got {kind}")
    return value


def open_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder, by its Hugging Face name.

    Raises
    ------
    ModelError
        There are no safetensors, a shard is missing or broken, or it lacks a tensor of the index.
    """
    if not (folder / _INDEX).is_file():
        if not (folder / _SINGLE).is_file():
            raise ModelError(f"[convert] expected {_SINGLE} or {_INDEX} in the folder, got neither")
        return _open_file(folder / _SINGLE)
    places = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise ModelError(f"[convert] expected a weight_map of names in {_INDEX}, got another")
    shards: dict[str, dict[str, Stored]] = {}
    for shard in sorted(set(places.values())):
        # A plain name: an index must not reach outside its folder.
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise ModelError(f"[convert] expected the shard {shard!r} in the folder, got none")
        shards[shard] = _open_file(folder / shard)
    for name, shard in places.items():
        if name not in shards[shard]:
            raise ModelError(f"[convert] expected the tensor {name!r} in {shard}, got none")
    return {name: shards[shard][name] for name, shard in places.items()}


def _open_file(path: Path) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"[convert] expected safetensors in {path.name}, got {error}") from None
    blob = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int.from_bytes(bytes(blob[:8]), "little")
    header = json.loads(bytes(blob[8:start]))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            known = ", ".join(_DTYPES)
            raise ModelError(f"[convert] expected {known} for {name!r}, got {entry['dtype']}")
        begin, end = entry["data_offsets"]
        tensors[name] = Stored(dtype, tuple(entry["shape"]), blob[start + begin : start + end])
    return tensors
