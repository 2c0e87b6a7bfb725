"""Against gguf-py, the reference implementation in Python: each reads what the other writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant import gguf
from kvant.qtensor import QTensor

peer: Any = pytest.importorskip("gguf")

VALUES: dict[str, tuple[str, Any]] = {
    "x.u8": ("UINT8", np.uint8(200)),
    "x.i8": ("INT8", np.int8(-3)),
    "x.u16": ("UINT16", np.uint16(65535)),
    "x.i16": ("INT16", np.int16(-300)),
    "x.u32": ("UINT32", np.uint32(4_000_000_000)),
    "x.i32": ("INT32", np.int32(-70_000)),
    "x.f32": ("FLOAT32", np.float32(1.25)),
    "x.u64": ("UINT64", np.uint64(1 << 60)),
    "x.i64": ("INT64", np.int64(-(1 << 60))),
    "x.f64": ("FLOAT64", np.float64(0.1)),
    "x.bool": ("BOOL", True),
    "x.text": ("STRING", "naïve ▁ 日本"),
}
ARRAYS: dict[str, Any] = {
    "y.words": ["a", "", "▁b", "日"],
    "y.ints": [1, -2, 3],
    "y.floats": [0.5, -1.25],
    "y.flags": [True, False, True],
}


def tensors() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {
        "f32": rng.standard_normal((3, 5)).astype(np.float32),
        "f16": rng.standard_normal((2, 3, 4)).astype(np.float16),
        "f64": rng.standard_normal(7),
        "i8": rng.integers(-99, 99, (2, 2, 2, 3)).astype(np.int8),
        "i16": rng.integers(-99, 99, 5).astype(np.int16),
        "i32": rng.integers(-99, 99, (1, 4)).astype(np.int32),
        "i64": rng.integers(-99, 99, (4, 1)).astype(np.int64),
    }
    for name, rows, columns, row_bytes in (
        ("q4_0", 3, 64, 36),
        ("q8_0", 2, 32, 34),
        ("q4_k", 2, 512, 288),
        ("q6_k", 1, 256, 210),
        ("iq4_xs", 2, 256, 136),
        ("mxfp4", 4, 32, 17),
        ("bf16", 2, 10, 20),
        ("tq1_0", 1, 256, 54),
    ):
        raw = rng.integers(0, 256, rows * row_bytes).astype(np.uint8)
        made[name] = QTensor.from_bytes(raw, name, (rows, columns))
    return made


def raw_of(tensor: Any) -> bytes:
    data: bytes = (tensor.data if isinstance(tensor, QTensor) else np.asarray(tensor)).tobytes()
    return data


def test_gguf_py_reads_ours(tmp_path: Path) -> None:
    made = tensors()
    metadata = {k: v for k, (_, v) in VALUES.items()} | ARRAYS
    gguf.write(tmp_path / "ours.gguf", metadata, made)
    reader = peer.GGUFReader(tmp_path / "ours.gguf")
    for key, value in metadata.items():
        field = reader.fields[key]
        assert field.contents() == value, key
        if key in VALUES:
            assert field.types == [peer.GGUFValueType[VALUES[key][0]]]
    assert reader.fields["y.ints"].types[1] == peer.GGUFValueType.INT32
    assert [t.name for t in reader.tensors] == list(made)
    for found in reader.tensors:
        tensor = made[found.name]
        assert found.tensor_type.name.lower() == found.name
        assert found.shape.tolist()[::-1] == list(tensor.shape)
        assert found.data.tobytes() == raw_of(tensor)


def written_by_peer(path: Path, **options: Any) -> dict[str, Any]:
    made = tensors()
    writer = peer.GGUFWriter(path, "llama", **options)
    for key, (kind, value) in VALUES.items():
        plain = value.item() if isinstance(value, np.generic) else value
        writer.add_key_value(key, plain, peer.GGUFValueType[kind])
    for key, values in ARRAYS.items():
        writer.add_array(key, values)
    for name, tensor in made.items():
        if isinstance(tensor, QTensor):
            kind = peer.GGMLQuantizationType[name.upper()]
            writer.add_tensor(name, np.ascontiguousarray(tensor.data), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


def check(file: gguf.GGUFFile, made: dict[str, Any]) -> None:
    assert file.metadata["general.architecture"] == "llama"
    for key, (_, value) in VALUES.items():
        assert file.metadata[key] == value
        assert type(file.metadata[key]) is type(value)
    for key, values in ARRAYS.items():
        assert list(file.metadata[key]) == values
    assert set(file.tensors) == set(made)
    for name, tensor in made.items():
        found = file.tensors[name]
        assert tuple(found.shape) == tuple(tensor.shape), name
        assert raw_of(found) == raw_of(tensor), name
        if isinstance(tensor, QTensor):
            assert isinstance(found, QTensor)
            assert found.format == tensor.format


def test_we_read_what_gguf_py_writes_and_write_it_back(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    made = written_by_peer(path)
    with gguf.open(path) as file:
        check(file, made)
        gguf.write(tmp_path / "again.gguf", file.metadata, file.tensors)
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


def test_we_read_the_splits_that_gguf_py_writes(tmp_path: Path) -> None:
    made = written_by_peer(tmp_path / "split.gguf", split_max_tensors=4)
    parts = sorted(tmp_path.glob("split-*.gguf"))
    assert len(parts) == 4
    for part in parts:
        with gguf.open(part) as file:
            check(file, made)
            assert not any(k.startswith("split.") for k in file.metadata)
