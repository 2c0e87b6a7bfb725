"""Arrays in and out: layouts, alignment, emptiness, `out`, refusals that name what they got."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from blocks import NAMES, cols_of, normal, random_rows

import kvant
from distributions import importance
from kvant.reference import FORMATS, decode, encode


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
