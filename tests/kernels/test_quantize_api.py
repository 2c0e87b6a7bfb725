"""QTensor and the arrays around it: layouts, slices, copies, refusals that name what they got."""

from __future__ import annotations

import copy
import pickle

import kvant
import ml_dtypes
import numpy as np
import pytest
from blocks import NAMES, cols_of, random_rows
from distributions import distribution, importance
from hypothesis import given
from hypothesis import strategies as st
from kvant.reference import FORMATS, decode, encode


def normal(*shape, seed=0):
    return distribution("normal", int(np.prod(shape[:-1])), shape[-1], seed).reshape(shape)


@pytest.fixture
def table():
    """Nine rows of q8_0, and what they decode to."""
    q = kvant.quantize(normal(9, 64), "q8_0")
    return q, q.dequantize()


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
        assert [np.array_equal(row.dequantize(), y) for row, y in zip(q, whole)] == [True] * 9
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


class TestLayouts:
    @pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
    @pytest.mark.parametrize("name", ["f32", "q8_0", "q4_k", "iq4_nl"])
    def test_strided_leading_axes(self, name, dtype):
        x = normal(4, 6, 1024).astype(dtype)
        cols = 512
        views = {
            "columns": x[:, :, cols:],
            "every other": x[:, ::2, :cols],
            "reversed": x[::-1, :, :cols],
            "turned": x.transpose(1, 0, 2)[:, :, :cols],
            "repeated": np.broadcast_to(x[0, 0, :cols], (3, cols)),
            "new axis": x[:, None, 2, :cols],
            "vector": x[1, 2, :cols],
        }
        for kind, view in views.items():
            before = x.tobytes()
            found = kvant.quantize(view, name)
            wanted = encode(np.ascontiguousarray(view).astype(np.float32), name)
            assert found.shape == view.shape, kind
            assert np.array_equal(found.data, wanted), kind
            assert kvant.quant_error(view, found) == kvant.quant_error(view.copy(), found), kind
            assert x.tobytes() == before

    def test_strided_packed_rows(self):
        data = random_rows("q4_0", 12, 4, 1).reshape(4, 3, 72)
        whole = decode(data, "q4_0")
        for cut in (np.s_[:, ::2], np.s_[::-1], np.s_[:, ::-1], np.s_[1:3, 1]):
            part = data[cut]
            q = kvant.QTensor(part, "q4_0", (*part.shape[:-1], 128))
            assert np.array_equal(q.dequantize(), whole[cut], equal_nan=True)
        turned = data.transpose(1, 0, 2)
        q = kvant.QTensor(turned, "q4_0", (3, 4, 128))
        assert np.array_equal(q.dequantize(), whole.transpose(1, 0, 2), equal_nan=True)
        narrow = kvant.QTensor(data[:, :, 18:54], "q4_0", (4, 3, 64))
        assert np.array_equal(narrow.dequantize(), whole[:, :, 32:96], equal_nan=True)

    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_unaligned_numbers(self, dtype, isa):
        x = normal(3, 64).astype(dtype)
        for shift in (1, 2, 3):
            raw = np.zeros(x.nbytes + shift, np.uint8)
            raw[shift:] = np.frombuffer(x.tobytes(), np.uint8)
            odd = np.frombuffer(raw.data, dtype, x.size, shift).reshape(x.shape)
            assert kvant.quantize(odd, "q8_0") == kvant.quantize(x, "q8_0")
            q = kvant.quantize(x, "q8_0")
            assert kvant.quant_error(odd, q) == kvant.quant_error(x, q)

    def test_unaligned_importance(self):
        weights = importance(256, 0)
        raw = np.zeros(1025, np.uint8)
        raw[1:] = weights.view(np.uint8)
        odd = np.frombuffer(raw.data, np.float32, 256, 1)
        x = normal(3, 256)
        assert kvant.quantize(x, "q4_k", importance=odd) == kvant.quantize(
            x, "q4_k", importance=weights
        )

    def test_packed_rows_may_lie_anywhere(self, isa):
        for name in NAMES:
            data = random_rows(name, 2, 2, 3)
            for shift in (1, 2, 3, 5):
                raw = np.zeros(data.size + shift, np.uint8)
                raw[shift:] = data.reshape(-1)
                odd = raw[shift:].reshape(data.shape)
                q = kvant.QTensor(odd, name, (2, cols_of(name, 2)))
                assert np.array_equal(q.dequantize(), decode(data, name), equal_nan=True)

    @pytest.mark.parametrize("shape", [(0, 256), (4, 0), (0,), (3, 0, 256), (0, 5, 256), (0, 0)])
    @pytest.mark.parametrize("name", NAMES)
    def test_empty_shapes(self, name, shape):
        row_bytes = FORMATS[name].block_bytes * (shape[-1] // FORMATS[name].block)
        q = kvant.QTensor(np.zeros((*shape[:-1], row_bytes), np.uint8), name, shape)
        assert q.dequantize().shape == shape
        kvant.validate(q)
        x = np.zeros(shape, np.float32)
        assert kvant.quant_error(x, q).rmse == 0
        assert kvant.quant_error(x, q, per_row=True).cosine.shape == shape[:-1]
        if FORMATS[name].can_encode:
            assert kvant.quantize(x, name) == q
            assert kvant.quantize(x, name, importance=np.ones(shape[-1])) == q
        if len(shape) > 1:
            assert q.dequantize(rows=[]).shape == (0, *shape[1:])
            assert q[:0].dequantize().shape == (0, *shape[1:])

    def test_read_only_inputs_stay_as_they_are(self):
        x, weights = normal(4, 256), importance(256, 0)
        for array in (x, weights):
            array.setflags(write=False)
        q = kvant.quantize(x, "q4_k", importance=weights)
        q.data.setflags(write=False)
        again = q.dequantize()
        kvant.quant_error(x, q, weights)
        kvant.validate(q)
        assert np.array_equal(x, normal(4, 256))
        assert np.array_equal(weights, importance(256, 0))
        assert np.array_equal(q.dequantize(), again)


class TestOut:
    def test_results_are_written_where_asked(self, table):
        q, whole = table
        x = normal(9, 64)
        packed = np.full((9, 68), 7, np.uint8)
        assert kvant.quantize(x, "q8_0", out=packed).data is packed
        assert np.array_equal(packed, q.data)
        for dtype in ("f32", "f16", "bf16"):
            wanted = q.dequantize(dtype)
            out = np.full((9, 64), 7, wanted.dtype)
            assert q.dequantize(dtype, out=out) is out
            assert np.array_equal(out, wanted)
        few = np.empty((2, 64), np.float32)
        q.dequantize(rows=[3, 1], out=few)
        assert np.array_equal(few, whole[[3, 1]])

    def test_outs_that_do_not_fit(self, table):
        q, _ = table
        x = normal(9, 64)
        locked = np.zeros((9, 68), np.uint8)
        locked.setflags(write=False)
        for out, match in [
            (np.zeros((9, 67), np.uint8), r"uint8 \(9, 68\), got uint8 \(9, 67\)"),
            (np.zeros((9, 68), np.int8), r"got int8 \(9, 68\)"),
            (bytearray(9 * 68), "got bytearray"),
            (np.zeros((9, 136), np.uint8)[:, ::2], "C-contiguous"),
            (locked, "writable"),
        ]:
            with pytest.raises(kvant.ShapeError, match=match):
                kvant.quantize(x, "q8_0", out=out)
        raw = np.zeros(9 * 64 * 4 + 1, np.uint8)
        for out, match in [
            (np.zeros((9, 63), np.float32), r"float32 \(9, 64\), got float32 \(9, 63\)"),
            (np.zeros((9, 64), np.float16), "got float16"),
            (np.zeros((64, 9), np.float32).T, "C-contiguous"),
            (np.frombuffer(raw.data, np.float32, 9 * 64, 1).reshape(9, 64), "aligned"),
            ([[0.0]], "got list"),
        ]:
            with pytest.raises(kvant.ShapeError, match=match):
                q.dequantize(out=out)

    def test_a_refused_call_leaves_out_alone(self):
        out = np.full((2, 34), 9, np.uint8)
        with pytest.raises(kvant.ShapeError):
            kvant.quantize(normal(2, 33), "q8_0", out=out)
        assert (out == 9).all()


class TestRefusals:
    @pytest.mark.parametrize(
        ("call", "error", "match"),
        [
            (
                lambda: kvant.quantize(normal(2, 100), "q4_k"),
                kvant.ShapeError,
                r"^\[quantize\] last dimension must be a multiple of 256 \(q4_k\), got 100$",
            ),
            (lambda: kvant.quantize(np.float32(1), "f32"), kvant.ShapeError, "got a scalar"),
            (lambda: kvant.quantize(np.zeros(32), "q4_0"), kvant.ShapeError, "got float64"),
            (lambda: kvant.quantize(np.zeros(32, int), "q4_0"), kvant.ShapeError, "got int64"),
            (lambda: kvant.quantize(np.zeros(32, ">f4"), "q4_0"), kvant.ShapeError, "got >f4"),
            (lambda: kvant.quantize("weights", "q4_0"), kvant.ShapeError, "got <U7"),
            (
                lambda: kvant.quantize(normal(32, 32).T, "q4_0"),
                kvant.ShapeError,
                r"a contiguous last axis, got strides \(4, 128\)",
            ),
            (lambda: kvant.quantize(normal(32), "q9_9"), kvant.FormatError, "got 'q9_9'"),
            (
                lambda: kvant.quantize(normal(256), "iq2_xs"),
                kvant.FormatError,
                r"a format to encode \(f32, .*\), got 'iq2_xs'",
            ),
            (
                lambda: kvant.quantize(normal(2, 32), "q4_0", importance=np.ones(31)),
                kvant.ShapeError,
                r"importance of shape \(32,\) or \(2, 32\), got \(31,\)",
            ),
            (
                lambda: kvant.quantize(normal(2, 32), "q4_0", importance=np.ones((3, 32))),
                kvant.ShapeError,
                r"got \(3, 32\)",
            ),
            (
                lambda: kvant.quantize(normal(32), "q4_0", importance=[np.nan] * 32),
                kvant.ShapeError,
                r"finite importance, got nan at \(0, 0\)",
            ),
            (
                lambda: kvant.quantize(normal(32), "q4_0", importance=[1.0] * 31 + [np.inf]),
                kvant.ShapeError,
                r"finite importance, got inf at \(0, 31\)",
            ),
            (
                lambda: kvant.QTensor(np.zeros((2, 33), np.uint8), "q8_0", (2, 32)),
                kvant.ShapeError,
                r"uint8 \(2, 34\) for q8_0 \(2, 32\), got uint8 \(2, 33\)",
            ),
            (
                lambda: kvant.QTensor(np.zeros((2, 68), np.uint8)[:, ::2], "q8_0", (2, 32)),
                kvant.ShapeError,
                "contiguous rows of bytes",
            ),
            (
                lambda: kvant.QTensor(np.zeros(34, np.uint8), "q8_0", ()),
                kvant.ShapeError,
                "one or more axes",
            ),
            (
                lambda: kvant.QTensor(np.zeros(34, np.uint8), "q8_0", (-1, 32)),
                kvant.ShapeError,
                "one or more axes",
            ),
            (
                lambda: kvant.QTensor(np.zeros(34, np.uint8), "q8_0", (33,)),
                kvant.ShapeError,
                r"a multiple of 32 elements \(q8_0\), got 33",
            ),
            (
                lambda: kvant.QTensor.from_bytes(bytes(33), "q8_0", (32,)),
                kvant.ShapeError,
                r"expected 34 bytes for q8_0 \(32,\), got 33",
            ),
            (
                lambda: kvant.QTensor.from_bytes(b"", "q8_0", (2**62, 4, 32)),
                kvant.ShapeError,
                "got 0",
            ),
            (lambda: kvant.format_info(255), kvant.FormatError, "got 255"),
            (lambda: kvant.format_info("q4_k").row_bytes(-256), kvant.ShapeError, "got -256"),
        ],
    )
    def test_errors_name_what_was_expected_and_given(self, call, error, match):
        with pytest.raises(error, match=match) as caught:
            call()
        assert isinstance(caught.value, kvant.Error)
        assert isinstance(caught.value, ValueError)

    @pytest.mark.parametrize("dtype", ["f64", np.float64, "q8_0", np.int8, 5.0])
    def test_dtypes_of_results(self, table, dtype):
        with pytest.raises(kvant.ShapeError, match="expected dtype f32, f16 or bf16"):
            table[0].dequantize(dtype)

    @pytest.mark.parametrize("dtype", [np.float16, "float16", np.dtype(np.float16), "f16"])
    def test_dtypes_by_any_name(self, table, dtype):
        assert table[0].dequantize(dtype).dtype == np.float16


def test_the_table_of_formats():
    listed = kvant.formats()
    assert [f.name for f in listed] == list(FORMATS)
    assert [f.number for f in listed] == list(range(len(listed)))
    for f in listed:
        twin = FORMATS[f.name]
        assert (f.block, f.block_bytes, f.can_encode, f.uses_importance) == (
            twin.block,
            twin.block_bytes,
            twin.can_encode,
            twin.uses_importance,
        )
        assert kvant.format_info(f.name) is kvant.format_info(f.ggml_type) is f
        assert f.block % f.group == 0
