"""GGUF files that must be refused, one function for each trick.

They are numbered by the rejection classes of docs/gguf.md; its further rules, numbered 0, are
broken in `broken_rules.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from images import (
    ARRAY,
    STRING,
    TOP,
    U8,
    U32,
    U64,
    array,
    image,
    pair,
    string,
    tensor,
    u32,
    u64,
)


class Hostile(NamedTuple):
    """`number` is the rejection class of docs/gguf.md, `field` what the message must name."""

    number: int
    field: str
    build: Callable[[], bytes]


HOSTILE: dict[str, Hostile] = {}


def hostile(number: int, field: str) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    def register(build: Callable[[], bytes]) -> Callable[[], bytes]:
        HOSTILE[build.__name__] = Hostile(number, field, build)
        return build

    return register


# 1: counts that would overflow an allocation


@hostile(1, "the number of tensors")
def tensor_count_absurd() -> bytes:
    return image(n_tensors=1 << 62)


@hostile(1, "the number of keys")
def key_count_absurd() -> bytes:
    return image(n_pairs=TOP - 1)


@hostile(1, "the number of keys")
def key_count_beyond_the_file() -> bytes:
    return image([pair(b"k", U8, b"\0")], n_pairs=2)


# 2: string lengths near 2**64


@hostile(2, "the length of key 0")
def key_length_wraps() -> bytes:
    return image([string(b"key", TOP - 1) + u32(U8) + b"\0"])


@hostile(2, "the length of key 'k'")
def string_length_wraps() -> bytes:
    return image([pair(b"k", STRING, string(b"text", TOP - 8))])


@hostile(2, "the length of string 1 of key 'k'")
def array_string_length_wraps() -> bytes:
    return image([array(b"k", STRING, 2, string(b"a") + string(b"b", TOP - 1) + bytes(16))])


@hostile(2, "the length of the name of tensor 0")
def tensor_name_length_wraps() -> bytes:
    return image((), [string(b"w", TOP - 1) + u32(1) + u64(1) + u32(0) + u64(0)], bytes(32))


# 3: array sizes that overflow


@hostile(3, "the number of elements of key 'k'")
def array_bytes_wrap() -> bytes:
    return image([array(b"k", U64, (1 << 61) + 1, bytes(8))])


@hostile(3, "the number of elements of key 'k'")
def string_count_wraps() -> bytes:
    return image([array(b"k", STRING, 1 << 61, string(b"a"))])


# 4: products of dimensions that overflow, negative dimensions


@hostile(4, "dimension 1 of tensor 'w'")
def elements_wrap_to_zero() -> bytes:
    return image((), [tensor(b"w", (1 << 32, 1 << 32), 0, 0)], bytes(32))


@hostile(4, "dimension 0 of tensor 'w'")
def dimension_negative() -> bytes:
    return image((), [tensor(b"w", (-32,), 0, 0)], bytes(32))


@hostile(4, "dimension 0 of tensor 'w'")
def dimensions_negative_in_pairs() -> bytes:
    return image((), [tensor(b"w", (-4, -4), 0, 0)], bytes(64))


@hostile(4, "dimension 1 of tensor 'w'")
def overflow_hidden_by_a_zero() -> bytes:
    return image((), [tensor(b"w", (1 << 62, 1 << 62, 0), 0, 0)])


@hostile(4, "dimension 1 of tensor 'w'")
def elements_wrap_to_negative() -> bytes:
    return image((), [tensor(b"w", (1 << 62, 2), 24, 0)], bytes(32))


# 5: bytes of a tensor that overflow


@hostile(5, "tensor 'w'")
def tensor_bytes_wrap() -> bytes:
    return image((), [tensor(b"w", (1 << 62,), 28, 0)], bytes(32))


# 6: sums of tensor sizes that overflow


@hostile(6, "tensor 'w1'")
def running_size_wraps() -> bytes:
    big = 1 << 60  # f32: 2**62 bytes
    return image((), [tensor(b"w0", (big,), 0, 0), tensor(b"w1", (big,), 0, big * 4)], bytes(32))


@hostile(6, "the data of tensor 'w'")
def size_just_below_the_limit() -> bytes:
    return image((), [tensor(b"w", ((1 << 63) - 64,), 24, 0)], bytes(32))


# 7: padding that wraps


@hostile(7, "tensor 'w'")
def padding_wraps() -> bytes:
    return image((), [tensor(b"w", ((1 << 63) - 1,), 24, 0)], bytes(32))


# 8: alignment


def _aligned(raw: bytes, kind: int = U32) -> bytes:
    return image([pair(b"general.alignment", kind, raw)], [tensor(b"w", (8,), 0, 0)], bytes(32))


@hostile(8, "key 'general.alignment'")
def alignment_zero() -> bytes:
    return _aligned(u32(0))


@hostile(8, "key 'general.alignment'")
def alignment_not_a_power_of_two() -> bytes:
    return _aligned(u32(48))


@hostile(8, "key 'general.alignment'")
def alignment_huge() -> bytes:
    return _aligned(u32(1 << 31))


@hostile(8, "key 'general.alignment'")
def alignment_too_small() -> bytes:
    return _aligned(u32(4))


@hostile(8, "the type of key 'general.alignment'")
def alignment_of_another_type() -> bytes:
    return _aligned(u64(32), U64)


# 9: data beyond the end


@hostile(9, "the data of tensor 'w'")
def data_past_the_end() -> bytes:
    return image((), [tensor(b"w", (64,), 0, 0)], bytes(255))


@hostile(9, "the data of tensor 'v'")
def second_tensor_past_the_end() -> bytes:
    infos = [tensor(b"w", (8,), 0, 0), tensor(b"v", (8,), 0, 32)]
    return image((), infos, bytes(32))


@hostile(9, "the padding after the header")
def data_start_past_the_end() -> bytes:
    return image((), [tensor(b"w", (0,), 0, 0)])[:60]  # 57 bytes of header, 3 of 7 of padding


# 10: row counts that lose their upper half in 32 bits


@hostile(10, "the data of tensor 'w'")
def rows_truncate_to_one() -> bytes:
    return image((), [tensor(b"w", (8, (1 << 32) + 1), 0, 0)], bytes(32))


# 11: rows that are not whole blocks


@hostile(11, "dimension 0 of tensor 'w'")
def half_a_block() -> bytes:
    return image((), [tensor(b"w", (16, 2), 2, 0)], bytes(32))


@hostile(11, "dimension 0 of tensor 'w'")
def half_a_super_block() -> bytes:
    return image((), [tensor(b"w", (384,), 12, 0)], bytes(288))


# 12: the same name twice


@hostile(12, "key 1")
def key_twice() -> bytes:
    return image([pair(b"k", U8, b"\0"), pair(b"k", U8, b"\1")])


@hostile(12, "the name of tensor 1")
def tensor_twice() -> bytes:
    return image((), [tensor(b"w", (8,), 0, 0), tensor(b"w", (8,), 0, 32)], bytes(64))


# 13: offsets


@hostile(13, "the offset of tensor 'w'")
def offset_unaligned() -> bytes:
    return image((), [tensor(b"w", (8,), 0, 4)], bytes(64))


@hostile(13, "the offset of tensor 'v'")
def tensors_overlap() -> bytes:
    return image((), [tensor(b"w", (8,), 0, 0), tensor(b"v", (8,), 0, 0)], bytes(64))


@hostile(13, "the offset of tensor 'w'")
def hole_before_a_tensor() -> bytes:
    return image((), [tensor(b"w", (8,), 0, 64)], bytes(128))


@hostile(13, "the offset of tensor 'w'")
def offset_negative() -> bytes:
    return image((), [tensor(b"w", (8,), 0, -32)], bytes(64))


# 14: type numbers


@hostile(14, "the type of tensor 'w'")
def tensor_type_unknown() -> bytes:
    return image((), [tensor(b"w", (256,), 99, 0)], bytes(1024))


@hostile(14, "the type of tensor 'w'")
def tensor_type_removed() -> bytes:
    return image((), [tensor(b"w", (256,), 31, 0)], bytes(1024))


@hostile(14, "the type of tensor 'w'")
def tensor_type_negative() -> bytes:
    return image((), [tensor(b"w", (256,), (1 << 32) - 1, 0)], bytes(1024))


@hostile(14, "the type of key 'k'")
def value_type_unknown() -> bytes:
    return image([pair(b"k", 13, bytes(8))])


@hostile(14, "the element type of key 'k'")
def element_type_unknown() -> bytes:
    return image([array(b"k", 200, 1, bytes(8))])


# 15: lengths of a gibibyte (tests back these with files that are really that long)


@hostile(15, "the length of key 'k'")
def string_of_a_gibibyte() -> bytes:
    return image([pair(b"k", STRING, u64((1 << 30) + 1))])


@hostile(15, "the number of elements of key 'k'")
def array_of_a_gibi() -> bytes:
    return image([array(b"k", U8, (1 << 30) + 1, b"")])


@hostile(15, "the length of string 0 of key 'k'")
def array_string_of_a_gibibyte() -> bytes:
    return image([array(b"k", STRING, 1, u64((1 << 30) + 1))])


# 16: arrays of arrays


@hostile(16, "the element type of key 'k'")
def nested_array() -> bytes:
    return image([array(b"k", ARRAY, 1, u32(U8) + u64(1) + b"\0")])


@hostile(16, "the element type of key 'k'")
def nested_arrays_without_end() -> bytes:
    return image([array(b"k", ARRAY, 1, (u32(ARRAY) + u64(1)) * 50_000)])


# 17: bytes that are not UTF-8


@hostile(17, "key 0")
def key_not_utf8() -> bytes:
    return image([pair(b"k\xff", U8, b"\0")])


@hostile(17, "key 'k'")
def string_not_utf8() -> bytes:
    return image([pair(b"k", STRING, string(b"caf\xe9"))])


@hostile(17, "string 2 of key 'k'")
def token_not_utf8() -> bytes:
    tokens = (b"a", "é".encode(), b"\xc0\x80", b"b")  # an overlong NUL
    return image([array(b"k", STRING, 4, b"".join(map(string, tokens)))])


@hostile(17, "string 0 of key 'k'")
def token_cut_inside_a_character() -> bytes:
    return image([array(b"k", STRING, 2, string(b"\xe2\x96") + string(b"\x81"))])


@hostile(17, "string 0 of key 'k'")
def surrogate_in_a_token() -> bytes:
    return image([array(b"k", STRING, 1, string(b"\xed\xa0\x80"))])


@hostile(17, "the name of tensor 0")
def tensor_name_not_utf8() -> bytes:
    return image((), [tensor(b"w\x80", (8,), 0, 0)], bytes(32))


# 18: truncation (every byte of `good` is tried as well)


@hostile(18, "the magic")
def empty_file() -> bytes:
    return b""


@hostile(18, "the version")
def only_the_magic() -> bytes:
    return b"GGUF"
