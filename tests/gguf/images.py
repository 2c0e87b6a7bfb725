"""GGUF files built byte by byte, without kvant: its writer cannot hide a fault of its reader."""

from __future__ import annotations

import struct
from collections.abc import Sequence

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
TOP = 1 << 64


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value % TOP)


def string(raw: bytes, length: int | None = None) -> bytes:
    return u64(len(raw) if length is None else length) + raw


def pair(key: bytes, kind: int, raw: bytes) -> bytes:
    return string(key) + u32(kind) + raw


def array(key: bytes, kind: int, count: int, raw: bytes) -> bytes:
    return pair(key, ARRAY, u32(kind) + u64(count) + raw)


def tensor(name: bytes, dims: Sequence[int], kind: int, offset: int) -> bytes:
    return string(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(kind) + u64(offset)


def image(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    n_tensors: int | None = None,
    n_pairs: int | None = None,
    alignment: int = 32,
) -> bytes:
    head = b"GGUF" + u32(version)
    head += u64(len(tensors) if n_tensors is None else n_tensors)
    head += u64(len(pairs) if n_pairs is None else n_pairs)
    head += b"".join(pairs) + b"".join(tensors)
    if tensors:
        head += bytes(-len(head) % alignment)
    return head + data


def good() -> bytes:
    """A small file with one of everything; the seed of truncations and mutations."""
    pairs = [
        pair(b"general.architecture", STRING, string(b"llama")),
        pair(b"general.name", STRING, string("κβαντ".encode())),
        pair(b"a.u8", U8, b"\x07"),
        pair(b"a.i8", I8, b"\xf9"),
        pair(b"a.u16", U16, b"\x01\x02"),
        pair(b"a.i16", I16, b"\xff\xff"),
        pair(b"a.u32", U32, u32(1 << 31)),
        pair(b"a.i32", I32, b"\xfe\xff\xff\xff"),
        pair(b"a.f32", F32, struct.pack("<f", 0.1)),
        pair(b"a.nan", F32, b"\x01\x00\x80\x7f"),  # a signalling NaN: its payload must survive
        pair(b"a.yes", BOOL, b"\x01"),
        pair(b"a.no", BOOL, b"\x00"),
        pair(b"a.u64", U64, u64(1 << 63)),
        pair(b"a.i64", I64, u64(-5)),
        pair(b"a.f64", F64, struct.pack("<d", -0.1)),
        array(b"b.tokens", STRING, 4, b"".join(map(string, (b"<s>", b"", "▁é".encode(), b"x")))),
        array(b"b.scores", F32, 3, struct.pack("<3f", 0.0, -1.5, 2.0)),
        array(b"b.flags", BOOL, 3, b"\x01\x00\x01"),
        array(b"b.types", I32, 2, struct.pack("<2i", -1, 1)),
        array(b"b.none", U64, 0, b""),
        array(b"b.words", STRING, 0, b""),
    ]
    tensors = [
        tensor(b"blk.0.q4", (32, 2), 2, 0),  # 36 bytes
        tensor(b"norm", (3,), 0, 64),  # 12 bytes
        tensor(b"ids", (2, 2), 26, 96),  # 16 bytes
        tensor(b"half", (4, 1, 2), 1, 128),  # 16 bytes
    ]
    values = bytes(range(36)) + bytes(28) + struct.pack("<3f", 1, 2, 3) + bytes(20)
    values += struct.pack("<4i", 1, -2, 3, -4) + bytes(16) + bytes(range(16)) + bytes(16)
    return image(pairs, tensors, values)
