"""Every rejection class of docs/gguf.md: refused by name, at a byte, before memory is taken."""

from __future__ import annotations

import os
import re
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import broken_rules  # noqa: F401  # adds its files to HOSTILE
import pytest
from hostile import HOSTILE
from images import STRING, U8, array, good, image, pair, string, tensor, u64

from kvant import gguf
from kvant.errors import GGUFError


@contextmanager
def little_memory(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


def test_the_good_file_opens() -> None:
    file = gguf.from_buffer(good())
    assert len(file.metadata) == 21
    assert len(file.tensors) == 4


def test_every_class_has_a_file() -> None:
    assert {h.number for h in HOSTILE.values()} == set(range(19))


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("mapped", [True, False])
def test_refused(name: str, mapped: bool, tmp_path: Path) -> None:
    hostile = HOSTILE[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(hostile.build())
    where = re.escape(f"in {hostile.field} at byte ") + r"\d+, got "
    with little_memory(4 << 20), pytest.raises(GGUFError, match=where):
        gguf.open(path, mapped=mapped)


def test_the_byte_is_the_right_one() -> None:
    with pytest.raises(GGUFError, match=r"'w' at byte 53, got type 31 \(q4_0_4_4, removed"):
        gguf.from_buffer(image((), [tensor(b"w", (256, 1), 31, 0)], bytes(512)))
    with pytest.raises(GGUFError, match=r"string 1 of key 'k' at byte 66, got"):
        gguf.from_buffer(image([array(b"k", STRING, 2, string(b"a") + string(b"\xff"))]))


def test_big_endian_is_named() -> None:
    with pytest.raises(GGUFError, match="big-endian"):
        gguf.from_buffer(HOSTILE["big_endian"].build())


def test_truncated_at_every_byte() -> None:
    whole = good()
    padding = 16  # after the last tensor, which nobody needs
    for size in range(len(whole) - padding):
        with pytest.raises(GGUFError, match=r"at byte \d+"):
            gguf.from_buffer(whole[:size])
    for size in range(len(whole) - padding, len(whole)):
        gguf.from_buffer(whole[:size])


@pytest.mark.parametrize(
    "name", ["string_of_a_gibibyte", "array_of_a_gibi", "array_string_of_a_gibibyte"]
)
def test_gibibyte_lengths_are_refused_even_if_the_file_is_that_long(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(HOSTILE[name].build())
        file.truncate((1 << 30) + 4096)  # a hole: takes no room on the disk
    if path.stat().st_blocks > 1 << 15:
        pytest.skip("this file system stores holes")
    field = re.escape(HOSTILE[name].field)
    with little_memory(4 << 20), pytest.raises(GGUFError, match=field):
        gguf.open(path)


def test_as_many_tensors_as_allowed_fit_in_the_memory_bound() -> None:
    count = 100_000
    infos = [tensor(("\U0001f600" + f"{i:059d}").encode(), (0,), 0, 0) for i in range(count)]
    data = image((), infos)
    with little_memory(len(data) + (64 << 20)):
        file = gguf.from_buffer(data)
    assert len(file.tensors) == count
    with pytest.raises(GGUFError, match="the number of tensors"):
        gguf.from_buffer(data[:8] + u64(count + 1) + data[16:] + infos[0])


def test_as_many_keys_as_allowed_fit_in_the_memory_bound() -> None:
    count = 1 << 14
    pairs = [pair(("\U0001f600" + f"{i:01020d}").encode(), U8, b"\0") for i in range(count)]
    data = image(pairs)
    with little_memory(len(data) + (64 << 20)):
        file = gguf.from_buffer(data)
    assert len(file.metadata) == count
    with pytest.raises(GGUFError, match="the number of keys"):
        gguf.from_buffer(data[:16] + u64(count + 1) + data[24:] + pairs[0])


def test_a_long_string_is_not_decoded_by_opening() -> None:
    text = "\U0001f600" + "a" * (8 << 20)  # four bytes a character once decoded
    data = image([pair(b"k", STRING, string(text.encode()))])
    with little_memory(1 << 20):
        file = gguf.from_buffer(data)
    assert file.metadata["k"] == text


def test_messages_show_no_control_characters() -> None:
    with pytest.raises(GGUFError) as caught:
        gguf.from_buffer(image([pair(b"\x1b[2J\n" * 40, 99, b"\0")]))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_pipe_or_a_folder_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(GGUFError, match="a regular file"):
            gguf.open(path)


def test_an_absent_file_stays_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        gguf.open(tmp_path / "none.gguf")


def test_empty_tensors_and_scalars_are_no_crime() -> None:
    infos = [tensor(b"e", (0, 3), 26, 0), tensor(b"q", (0, 2), 2, 0), tensor(b"s", (), 0, 0)]
    file = gguf.from_buffer(image((), infos, bytes(32)))
    assert file.tensors["e"].shape == (3, 0)
    assert file.tensors["q"].shape == (2, 0)
    assert file.tensors["s"].shape == (1,)


def test_split_count_in_memory_does_not_multiply() -> None:
    data = image([pair(b"split.count", 10, u64(1 << 40)), pair(b"split.no", U8, b"\0")])
    with little_memory(1 << 20), pytest.raises(GGUFError, match=r"split\.count"):
        gguf.from_buffer(data)
