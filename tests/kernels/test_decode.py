"""QTensor.dequantize: every ISA gives the floats of the reference, for any bytes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from blocks import NAMES, block_counts, cols_of, random_rows, row_counts
from hypothesis import given
from hypothesis import strategies as st

import kvant
from golden_files import ANSWERS, golden
from kvant.reference import FORMATS, decode
from support import bits, differing, every_isa

seeds = st.integers(0, 2**32 - 1)


def tensor(data, name):
    info = kvant.format_info(name)
    return kvant.QTensor(data, name, (len(data), data.shape[1] // info.block_bytes * info.block))


def check(data, name):
    wanted = decode(data, name).view(np.uint32)
    before = data.tobytes()
    for isa in every_isa():
        found = tensor(data, name).dequantize().view(np.uint32)
        assert np.array_equal(found, wanted), differing(f"{name} on {isa}", found, wanted)
    assert data.tobytes() == before


@pytest.mark.parametrize("name", ANSWERS)
def test_golden(isa, name):
    answer = golden(name)
    assert answer.matches_decoded_bytes(tensor(answer.raw, name).dequantize())
    if answer.encoded is not None:
        assert answer.matches_decoded(tensor(answer.encoded, name).dequantize())


@pytest.mark.parametrize("name", NAMES)
@given(rows=row_counts, blocks=block_counts, seed=seeds)
def test_any_bytes_decode_as_by_the_reference(name, rows, blocks, seed):
    check(random_rows(name, rows, blocks, seed), name)


@pytest.mark.parametrize("fill", [0, 1, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_one_byte(name, fill):
    check(np.full((3, 5 * FORMATS[name].block_bytes), fill, np.uint8), name)


@pytest.mark.parametrize("name", [n for n in NAMES if FORMATS[n].block > 1])
def test_every_byte_value_at_every_place_of_a_block(name):
    size = FORMATS[name].block_bytes
    data = np.full((256, size, size), 0x35, np.uint8)
    for place in range(size):
        data[:, place, place] = np.arange(256)
    check(data.reshape(256, size * size), name)


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_all_halves(name):
    check(np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(1, -1), name)


@pytest.mark.parametrize("name", NAMES)
@given(seed=seeds)
def test_halves_are_the_rounded_floats(name, seed):
    data = random_rows(name, 3, 2, seed)
    wide = decode(data, name)
    for dtype, kind in [(np.float16, "f16"), (ml_dtypes.bfloat16, "bf16")]:
        with np.errstate(over="ignore", invalid="ignore"):
            wanted = bits(wide.astype(dtype).astype(np.float32))
        for isa in every_isa():
            found = tensor(data, name).dequantize(kind)
            assert found.dtype == dtype
            with np.errstate(invalid="ignore"):
                assert np.array_equal(bits(found.astype(np.float32)), wanted), (isa, kind)


@pytest.mark.parametrize("name", NAMES)
def test_results_large_enough_to_bypass_the_caches(name, isa):
    """From 8 MiB on, aligned results are streamed; unaligned ones and small ones are not."""
    cols = cols_of(name, 1)
    rows = (9 << 20) // (4 * cols)
    some = random_rows(name, 64, 1, 3)
    q = tensor(np.tile(some, (-(-rows // 64), 1))[:rows], name)
    few = tensor(some, name).dequantize().view(np.uint32)
    room = np.empty(rows * cols + 1, np.float32)
    for out in (None, room[:-1].reshape(q.shape), room[1:].reshape(q.shape)):
        whole = q.dequantize(out=out).view(np.uint32)
        assert np.array_equal(whole[: 64 * (rows // 64)].reshape(-1, 64, cols)[-1], few)
        assert all(np.array_equal(part, few) for part in whole[: 64 * 4].reshape(-1, 64, cols))


@pytest.mark.parametrize("name", NAMES)
@given(seed=seeds, rows=st.lists(st.integers(-9, 8), max_size=20))
def test_gathered_rows_are_the_rows(name, seed, rows):
    q = tensor(random_rows(name, 9, 2, seed), name)
    whole = q.dequantize().view(np.uint32)
    index = np.array(rows, np.int64)
    for _ in every_isa():
        assert np.array_equal(q.dequantize(rows=rows).view(np.uint32), whole[index])
