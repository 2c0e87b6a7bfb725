"""Sequences in files: the pages as they lie in memory, each head's with a checksum.

A file is a magic, a version, the length and the digest of a header, the header (JSON), and from a
multiple of 64 bytes on the states of all heads. It holds no code, and nothing of it is believed
before its checksum was seen.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvant.errors import ShapeError, StateError
from kvant.gguf.replace import replacing
from kvant.kv.shapes import block_of

if TYPE_CHECKING:
    from kvant.kv.cache import KVCache
    from kvant.kv.sequence import KVSequence

__all__ = ["load", "save"]

_MAGIC = b"KVANTKV\n"
_VERSION = 2
_FIXED = struct.Struct("<8sIQ16s")
_ALIGNMENT = 64
_MOST_HEADER = 1 << 28


def describe(cache: KVCache) -> list[dict[str, Any]]:
    """What decides the bytes of a cache's pages, layer by layer."""
    layers = []
    for layer in cache.owned:
        shape, sides = cache.shapes[layer], cache.sides[layer]
        described: dict[str, Any] = {"layer": layer, **shape._asdict()}
        for name, side, dim in zip("kv", sides, shape.stored, strict=False):
            block = block_of(shape, side, dim)
            described[name] = {
                "codec": side.codec,
                "rotate": block,
                "signs": side.signs if block else None,
                "scale": side.scale,
                "center": _table_digest(cache, layer, "center") if side.center else None,
                "equalize": _table_digest(cache, layer, "equalize") if side.equalize else None,
            }
        described |= {"sink": cache.policy.sink, "tail": cache.policy.tail}
        layers.append(described)
    return layers


def _table_digest(cache: KVCache, layer: int, name: str) -> str:
    table = np.asarray(getattr(cache.calibration, name)[layer], np.float32)
    return _digest(table.tobytes()).hex()


def _digest(data: Any) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def save(seq: KVSequence, path: str | os.PathLike[str], tokens: Any = None) -> None:
    """Write a sequence; arguments are those of `KVSequence.save`."""
    cache = seq.cache
    # Tokens that come meanwhile are none of it.
    seq = seq.fork()
    ids = None if tokens is None else np.asarray(tokens, np.int64).ravel().tolist()
    parts: list[dict[str, Any]] = []
    states: list[bytes] = []
    offset = 0
    for layer in cache.owned:
        for head in range(cache.shapes[layer].kv_heads):
            state = seq._core.save(cache.place(layer), head)
            parts.append(
                {
                    "layer": layer,
                    "head": head,
                    "offset": offset,
                    "bytes": len(state),
                    "digest": _digest(state).hex(),
                }
            )
            states.append(state)
            offset += len(state) + -len(state) % _ALIGNMENT
    header = json.dumps(
        {
            "length": seq.length,
            "changed": seq._changed,
            "tokens": ids,
            "model": cache.fingerprint,
            "layers": describe(cache),
            "parts": parts,
        }
    ).encode()
    fixed = _FIXED.pack(_MAGIC, _VERSION, len(header), _digest(header))
    with replacing(path) as file:
        file.write(fixed + header)
        file.write(bytes(-(len(fixed) + len(header)) % _ALIGNMENT))
        for state in states:
            file.write(state)
            file.write(bytes(-len(state) % _ALIGNMENT))


def load(cache: KVCache, path: str | os.PathLike[str], in_place: bool = False) -> KVSequence:
    """Read a sequence; arguments are those of `KVCache.load`."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise StateError(f"[load] expected the state of a sequence, got the empty file {path}")
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    data = np.frombuffer(mapping, np.uint8)
    header, start = _header(data, path)
    _check(cache, header, path)
    seq = cache.sequence()
    seen = set()
    for part in header["parts"]:
        state = _part(data, start, part, path)
        place = (int(part["layer"]), int(part["head"]))
        if place in seen or not _owned(cache, *place):
            raise StateError(f"[load] expected each head once, got {place} in {path}")
        seen.add(place)
        try:
            seq._grow(partial(seq._core.load, cache.place(place[0]), place[1], state, in_place))
        except ShapeError as error:
            raise StateError(f"{error} in {path}") from error
    heads = sum(cache.shapes[layer].kv_heads for layer in cache.owned)
    if len(seen) != heads or seq.length != header["length"]:
        raise StateError(f"[load] expected {heads} heads of {header['length']} tokens in {path}")
    if in_place:
        cache.keep(mapping)
    ids = header["tokens"]
    seq._changed = header["changed"]
    seq.tokens = None if ids is None else np.asarray(ids, np.int64)
    return seq


def _are_ids(tokens: Any) -> bool:
    return isinstance(tokens, list) and all(
        type(t) is int and -(1 << 63) <= t < 1 << 63 for t in tokens
    )


def _owned(cache: KVCache, layer: int, head: int) -> bool:
    return layer in cache.owned and 0 <= head < cache.shapes[layer].kv_heads


def _header(data: NDArray[np.uint8], path: Any) -> tuple[dict[str, Any], int]:
    if len(data) < _FIXED.size:
        raise StateError(f"[load] expected a file of at least {_FIXED.size} bytes, got {path}")
    magic, version, size, digest = _FIXED.unpack(data[: _FIXED.size].tobytes())
    if magic != _MAGIC:
        raise StateError(f"[load] expected the state of a sequence, got {path}")
    if version != _VERSION:
        raise StateError(f"[load] expected version {_VERSION}, got {version} in {path}")
    if size > min(_MOST_HEADER, len(data) - _FIXED.size):
        raise StateError(f"[load] expected a header within the file, got {size} bytes in {path}")
    text = data[_FIXED.size : _FIXED.size + size].tobytes()
    if _digest(text) != digest:
        raise StateError(f"[load] expected a header as it was written, got another in {path}")
    try:
        header = json.loads(text)
        tokens = header["tokens"]
        sound = isinstance(header["length"], int) and isinstance(header["parts"], list)
        sound = sound and (tokens is None or _are_ids(tokens))
        sound = sound and (header["changed"] is None or type(header["changed"]) is int)
        sound = sound and all(
            isinstance(part[name], int)
            for part in header["parts"]
            for name in ("layer", "head", "offset", "bytes")
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StateError(f"[load] expected a header of a state, got another in {path}") from error
    if not sound:
        raise StateError(f"[load] expected a header of a state, got another in {path}")
    start = _FIXED.size + size
    return header, start + -start % _ALIGNMENT


def _check(cache: KVCache, header: dict[str, Any], path: Any) -> None:
    wanted = json.loads(json.dumps(describe(cache)))
    given = header.get("layers")
    if given != wanted:
        what, own, other = _difference(wanted, given)
        raise StateError(
            f"[load] expected layers as of this cache, they differ in {what}: expected {own}, "
            f"got {other}"
        )
    model = header.get("model")
    if cache.fingerprint is not None and model is not None and model != cache.fingerprint:
        raise StateError(
            f"[load] expected a state of the model {cache.fingerprint}, got {model} in {path}"
        )


def _difference(wanted: Any, given: Any, what: str = "their number") -> tuple[str, Any, Any]:
    """Where two descriptions differ first, and what stands there."""
    if isinstance(wanted, list) and isinstance(given, list) and len(wanted) == len(given):
        pairs = [(f"layer {i}", a, b) for i, (a, b) in enumerate(zip(wanted, given, strict=True))]
    elif isinstance(wanted, dict) and isinstance(given, dict) and wanted.keys() == given.keys():
        pairs = [(f"{what}, {name}", wanted[name], given[name]) for name in wanted]
    else:
        return what, wanted, given
    return next(_difference(a, b, name) for name, a, b in pairs if a != b)


def _part(data: NDArray[np.uint8], start: int, part: dict[str, Any], path: Any) -> Any:
    begin, size = start + part["offset"], part["bytes"]
    sound = part["offset"] >= 0 and size >= 0 and begin % _ALIGNMENT == 0
    if not sound or begin + size > len(data):
        raise StateError(f"[load] expected all pages within the file, {path} was cut")
    state = data[begin : begin + size]
    if _digest(state).hex() != part.get("digest"):
        raise StateError(f"[load] expected pages as they were written, got others in {path}")
    return state
