"""Opening: values and views, their lifetime, and the cost of a large vocabulary."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from images import good, image, tensor

from kvant import gguf
from kvant.errors import GGUFError
from kvant.qtensor import QTensor


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "good.gguf"
    path.write_bytes(good())
    return path


@pytest.mark.parametrize("mapped", [True, False])
def test_values_have_the_types_of_the_file(path: Path, mapped: bool) -> None:
    with gguf.open(path, mapped=mapped) as file:
        values = dict(file.metadata)
        assert file.version == 3
        assert file.alignment == 32
        assert file.paths == (path,)
    assert next(iter(values)) == "general.architecture"
    assert values["general.name"] == "κβαντ"
    numbers = {
        "a.u8": np.uint8(7),
        "a.i8": np.int8(-7),
        "a.u16": np.uint16(0x201),
        "a.i16": np.int16(-1),
        "a.u32": np.uint32(1 << 31),
        "a.i32": np.int32(-2),
        "a.f32": np.float32(0.1),
        "a.u64": np.uint64(1 << 63),
        "a.i64": np.int64(-5),
        "a.f64": np.float64(-0.1),
    }
    for key, expected in numbers.items():
        assert type(values[key]) is type(expected)
        assert values[key] == expected
    assert values["a.yes"] is True
    assert values["a.no"] is False
    assert values["b.tokens"] == ["<s>", "", "▁é", "x"]
    assert values["b.scores"].dtype == np.float32
    assert values["b.scores"].tolist() == [0.0, -1.5, 2.0]
    assert values["b.flags"].tolist() == [True, False, True]
    assert values["b.types"].tolist() == [-1, 1]
    assert values["b.none"].dtype == np.uint64
    assert values["b.none"].size == 0
    assert len(values["b.words"]) == 0


def test_tensors_are_views_in_numpy_order(path: Path) -> None:
    with gguf.open(path) as file:
        assert list(file.tensors) == ["blk.0.q4", "norm", "ids", "half"]
        q4, norm = file.tensors["blk.0.q4"], file.tensors["norm"]
        half, ids = file.tensors["half"], file.tensors["ids"]
    assert isinstance(q4, QTensor)
    assert (q4.format, q4.shape, q4.data.shape) == ("q4_0", (2, 32), (2, 18))
    assert q4.data.tobytes() == bytes(range(36))
    assert isinstance(norm, QTensor)
    assert (norm.format, norm.shape) == ("f32", (3,))
    assert norm.data.view("<f4").tolist() == [1.0, 2.0, 3.0]
    assert isinstance(half, QTensor)
    assert (half.format, half.shape) == ("f16", (2, 1, 4))
    assert isinstance(ids, np.ndarray)
    assert ids.dtype == np.int32
    assert ids.tolist() == [[1, -2], [3, -4]]


def test_views_are_read_only_and_not_copies(path: Path) -> None:
    file = gguf.open(path)
    q4, ids = file.tensors["blk.0.q4"], file.tensors["ids"]
    assert isinstance(q4, QTensor)
    assert isinstance(ids, np.ndarray)
    for array in (q4.data, ids, file.metadata["b.scores"]):
        assert not array.flags.writeable
        assert not array.flags.owndata
    again = file.tensors["ids"]
    assert isinstance(again, np.ndarray)
    assert np.shares_memory(ids, again)


def test_infos_need_no_data(path: Path) -> None:
    info = gguf.open(path).tensors.info("blk.0.q4")
    assert (info.name, info.type.name, info.shape, info.nbytes) == ("blk.0.q4", "q4_0", (2, 32), 36)
    assert good()[info.start : info.start + info.nbytes] == bytes(range(36))


def test_mappings_behave(path: Path) -> None:
    file = gguf.open(path)
    assert "ids" in file.tensors
    assert "id" not in file.tensors
    assert file.metadata.get("none", 1) == 1
    for mapping in (file.metadata, file.tensors):
        with pytest.raises(KeyError):
            mapping["none"]
    assert "21 keys, 4 tensors" in repr(file)


def test_views_outlive_the_file(path: Path) -> None:
    file = gguf.open(path)
    ids, metadata = file.tensors["ids"], file.metadata
    tokens = metadata["b.tokens"]
    file.close()
    file.close()
    path.unlink()
    gc.collect()
    assert isinstance(ids, np.ndarray)
    assert ids.tolist() == [[1, -2], [3, -4]]
    assert tokens[2] == "▁é"
    assert metadata["general.architecture"] == "llama"


def test_a_closed_file_says_so(path: Path) -> None:
    with gguf.open(path) as file:
        pass
    assert "closed" in repr(file)
    with pytest.raises(GGUFError, match="closed"):
        _ = file.metadata
    with pytest.raises(GGUFError, match="closed"):
        _ = file.tensors


def test_closing_unmaps(path: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    file = gguf.open(path)
    assert str(path) in maps.read_text()
    file.close()
    assert str(path) not in maps.read_text()


def test_bytes_behind_the_last_tensor_are_ignored() -> None:
    file = gguf.from_buffer(good() + b"appended")
    assert len(file.tensors) == 4


def test_every_buffer_is_taken(path: Path) -> None:
    data = good()
    for buffer in (data, bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        assert gguf.from_buffer(buffer).metadata["a.u8"] == 7
    writable = np.frombuffer(bytearray(data), np.uint8)
    gguf.from_buffer(writable)
    assert writable.flags.writeable


def test_real_files_open(shared: Path) -> None:
    with gguf.open(shared / "data/gguf_vocab/ggml-vocab-gpt-2.gguf") as file:
        assert len(file.metadata["tokenizer.ggml.tokens"]) == 50257
        assert file.metadata["tokenizer.ggml.tokens"][-1] == "<|endoftext|>"
        assert file.metadata["tokenizer.ggml.merges"][0] == "Ġ t"
    with gguf.open(shared / "models/tiny-moe/model.gguf") as file:
        assert file.metadata["general.architecture"] == "qwen3moe"
        assert all(np.prod(t.shape) > 0 for t in file.tensors.values())


def vocabulary(count: int) -> list[str]:
    rng = np.random.default_rng(3)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz▁é"))
    picks = rng.integers(0, len(letters), (count, 12))
    lengths = rng.integers(1, 13, count)
    return ["".join(letters[p[:n]]) for p, n in zip(picks, lengths, strict=True)]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like that of a model with 262,144 tokens: about 12 MB of header, 400 tensors."""
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    tokens = vocabulary(1 << 18)
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.zeros(len(tokens), np.float32),
        "tokenizer.ggml.token_type": np.ones(len(tokens), np.int32),
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in pairwise(tokens)],
    }
    gguf.write(path, metadata, {f"blk.{i}.w": np.zeros(8, np.float32) for i in range(400)})
    return path


def test_a_large_vocabulary_opens_in_milliseconds(large: Path) -> None:
    times = []
    for _ in range(15):
        clock = time.perf_counter()
        gguf.open(large).close()
        times.append(time.perf_counter() - clock)
    # The goal is 10 ms on an idle core (docs/gguf.md); decoding the strings would take 100.
    assert min(times) < 0.030


_RSS = """
import sys
from kvant import gguf
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
gguf.open(sys.argv[2]).close()
before = resident()
file = gguf.open(sys.argv[1])
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_large_vocabulary_takes_no_memory(large: Path, path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RSS, str(large), str(path)],
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 5 << 20


def test_two_dimensional_shapes_are_reversed() -> None:
    file = gguf.from_buffer(image((), [tensor(b"w", (2, 3), 24, 0)], bytes(range(32))))
    assert np.asarray(file.tensors["w"]).tolist() == [[0, 1], [2, 3], [4, 5]]
