"""Writing: what is read is written back byte for byte; what is wrong leaves nothing behind."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import F32, U32, array, good, image, pair, tensor, u32

from kvant import gguf
from kvant.errors import GGUFError
from kvant.qtensor import QTensor


def rewritten(data: bytes, folder: Path) -> bytes:
    path = folder / "again.gguf"
    file = gguf.from_buffer(data)
    gguf.write(path, file.metadata, file.tensors)
    return path.read_bytes()


def reread(folder: Path, metadata: Any, tensors: Any, **options: Any) -> gguf.GGUFFile:
    path = folder / "new.gguf"
    gguf.write(path, metadata, tensors, **options)
    return gguf.open(path)


def test_read_and_written_is_the_same_file(tmp_path: Path) -> None:
    assert rewritten(good(), tmp_path) == good()


def test_alignment_is_kept(tmp_path: Path) -> None:
    infos = [tensor(b"a", (3,), 0, 0), tensor(b"b", (3,), 0, 64)]
    pairs = [pair(b"general.alignment", U32, u32(64))]
    data = image(pairs, infos, (b"\1" * 12 + bytes(52)) * 2, alignment=64)
    assert gguf.from_buffer(data).alignment == 64
    assert rewritten(data, tmp_path) == data


def test_version_2_is_read_and_becomes_version_3(tmp_path: Path) -> None:
    old = good()[:4] + u32(2) + good()[8:]
    assert gguf.from_buffer(old).version == 2
    assert rewritten(old, tmp_path) == good()


def test_real_files_come_back_byte_for_byte(shared: Path, tmp_path: Path) -> None:
    paths = [*shared.glob("models/*/model.gguf"), *shared.glob("data/gguf_vocab/*.gguf")]
    assert paths
    for path in paths:
        with gguf.open(path) as file:
            gguf.write(tmp_path / "copy.gguf", file.metadata, file.tensors)
        assert (tmp_path / "copy.gguf").read_bytes() == path.read_bytes(), path


def test_python_values_take_the_documented_types(tmp_path: Path) -> None:
    cases: dict[str, tuple[Any, Any]] = {
        "u32": (7, np.uint32(7)),
        "i32": (-7, np.int32(-7)),
        "u64": (1 << 40, np.uint64(1 << 40)),
        "i64": (-(1 << 40), np.int64(-(1 << 40))),
        "f32": (0.5, np.float32(0.5)),
        "f64": (np.float64(0.1), np.float64(0.1)),
        "u8": (np.uint8(9), np.uint8(9)),
        "big": (np.array(258, dtype=">u2")[()], np.uint16(258)),
        "yes": (True, True),
        "np yes": (np.bool_(True), True),
        "text": ("αβγ\0", "αβγ\0"),
        "ints": ([1, -1], np.array([1, -1], dtype=np.int32)),
        "large": ([1, 1 << 31], np.array([1, 1 << 31], dtype=np.uint32)),
        "floats": ([1, 0.5], np.array([1, 0.5], dtype=np.float32)),
        "flags": ([True, False], np.array([True, False])),
        "typed": ([np.int8(1), np.int8(-1)], np.array([1, -1], dtype=np.int8)),
        "array": (np.arange(3, dtype=">u2"), np.arange(3, dtype=np.uint16)),
        "strided": (np.arange(6.0)[::2], np.array([0.0, 2.0, 4.0])),
        "none": (np.empty(0, np.float64), np.empty(0)),
        "words": (["a", "", "é"], ["a", "", "é"]),
        "str array": (np.array(["x", "yz"]), ["x", "yz"]),
        "no words": (np.empty(0, np.str_), []),
    }
    file = reread(tmp_path, {k: v for k, (v, _) in cases.items()}, {})
    assert list(file.metadata) == list(cases)
    for key, (_, expected) in cases.items():
        value = file.metadata[key]
        kind = gguf.StringArray if isinstance(expected, list) else type(expected)
        assert isinstance(value, kind), key
        if isinstance(expected, np.ndarray):
            assert value.dtype == expected.dtype, key
            assert np.array_equal(value, expected), key
            assert not value.flags.writeable
        else:
            assert value == expected, key


def test_nan_payloads_survive(tmp_path: Path) -> None:
    bits = np.array([0x7F800001, 0xFFC12345], dtype=np.uint32)
    data = image([pair(b"s", F32, bits[:1].tobytes()), array(b"a", F32, 2, bits.tobytes())])
    assert rewritten(data, tmp_path) == data


@pytest.mark.parametrize(
    "value",
    [
        None,
        object(),
        b"bytes",
        1 << 64,
        -(1 << 63) - 1,
        1e300,
        1j,
        np.float16(1),
        np.zeros((2, 2)),
        np.zeros(2, np.complex64),
        [],
        [1, "a"],
        [True, 1],
        [[1]],
        [np.int8(1), np.int16(1)],
        "\ud800",
        ["\ud800"],
    ],
)
def test_values_without_a_type_are_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"^\[gguf\.write\] expected .*, got "):
        gguf.write(tmp_path / "x.gguf", {"k": value}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["", "k" * 1025, "a\0b", "\ud800"])
def test_bad_keys_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"\[gguf\.write\]"):
        gguf.write(tmp_path / "x.gguf", {key: 1}, {})


@pytest.mark.parametrize("name", ["", "w" * 64, "é" * 32, "a\0b"])
def test_bad_tensor_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"\[gguf\.write\]"):
        gguf.write(tmp_path / "x.gguf", {}, {name: np.zeros(4, np.float32)})
    gguf.write(tmp_path / "x.gguf", {}, {"w" * 63: np.zeros(4, np.float32)})


@pytest.mark.parametrize(
    "item",
    [
        np.zeros(4, np.uint8),
        np.zeros(4, np.complex64),
        np.zeros(4, np.bool_),
        np.zeros((1, 1, 1, 1, 1), np.float32),
        gguf.TensorSource("q9_9", (32,), lambda: b""),
        gguf.TensorSource("q4_0", (31,), lambda: b""),
        gguf.TensorSource("f32", (-1,), lambda: b""),
        [1.0, 2.0],
    ],
)
def test_bad_tensors_are_refused(item: Any, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"\[gguf\.write\] expected .*'w', got "):
        gguf.write(tmp_path / "x.gguf", {}, {"w": item})
    assert list(tmp_path.iterdir()) == []


def test_alignment_rules(tmp_path: Path) -> None:
    tensors = {"a": np.arange(3, dtype=np.int8), "b": np.arange(3, dtype=np.int8)}
    file = reread(tmp_path, {}, tensors, alignment=8)
    assert file.alignment == 8
    assert file.metadata["general.alignment"] == 8
    assert file.tensors["b"].tolist() == [0, 1, 2]
    assert "general.alignment" not in reread(tmp_path, {}, tensors, alignment=32).metadata
    for metadata, alignment in (
        ({}, 0),
        ({}, 48),
        ({}, 1 << 31),
        ({"general.alignment": 64}, 32),
        ({"general.alignment": np.uint64(64)}, None),
    ):
        with pytest.raises(GGUFError, match=r"\[gguf\.write\] expected .*alignment"):
            gguf.write(tmp_path / "x.gguf", metadata, tensors, alignment)


def test_metadata_of_a_split_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="split"):
        gguf.write(tmp_path / "x.gguf", {"split.count": np.uint16(2)}, {})


def test_sources_are_loaded_one_at_a_time_and_in_order(tmp_path: Path) -> None:
    calls: list[str] = []

    def source(name: str, rows: int) -> gguf.TensorSource:
        def load() -> Any:
            calls.append(name)
            for row in range(rows):
                calls.append(f"{name}{row}")
                yield np.full((1, 4), row, np.float32)

        return gguf.TensorSource("f32", (rows, 4), load)

    file = reread(tmp_path, {}, {"a": source("a", 2), "b": source("b", 1)})
    assert calls == ["a", "a0", "a1", "b", "b0"]
    values = file.tensors["a"].data.view("<f4")
    assert values.tolist() == [[0.0] * 4, [1.0] * 4]


def test_a_source_may_give_every_kind_of_piece(tmp_path: Path) -> None:
    raw = np.arange(36, dtype=np.uint8).reshape(2, 18)
    whole = QTensor.from_bytes(raw.reshape(-1), "q4_0", (2, 32))
    halves = [QTensor.from_bytes(r, "q4_0", (1, 32)) for r in raw]
    for made in (whole, halves, raw, raw.tobytes(), [raw[:1].tobytes(), raw[1:]]):
        source = gguf.TensorSource("q4_0", (2, 32), lambda made=made: made)
        assert reread(tmp_path, {}, {"w": source}).tensors["w"].data.tobytes() == raw.tobytes()


@pytest.mark.parametrize(
    "made",
    [
        b"short",
        bytes(37),
        [bytes(18), bytes(19)],
        np.zeros((2, 32), np.float32),
        QTensor.from_bytes(np.zeros(40, np.uint8), "q4_1", (2, 32)),
    ],
)
def test_a_source_that_lies_leaves_nothing_behind(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"the file before")
    with pytest.raises(GGUFError, match="from the source of 'w'"):
        gguf.write(path, {}, {"w": gguf.TensorSource("q4_0", (2, 32), lambda: made)})
    assert path.read_bytes() == b"the file before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def load() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gguf.write(tmp_path / "x.gguf", {}, {"w": gguf.TensorSource("f32", (4,), load)})
    assert list(tmp_path.iterdir()) == []


def test_a_file_may_be_written_over_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(good())
    with gguf.open(path) as file:
        kept = file.tensors["ids"]
        gguf.write(path, {**file.metadata, "new": 1}, file.tensors)
    assert kept.tolist() == [[1, -2], [3, -4]]
    assert gguf.open(path).metadata["new"] == 1


def test_inputs_are_not_modified(tmp_path: Path) -> None:
    metadata = {"a": [1, 2]}
    w = np.asfortranarray(np.arange(12, dtype=">f4").reshape(3, 4))
    before = w.copy()
    file = reread(tmp_path, metadata, {"w": w}, alignment=64)
    assert metadata == {"a": [1, 2]}
    assert np.array_equal(w, before)
    assert file.tensors["w"].data.view("<f4").tolist() == before.tolist()


_SCALARS = st.one_of(
    st.booleans(),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.integers(0, (1 << 32) - 1).map(np.uint32),
    st.integers(-(1 << 63), (1 << 63) - 1).map(np.int64),
    st.floats(allow_nan=False).map(np.float64),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=1, max_size=8),
)
_KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=15)


@given(metadata=st.dictionaries(_KEYS, _SCALARS, max_size=8))
def test_any_metadata_comes_back(metadata: dict[str, Any], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("metadata")
    file = reread(folder, metadata, {})
    assert list(file.metadata.items()) == list(metadata.items())
    assert (
        rewritten((folder / "new.gguf").read_bytes(), folder) == (folder / "new.gguf").read_bytes()
    )


_SHAPES = st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple)
_DTYPES = st.sampled_from(["<f4", "<f2", "<f8", "<i1", "<i2", "<i4", "<i8"])


@given(
    shapes=st.lists(st.tuples(_SHAPES, _DTYPES), max_size=5),
    alignment=st.sampled_from([8, 32, 4096]),
)
def test_any_tensors_come_back(shapes: Any, alignment: int, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("tensors")
    rng = np.random.default_rng(len(shapes))
    tensors = {
        f"t{i}": rng.integers(-100, 100, shape).astype(dtype)
        for i, (shape, dtype) in enumerate(shapes)
    }
    file = reread(folder, {}, tensors, alignment=alignment)
    assert list(file.tensors) == list(tensors)
    for name, array_ in tensors.items():
        found = file.tensors[name]
        info = file.tensors.info(name)
        assert info.shape == array_.shape
        assert info.start % alignment == 0
        data = found.data if isinstance(found, QTensor) else found
        assert data.tobytes() == array_.tobytes()


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    gguf.write(path, {"k": np.uint8(5)}, {"w": np.array([1.0, 2.0], np.float32)})
    data = path.read_bytes()
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += struct.pack("<Q1sIB", 1, b"k", 0, 5) + struct.pack("<Q1sIQIQ", 1, b"w", 1, 2, 0, 0)
    assert data[: len(head)] == head
    assert data[len(head) :] == bytes(-len(head) % 32) + struct.pack("<2f", 1, 2) + bytes(24)
    assert re.fullmatch(rb"GGUF.*", data, re.DOTALL)
