"""GGUF files that break the rules of the format outside the eighteen classes of `hostile.py`."""

from __future__ import annotations

import struct

from hostile import hostile
from images import BOOL, U8, array, image, pair, tensor


@hostile(0, "the magic")
def another_file() -> bytes:
    return b"PK\x03\x04" + bytes(60)


@hostile(0, "the version")
def big_endian() -> bytes:
    return b"GGUF" + struct.pack(">IQQ", 3, 0, 0)


@hostile(0, "the version")
def version_0() -> bytes:
    return image(version=0)


@hostile(0, "the version")
def version_1() -> bytes:
    return image(version=1)


@hostile(0, "the version")
def version_4() -> bytes:
    return image(version=4)


@hostile(0, "key 'k'")
def bool_of_two() -> bytes:
    return image([pair(b"k", BOOL, b"\2")])


@hostile(0, "key 'k'")
def bool_array_of_two() -> bytes:
    return image([array(b"k", BOOL, 4, b"\0\1\2\1")])


@hostile(0, "the number of dimensions of tensor 'w'")
def five_dimensions() -> bytes:
    return image((), [tensor(b"w", (8, 1, 1, 1, 1), 0, 0)], bytes(32))


@hostile(0, "the length of the name of tensor 0")
def tensor_name_too_long() -> bytes:
    return image((), [tensor(b"w" * 64, (8,), 0, 0)], bytes(32))


@hostile(0, "the length of key 0")
def key_empty() -> bytes:
    return image([pair(b"", U8, bytes(8))])


@hostile(0, "the name of tensor 0")
def nul_in_a_tensor_name() -> bytes:
    return image((), [tensor(b"w\0v", (8,), 0, 0)], bytes(32))
