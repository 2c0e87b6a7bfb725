"""String arrays: lazily read, equal to a list; and the scanner that checks them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import string

from kvant import _core
from kvant.gguf import StringArray

TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=20)


def packed(texts: list[str]) -> StringArray:
    raw = b"".join(string(t.encode()) for t in texts)
    return StringArray(np.frombuffer(raw, np.uint8) if raw else np.empty(0, np.uint8), len(texts))


def scan(raw: bytes, count: int, offset: int = 0) -> tuple[int, bool]:
    return _core.scan_strings(np.frombuffer(raw, np.uint8), offset, count)


def is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(TEXTS)
def test_it_is_the_list(texts: list[str]) -> None:
    array = packed(texts)
    assert len(array) == len(texts)
    assert list(array) == array.tolist() == texts
    assert array == texts
    assert array == tuple(texts)
    assert array == packed(texts)
    assert array != [*texts, ""]
    assert array != packed([*texts, ""])
    assert array[::-2] == texts[::-2]
    assert [array[i] for i in range(-len(texts), len(texts))] == texts + texts
    for text in texts:
        assert text in array
        assert array.index(text) == texts.index(text)


def test_indices_beyond_the_ends_are_refused() -> None:
    array = packed(["a", "b"])
    for index in (2, -3):
        with pytest.raises(IndexError):
            array[index]


def test_it_is_not_hashable_and_shows_its_head() -> None:
    array = packed(["a", "b", "c", "é"])
    with pytest.raises(TypeError):
        hash(array)
    assert repr(array) == "StringArray(4 strings: 'a', 'b', 'c', ...)"
    assert array != 3


@given(st.lists(st.binary(max_size=200), max_size=12), st.binary(max_size=9))
def test_scan_agrees_with_python(pieces: list[bytes], tail: bytes) -> None:
    raw = b"\xff" + b"".join(map(string, pieces))
    expected = all(map(is_utf8, pieces))
    assert scan(raw + tail, len(pieces), 1) == (len(raw), expected)


@given(TEXTS, st.data())
def test_scan_accepts_text_and_sees_every_cut(texts: list[str], data: st.DataObject) -> None:
    raw = b"".join(string(t.encode()) for t in texts)
    if not raw:
        return
    assert scan(raw, len(texts)) == (len(raw), True)
    size = data.draw(st.integers(0, len(raw) - 1))
    assert scan(raw[:size], len(texts))[0] == -1 if size else True


def test_scan_knows_every_short_sequence() -> None:
    edges = (0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0)
    edges += (0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF)
    for size in (1, 2, 3):
        for combination in itertools.product(edges, repeat=size):
            raw = bytes(combination)
            assert scan(string(raw), 1) == (8 + size, is_utf8(raw)), raw
    for lead, low in itertools.product((0xF0, 0xF1, 0xF4, 0xF5), edges):
        for tail in (b"\x80\x80", b"\xbf\x41", b"\x41\xbf", b"\xbf\xbf\xbf"):
            raw = bytes((lead, low)) + tail
            assert scan(string(raw), 1)[1] == is_utf8(raw), raw


@pytest.mark.parametrize("size", [*range(55, 75), 127, 128, 129, 255, 256, 300, 70_000])
def test_scan_finds_a_fault_anywhere_in_long_strings(size: int) -> None:
    text = ("é" * size).encode()[:size]
    good = text if is_utf8(text) else text[:-1] + b"e"
    assert scan(string(good), 1) == (8 + size, True)
    for at in {0, 1, size // 2, size - 2, size - 1}:
        bad = bytearray(good)
        bad[at] = 0xFF
        assert scan(string(b"ok") + string(bytes(bad)) + string(b"ok"), 3)[1] is False


def test_a_character_may_not_span_two_strings() -> None:
    assert scan(string(b"\xe2\x96") + string(b"\x81"), 2) == (19, False)
    # 128 and more put bytes above 0x7f into the length, which must not complete a character.
    assert scan(string(b"\xc3") + string(b"a" * 128), 2)[1] is False
    assert scan(string(b"a" * 0xC3) + string("é".encode()), 2)[1] is True
    assert scan(string(b"\x80" + b"a" * 0xC2), 1)[1] is False


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 8, (1 << 64) - 1, 1 << 32, 2])
def test_lengths_beyond_the_buffer(length: int) -> None:
    assert scan(string(b"a", length), 1)[0] == -1
    assert scan(string(b"ok") + string(b"a", length), 2)[0] == -1


def test_scan_of_nothing() -> None:
    assert scan(b"abc", 0, 2) == (2, True)
    assert scan(b"abc", 0, 3) == (3, True)
    assert scan(b"abc", 1, 3)[0] == -1


@given(TEXTS)
def test_offsets_point_at_the_lengths(texts: list[str]) -> None:
    raw = b"".join(string(t.encode()) for t in texts)
    offsets = _core.string_offsets(np.frombuffer(b"\0" + raw, np.uint8), 1, len(texts))
    sizes = [8 + len(t.encode()) for t in texts]
    assert offsets.dtype == np.uint64
    assert offsets.tolist() == [1, *(1 + s for s in itertools.accumulate(sizes))]
