"""Models split over several files: joined, or refused where the parts do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from images import I32, STRING, U16, image, pair, string, tensor, u32

from kvant import gguf
from kvant.errors import GGUFError


def part(
    folder: Path,
    number: int,
    count: int,
    *,
    says: int | None = None,
    says_count: int | None = None,
    total: int | None = None,
    anonymous: bool = False,
) -> Path:
    """Write part `number` (from 0) of `count`, with two tensors; it may say something else."""
    pairs = [pair(b"general.architecture", STRING, string(b"llama"))] if number == 0 else []
    if not anonymous:
        no = number if says is None else says
        pairs.append(pair(b"split.no", U16, no.to_bytes(2, "little")))
    of = count if says_count is None else says_count
    pairs.append(pair(b"split.count", U16, of.to_bytes(2, "little")))
    pairs.append(pair(b"split.tensors.count", I32, u32(2 * count if total is None else total)))
    names = [f"t{number}{c}".encode() for c in "ab"]
    infos = [tensor(n, (4,), 26, 32 * i) for i, n in enumerate(names)]
    values = (u32(number) * 4 + bytes(16)) * 2
    path = folder / f"m-{number + 1:05d}-of-{count:05d}.gguf"
    path.write_bytes(image(pairs, infos, values))
    return path


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_part_opens_the_whole(given: int, tmp_path: Path) -> None:
    paths = [part(tmp_path, i, 3) for i in range(3)]
    with gguf.open(paths[given]) as file:
        assert file.paths == tuple(paths)
        assert list(file.tensors) == ["t0a", "t0b", "t1a", "t1b", "t2a", "t2b"]
        assert [int(np.asarray(t)[0]) for t in file.tensors.values()] == [0, 0, 1, 1, 2, 2]
        assert dict(file.metadata) == {"general.architecture": "llama"}
        gguf.write(tmp_path / "whole.gguf", file.metadata, file.tensors)
    with gguf.open(tmp_path / "whole.gguf") as whole:
        assert list(whole.tensors) == [f"t{i}{c}" for i in range(3) for c in "ab"]


def test_one_part_of_one_is_a_plain_file(tmp_path: Path) -> None:
    path = part(tmp_path, 0, 1)
    moved = path.rename(tmp_path / "any name.gguf")
    file = gguf.open(moved)
    assert file.metadata["split.count"] == 1
    gguf.write(tmp_path / "again.gguf", file.metadata, file.tensors)
    assert (tmp_path / "again.gguf").read_bytes() == moved.read_bytes()


def refused(path: Path, match: str) -> None:
    with pytest.raises(GGUFError, match=match):
        gguf.open(path)


def test_a_missing_part(tmp_path: Path) -> None:
    first = part(tmp_path, 0, 2)
    refused(first, "part 2 of 2 beside it, got no such file")


def test_a_renamed_part(tmp_path: Path) -> None:
    first = part(tmp_path, 0, 2)
    part(tmp_path, 1, 2)
    refused(first.rename(tmp_path / "model.gguf"), "file name ending in '-00001-of-00002.gguf'")


def test_parts_in_the_wrong_place(tmp_path: Path) -> None:
    first, second = part(tmp_path, 0, 2), part(tmp_path, 1, 2)
    shutil.copy(second, first)
    refused(first, "file name ending in '-00002-of-00002.gguf'")
    first = part(tmp_path, 0, 2)
    shutil.copy(first, second)
    refused(first, r"split\.no 1, got 0")


def test_parts_of_different_models(tmp_path: Path) -> None:
    first = part(tmp_path, 0, 2)
    part(tmp_path, 1, 2, says_count=3)
    refused(first, r"split\.count 2, got 3")
    part(tmp_path, 1, 2, anonymous=True)
    refused(first, r"an integer for split\.no, got nothing")


def test_the_total_must_be_right(tmp_path: Path) -> None:
    first = part(tmp_path, 0, 2, total=5)
    part(tmp_path, 1, 2)
    refused(first, r"4 for split\.tensors\.count, got 5")


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    first, second = part(tmp_path, 0, 2), part(tmp_path, 1, 2)
    second.write_bytes(second.read_bytes().replace(b"t1a", b"t0a"))
    refused(first, "each tensor in one part, got 't0a' again")


def test_a_number_beyond_the_count(tmp_path: Path) -> None:
    refused(part(tmp_path, 0, 2, says=2), r"split\.no below split\.count")


def test_hostile_parts_are_named(tmp_path: Path) -> None:
    first, second = part(tmp_path, 0, 2), part(tmp_path, 1, 2)
    second.write_bytes(second.read_bytes()[:-20])
    refused(first, "the data of tensor 't1b' .*m-00002-of-00002.gguf")


def test_a_part_in_memory_is_refused() -> None:
    keys = [pair(b"split.no", U16, b"\0\0"), pair(b"split.count", U16, b"\2\0")]
    with pytest.raises(GGUFError, match="one part of a split model"):
        gguf.from_buffer(image(keys))
