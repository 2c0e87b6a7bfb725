"""Packing: no byte is lost, the layout is the documented one, on every ISA."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from blocks import NAMES, cols_of, random_rows, seeds
from hypothesis import given
from hypothesis import strategies as st

import kvant
from kvant.reference import FORMATS
from support import every_isa

# Around the sixteen rows of a tile.
rows_ = st.one_of(st.integers(0, 50), st.sampled_from([15, 16, 17, 32, 33]))


def tensor(name, *shape, seed=0):
    info = kvant.format_info(name)
    data = np.random.default_rng(seed).integers(
        0, 256, (*shape[:-1], info.row_bytes(shape[-1])), np.uint8
    )
    return kvant.QTensor(data, name, shape)


@pytest.mark.parametrize("name", NAMES)
@given(rows=rows_, blocks=st.integers(0, 11), seed=seeds, threads=st.integers(1, 4))
def test_unpacking_gives_back_every_byte(name, rows, blocks, seed, threads):
    cols = cols_of(name, blocks) if blocks else 0
    q = kvant.QTensor(
        random_rows(name, rows, blocks, seed) if blocks else np.zeros((rows, 0), np.uint8),
        name, (rows, cols),
    )  # fmt: skip
    packings = []
    for isa in every_isa():
        p = q.pack(threads=threads)
        assert (p.format, p.shape, p.ndim) == (name, (rows, cols), 2)
        assert p.nbytes == kvant._core.packed_bytes(q.info.number, rows, cols)
        assert p.nbytes == -(-rows // 16) * (-(-16 * q.info.row_bytes(cols) // 64) * 64)
        assert p.unpack(threads=threads) == q, isa
        packings.append(p.data)
    assert all(np.array_equal(p, packings[0]) for p in packings)


@pytest.mark.parametrize("name", NAMES)
def test_stacks(name, isa):
    q = tensor(name, 5, 19, cols_of(name, 3))
    p = q.pack()
    assert (p.ndim, len(p), p.data.shape[0]) == (3, 5, 5)
    assert p.unpack() == q
    assert p[3].unpack() == q[3]
    assert p[-1].unpack() == q[-1]
    assert p[np.int64(0)].shape == q.shape[1:]


@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (0, 0), (0, 3, 64), (2, 0, 64), (2, 3, 0)])
@pytest.mark.parametrize("name", ["q4_0", "f16"])
def test_empty_ones(name, shape):
    q = tensor(name, *shape)
    p = q.pack()
    assert (p.shape, p.nbytes) == (shape, 0)
    assert p.unpack() == q
    assert pickle.loads(pickle.dumps(p)).unpack() == q


def test_strided_and_read_only_rows():
    q = tensor("q6_k", 40, 512)
    assert q[::3].pack().unpack() == q[::3]
    assert q[::-1].pack().unpack() == q[::-1]
    mapped = kvant.QTensor(
        np.frombuffer(b"?" + q.data.tobytes(), np.uint8)[1:].reshape(40, -1), "q6_k", q.shape
    )
    assert mapped.pack().unpack() == q


@pytest.mark.parametrize("name", ["q4_k", "iq2_xs", "bf16"])
@pytest.mark.parametrize("lead", [(21,), (3, 5)])
def test_copies_and_pickles(name, lead):
    q = tensor(name, *lead, 256)
    p = q.pack()
    for other in (pickle.loads(pickle.dumps(p)), copy.deepcopy(p), copy.copy(p)):
        assert (other.format, other.shape) == (p.format, p.shape)
        assert np.array_equal(other.data, p.data)
        assert other.unpack() == q


def test_the_layout_of_q4_0():
    """Two blocks of a full tile: words of codes by row, then the scales of both blocks."""
    q = tensor("q4_0", 16, 64)
    blocks = q.data.reshape(16, 2, 18)
    codes = blocks[:, :, 2:].reshape(16, 2, 4, 4).transpose(1, 2, 0, 3)
    scales = blocks[:, :, :2].transpose(1, 0, 2)
    assert q.pack().data.tobytes() == codes.tobytes() + scales.tobytes()


def test_the_layout_of_chunks():
    """Every 256 columns of a tile lie together; rows past the last are zeros."""
    q = tensor("q8_0", 17, 320)
    tiles = q.pack().data.reshape(2, -1)
    for first, last in ((0, 256), (256, 320)):
        cut = slice(first // 32 * 34, last // 32 * 34)
        data = np.zeros((32, q.data.shape[1]), np.uint8)
        data[:17] = q.data
        for t in range(2):
            part = kvant.QTensor(data[16 * t : 16 * t + 16, cut].copy(), "q8_0", (16, last - first))
            packed = part.pack().data
            assert np.array_equal(
                tiles[t, 16 * cut.start : 16 * cut.stop], packed[: 16 * 34 * (last - first) // 32]
            )


@pytest.mark.parametrize("name", [n for n in NAMES if FORMATS[n].block == 1])
@pytest.mark.parametrize("cols", [48, 49])
def test_the_layout_of_floats(name, cols):
    """Words of four bytes by row, then the last half of each row where their number is odd."""
    q = tensor(name, 16, cols)
    whole = q.data.shape[1] // 4 * 4
    packed = q.data[:, :whole].reshape(16, -1, 4).transpose(1, 0, 2).tobytes()
    packed += q.data[:, whole:].tobytes()
    assert q.pack().data.tobytes()[: len(packed)] == packed


def test_it_tells_what_it_is():
    p = tensor("q8_0", 3, 20, 64).pack()
    assert repr(p) == f"PackedTensor(q8_0, (3, 20, 64), {3 * 2 * 16 * 68} bytes)"
    assert p.data.ctypes.data % 64 == 0 and p[1].data.ctypes.data % 64 == 0


@pytest.mark.parametrize("index", [True, slice(0, 1), None, 1.0])
def test_what_cannot_be_taken_of_a_stack(index):
    with pytest.raises(kvant.ShapeError, match=r"\[PackedTensor\] expected the index of one"):
        tensor("q8_0", 3, 20, 64).pack()[index]


def test_what_cannot_be_packed_or_taken():
    with pytest.raises(kvant.ShapeError, match=r"\[pack\] expected \[n, k\] or .* got \(64,\)"):
        tensor("q8_0", 64).pack()
    with pytest.raises(kvant.ShapeError, match=r"\[pack\] expected \[n, k\]"):
        tensor("q8_0", 1, 1, 1, 32).pack()
    with pytest.raises(kvant.ShapeError, match="expected the index of one expert, got 0"):
        tensor("q8_0", 20, 64).pack()[0]
    with pytest.raises(IndexError):
        tensor("q8_0", 2, 20, 64).pack()[2]
