"""The two files of importance matrices: layout, round trips, and hostile ones."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant import gguf, imatrix
from kvant.errors import FormatError, GGUFError
from kvant.imatrix import Imatrix

DENSE = "blk.0.ffn_down.weight"
MOE = "blk.0.ffn_up_exps.weight"


def legacy(entries: list[tuple[bytes, int, list[float]]], tail: bytes | None = None) -> bytes:
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
        data += struct.pack(f"<{len(values)}f", *values)
    return data + (struct.pack("<ii", 7, 5) + b"a.txt" if tail is None else tail)


def saved(im: Imatrix, folder: Path, **options: Any) -> Imatrix:
    im.save(folder / "im", **options)
    return imatrix.load(folder / "im")


def example() -> Imatrix:
    rng = np.random.default_rng(1)
    im = Imatrix(chunk_size=16, datasets=["a.txt", "b.txt"])
    im.add(DENSE, rng.standard_normal((4, 10, 6)))
    im.add(MOE, rng.standard_normal((40, 8)), experts=rng.integers(0, 3, (40, 2)), n_expert=4)
    return im


# the GGUF file


def test_gguf_file_comes_back(tmp_path: Path) -> None:
    im = example()
    again = saved(im, tmp_path)
    assert list(again) == list(im) == sorted([DENSE, MOE])
    for name in im:
        assert np.array_equal(again.importance(name), im.importance(name))
    assert again.coverage() == im.coverage()
    assert again.datasets == ("a.txt", "b.txt")
    assert (again.chunk_size, again.chunk_count) == (16, im.chunk_count)
    first = (tmp_path / "im").read_bytes()
    again.save(tmp_path / "im")
    assert (tmp_path / "im").read_bytes() == first


def test_gguf_file_has_the_layout_of_llama_cpp(tmp_path: Path) -> None:
    example().save(tmp_path / "im.gguf")
    with gguf.open(tmp_path / "im.gguf") as file:
        assert file.metadata["general.type"] == "imatrix"
        assert list(file.metadata["imatrix.datasets"]) == ["a.txt", "b.txt"]
        assert type(file.metadata["imatrix.chunk_count"]) is np.uint32
        assert file.metadata["imatrix.chunk_size"] == 16
        shapes = {n: (file.tensors.info(n).type.name, t.shape) for n, t in file.tensors.items()}
        counts: Any = file.tensors[f"{DENSE}.counts"]
        assert counts.data.view("<f4").tolist() == [40.0]
    assert list(shapes.items()) == [
        (f"{DENSE}.in_sum2", ("f32", (6,))),
        (f"{DENSE}.counts", ("f32", (1,))),
        (f"{MOE}.in_sum2", ("f32", (4, 8))),
        (f"{MOE}.counts", ("f32", (4, 1))),
    ]


def test_no_datasets_are_an_empty_array(tmp_path: Path) -> None:
    im = Imatrix()
    im.add(DENSE, np.ones(4))
    assert saved(im, tmp_path).datasets == ()


def gguf_file(folder: Path, changes: dict[str, Any], **tensors: Any) -> Path:
    metadata: dict[str, Any] = {
        "general.type": "imatrix",
        "imatrix.datasets": ["a"],
        "imatrix.chunk_count": np.uint32(1),
        "imatrix.chunk_size": np.uint32(512),
    }
    metadata.update(changes)
    metadata = {k: v for k, v in metadata.items() if v is not None}
    content = {"in_sum2": np.ones((2, 4), np.float32), "counts": np.ones((2, 1), np.float32)}
    content.update(tensors)
    path = folder / "made.gguf"
    gguf.write(path, metadata, {f"w.{k}": v for k, v in content.items() if v is not None})
    return path


def test_counts_are_rounded_and_zero_means_one(tmp_path: Path) -> None:
    counts = np.array([[2.5], [0.0]], np.float32)
    sums = np.full((2, 4), 6, np.float32)
    im = imatrix.load(gguf_file(tmp_path, {}, in_sum2=sums, counts=counts))
    found = im.importance("w")
    assert found is not None
    assert found.tolist() == [[2.0] * 4, [1.0] * 4]


@pytest.mark.parametrize(
    "changes",
    [
        {"general.type": "model"},
        {"imatrix.datasets": None},
        {"imatrix.datasets": "a"},
        {"imatrix.datasets": np.arange(3)},
        {"imatrix.chunk_count": None},
        {"imatrix.chunk_size": None},
        {"imatrix.chunk_size": np.uint32(0)},
        {"imatrix.chunk_size": "512"},
    ],
)
def test_gguf_files_that_are_no_imatrix(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"^\[imatrix\.load\] expected .*, got "):
        imatrix.load(gguf_file(tmp_path, changes))


@pytest.mark.parametrize(
    "tensors",
    [
        {"counts": None},
        {"in_sum2": None},
        {"in_sum2": None, "counts": None},
        {"counts": np.ones(3, np.float32)},
        {"counts": np.ones((0, 1), np.float32)},
        {"counts": np.ones(2, np.float16)},
        {"counts": np.ones(2, np.int32)},
        {"in_sum2": np.array([1, np.nan], np.float32)},
        {"in_sum2": np.array([1, np.inf], np.float32)},
        {"in_sum2": np.array([1, -1], np.float32)},
        {"counts": np.array([1, np.inf], np.float32)},
        {"counts": np.array([1, -1], np.float32)},
    ],
)
def test_gguf_files_with_wrong_tensors(tensors: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"^\[imatrix\.load\] expected .*, got "):
        imatrix.load(gguf_file(tmp_path, {}, **tensors))


# the legacy file


def load_bytes(data: bytes, folder: Path, **options: Any) -> Imatrix:
    (folder / "im.dat").write_bytes(data)
    return imatrix.load(folder / "im.dat", **options)


def test_legacy_values_are_divided_by_the_calls(tmp_path: Path) -> None:
    data = legacy([(b"w", 3, [1.0, 5.0, 0.1]), (b"v", 0, [2.0])])
    for chunk_size in (512, 1, 2048):
        im = load_bytes(data, tmp_path, chunk_size=chunk_size)
        expected = np.array([1.0, 5.0, 0.1], np.float32) / np.float32(3)
        assert np.array_equal(im.importance("w"), expected)
        assert np.array_equal(im.importance("v"), np.float32([2.0]))  # no calls: as it stands
        assert (im.chunk_count, im.datasets) == (7, ("a.txt",))


def test_legacy_files_of_old_versions_end_after_the_entries(tmp_path: Path) -> None:
    im = load_bytes(legacy([(b"w", 1, [1.0])], tail=b""), tmp_path)
    assert (im.chunk_count, im.datasets, len(im)) == (0, (), 1)


def test_legacy_file_is_written_as_llama_imatrix_writes_it(tmp_path: Path) -> None:
    im = Imatrix(chunk_size=2, datasets=["x", "a.txt"])
    im.add("w", np.array([[1.0, 2.0], [1.0, 2.0], [4.0, 2.0]]))
    im.add("e", [[3.0], [5.0]], experts=[1, 1], n_expert=2)
    im.save(tmp_path / "im.dat", legacy=True)
    calls = np.float32(2)
    w = [float(np.float32(18) / np.float32(3) * calls), float(np.float32(4) * calls)]
    expected = legacy([(b"e", 1, [1.0, 17.0]), (b"w", 2, w)], struct.pack("<ii", 1, 5) + b"a.txt")
    assert (tmp_path / "im.dat").read_bytes() == expected


def test_legacy_file_comes_back(tmp_path: Path) -> None:
    im = example()
    again = saved(im, tmp_path, legacy=True)
    assert list(again) == list(im)
    assert again.datasets == ("b.txt",)
    for name in im:
        columns = im.importance(name).shape[-1]  # type: ignore[union-attr]
        assert np.allclose(again.importance(name, columns), im.importance(name), rtol=3e-7)  # type: ignore[arg-type]


def test_legacy_merges_with_experts(tmp_path: Path) -> None:
    old = load_bytes(legacy([(b"w", 1, [4.0, 2.0])]), tmp_path, chunk_size=2)
    new = Imatrix(chunk_size=2)
    new.add("w", [[1.0]], experts=[1], n_expert=2)
    found = new.merge(old).importance("w")
    assert found is not None
    assert found.tolist() == [[4.0], [np.float32(5) / np.float32(3)]]


def test_entries_without_tokens_are_left_out_of_legacy_files(tmp_path: Path) -> None:
    im = Imatrix()
    im.add("e", np.ones((0, 3)), experts=np.zeros((0, 1), int), n_expert=2)
    with pytest.raises(FormatError, match=r"\[Imatrix\.save\] expected an entry"):
        im.save(tmp_path / "x", legacy=True)
    im.add("w", np.ones(3))
    im.save(tmp_path / "x", legacy=True)
    assert list(imatrix.load(tmp_path / "x")) == ["w"]


def test_nothing_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"\[Imatrix\.save\]"):
        Imatrix().save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_names_too_long_for_gguf_are_refused(tmp_path: Path) -> None:
    im = Imatrix()
    im.add("w" * 60, np.ones(3))
    with pytest.raises(GGUFError):
        im.save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


ONE = [(b"w", 1, [1.0, 2.0])]


@pytest.mark.parametrize(
    ("field", "data"),
    [
        ("the file", b""),
        ("the file", b"\x01\0\0"),
        ("the number of entries", struct.pack("<i", 0) + bytes(60)),
        ("the number of entries", struct.pack("<i", -1) + bytes(60)),
        ("the number of entries", struct.pack("<i", 1 << 30) + bytes(60)),
        ("the length of the name of entry 0", struct.pack("<ii", 1, -1) + bytes(60)),
        ("the length of the name of entry 0", struct.pack("<ii", 1, 1 << 30) + bytes(60)),
        ("the name of entry 0", legacy([(b"\xff", 1, [1.0])])),
        ("the name of entry 1", legacy(ONE * 2)),
        ("the calls of entry 'w'", legacy([(b"w", -1, [1.0])])),
        ("the number of values of entry 'w'", legacy([(b"w", 1, [])])),
        ("entry 'w'", legacy([(b"w", 1, [1.0, np.nan])])),
        ("entry 'w'", legacy([(b"w", 1, [1.0, -1.0])])),
        ("entry 'w'", legacy([(b"w", 1, [1.0, np.inf])])),
        ("entry 'w'", legacy([(b"w", 1, [3e38])])),
        ("the number of chunks", legacy(ONE, struct.pack("<ii", -1, 0))),
        ("the length of the dataset", legacy(ONE, struct.pack("<ii", 1, 99))),
        ("the dataset", legacy(ONE, struct.pack("<ii", 1, 1) + b"\xff")),
        ("the file", legacy(ONE, struct.pack("<ii", 1, 0) + b"more")),
    ],
)
def test_hostile_legacy_files(field: str, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(
        GGUFError, match=rf"^\[imatrix\.load\] expected .* in {field} at byte \d+, got "
    ):
        load_bytes(data, tmp_path)


def test_legacy_truncated_at_every_byte(tmp_path: Path) -> None:
    whole = legacy([(b"w", 1, [1.0, 2.0]), (b"v", 2, [3.0])])
    for size in range(len(whole)):
        if size == len(whole) - 13:  # the end of the entries is the end of an old file
            continue
        with pytest.raises(GGUFError, match=r"at byte \d+"):
            load_bytes(whole[:size], tmp_path)


def test_legacy_mutations(tmp_path: Path) -> None:
    rng = random.Random(0)
    start = legacy([(b"w", 1, [1.0, 2.0]), (b"v", 2, [3.0])])
    accepted = 0
    for _ in range(1000):
        data = bytearray(start)
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.randrange(len(data))
            data[at] = rng.choice((0, 1, 127, 128, 255, data[at] ^ (1 << rng.randrange(8))))
        try:
            load_bytes(bytes(data), tmp_path).coverage()
            accepted += 1
        except GGUFError:
            pass
    assert 100 < accepted < 900


@given(st.binary(max_size=120))
def test_any_bytes(tmp_path_factory: Any, data: bytes) -> None:
    with pytest.raises(GGUFError):
        load_bytes(data + b"\xff\xff\xff\xff", tmp_path_factory.mktemp("any"))
