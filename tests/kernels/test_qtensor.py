"""QTensor: what it keeps, slices, copies, and gathered rows."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from blocks import NAMES, cols_of, normal, random_rows
from hypothesis import given
from hypothesis import strategies as st

import kvant


class TestWhatATensorIs:
    def test_attributes(self):
        q = kvant.quantize(normal(2, 3, 512), "q4_k")
        assert (q.format, q.shape, q.ndim, len(q)) == ("q4_k", (2, 3, 512), 3, 2)
        assert q.data.shape == (2, 3, 288) and q.data.dtype == np.uint8
        assert (q.nbytes, q.bits_per_weight) == (6 * 288, 4.5)
        assert repr(q) == "QTensor(q4_k, (2, 3, 512), 1728 bytes)"

    def test_data_are_kept_not_copied(self):
        data = np.zeros((2, 34), np.uint8)
        assert kvant.QTensor(data, "q8_0", (2, 32)).data is data
        buffer = bytearray(68)
        q = kvant.QTensor.from_bytes(buffer, "q8_0", (2, 32))
        buffer[34:36] = np.float16(2).tobytes()
        buffer[36] = 3
        assert q.dequantize()[1, 0] == 6

    def test_equality(self):
        x = normal(2, 32)
        q = kvant.quantize(x, "q8_0")
        assert q == kvant.quantize(x, "q8_0")
        assert q != kvant.quantize(x, "q4_0")
        assert q != kvant.quantize(-x, "q8_0")
        assert q != q[0]
        assert q != "q"
        with pytest.raises(TypeError, match="unhashable"):
            hash(q)

    def test_the_format_is_known_by_number_too(self):
        assert kvant.QTensor(np.zeros(144, np.uint8), 12, (256,)).format == "q4_k"


class TestSlicesAndCopies:
    @given(st.data())
    def test_slices_of_the_first_axis_are_views(self, data):
        q = kvant.quantize(normal(9, 2, 32), "q5_0")
        whole = q.dequantize()
        at = data.draw(st.one_of(st.integers(-9, 8), st.slices(9)))
        part = q[at]
        assert np.shares_memory(part.data, q.data) or part.nbytes == 0
        assert part.shape == whole[at].shape
        assert np.array_equal(part.dequantize(), whole[at])
        kvant.validate(part)
        if part.ndim > 1:
            assert kvant.quant_error(whole[at], part).max == 0

    def test_iteration_and_chains(self, table):
        q, whole = table
        assert np.array_equal(np.stack([row.dequantize() for row in q]), whole)
        assert np.array_equal(q[2:8][::2][1].dequantize(), whole[4])

    @pytest.mark.parametrize("index", [9, -10])
    def test_an_index_out_of_range(self, table, index):
        with pytest.raises(IndexError):
            table[0][index]

    @pytest.mark.parametrize("index", [True, 1.0, None, (0, 1), [0], "0", ...])
    def test_other_indices_are_refused(self, table, index):
        with pytest.raises(kvant.ShapeError, match="index or slice of the first axis"):
            table[0][index]

    def test_the_packed_axis_cannot_be_cut(self, table):
        with pytest.raises(kvant.ShapeError, match="it is packed"):
            table[0][0][0]

    @pytest.mark.parametrize("name", NAMES)
    def test_pickles_and_copies_are_equal(self, name):
        data = random_rows(name, 6, 2, 0)
        q = kvant.QTensor(data, name, (6, cols_of(name, 2)))[::2]
        for again in (pickle.loads(pickle.dumps(q)), copy.copy(q), copy.deepcopy(q)):
            assert again == q
            assert again.data.flags.c_contiguous
        assert len(pickle.dumps(q)) < q.nbytes + 400

    @pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, np.array])
    def test_from_bytes_takes_any_buffer(self, table, wrap):
        q, whole = table
        raw = q.data.tobytes()
        buffer = np.frombuffer(raw, np.uint8) if wrap is np.array else wrap(raw)
        assert np.array_equal(
            kvant.QTensor.from_bytes(buffer, "q8_0", (3, 3, 64)).dequantize(),
            whole.reshape(3, 3, 64),
        )

    def test_a_read_only_map(self, table, tmp_path):
        q, whole = table
        path = tmp_path / "rows"
        path.write_bytes(b"odd" + q.data.tobytes())
        mapped = np.memmap(path, np.uint8, "r", offset=3)
        again = kvant.QTensor(mapped.reshape(9, -1), "q8_0", (9, 64))
        assert np.array_equal(again.dequantize(), whole)
        assert again == q
        assert kvant.quant_error(whole, again).max == 0


class TestRows:
    @pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, np.int64])
    def test_integers_of_any_kind(self, table, dtype):
        q, whole = table
        assert np.array_equal(q.dequantize(rows=np.array([8, 0, 0], dtype)), whole[[8, 0, 0]])

    def test_rows_of_the_first_axis_of_more(self):
        q = kvant.quantize(normal(4, 3, 2, 32), "q4_1")
        whole = q.dequantize()
        assert np.array_equal(q.dequantize(rows=[-1, 2, 2]), whole[[-1, 2, 2]])
        assert np.array_equal(q.dequantize(rows=slice(None, None, -2)), whole[::-2])

    def test_none_and_no_rows(self, table):
        q, whole = table
        assert np.array_equal(q.dequantize(rows=None), whole)
        assert q.dequantize(rows=[]).shape == (0, 64)

    @pytest.mark.parametrize(
        ("rows", "named"),
        [([0, 9, -10], "9"), ([-10], "-10"), (np.array([2**64 - 1], np.uint64), str(2**64 - 1))],
    )
    def test_a_row_out_of_range_is_named(self, table, rows, named):
        with pytest.raises(kvant.ShapeError, match=f"rows below 9, got {named}$"):
            table[0].dequantize(rows=rows)

    @pytest.mark.parametrize("rows", [1, [[1]], [1.0], ["a"], [True], [None]])
    def test_what_is_no_list_of_rows(self, table, rows):
        with pytest.raises(kvant.ShapeError, match="a list of row indices"):
            table[0].dequantize(rows=rows)

    def test_a_vector_has_no_rows(self, table):
        with pytest.raises(kvant.ShapeError, match="two or more axes to take rows of"):
            table[0][0].dequantize(rows=[0])
