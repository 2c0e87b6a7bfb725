"""The C ABI: the same bytes as from Python, codes and texts for every misuse."""

from __future__ import annotations

import re
import subprocess
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from c_library import PACKAGE, functions, header

import kvant
from distributions import distribution, importance

OK, BAD_SHAPE, BAD_FORMAT, BAD_ALIGNMENT, UNSUPPORTED_ISA = 0, -1, -2, -3, -6
F32, F16, BF16 = 0, 1, 2
FORMATS = kvant.formats()
ENCODED = [f for f in FORMATS if f.can_encode]


def names(formats):
    return [f.name for f in formats]


def text(c):
    return c.ffi.string(c.lib.kvant_error_text()).decode()


def encode(call, f, x, weights=None, per_vector=1, /, **change):
    """One call of kvant_encode that fits x, with single arguments changed."""
    rows, cols = x.shape
    out = np.full((rows, cols // f.block * f.block_bytes), 0xA5, np.uint8)
    position = np.full(1, -7, np.int64)
    args = {
        "format": f.number, "x": x, "type": F32, "rows": rows, "cols": cols, "stride": cols,
        "importance": weights, "per_vector": per_vector, "out": out, "out_bytes": out.size,
        "threads": 0, "position": position,
    }  # fmt: skip
    args.update(change)
    return call("kvant_encode", *args.values()), out, int(position[0])


def decode(call, f, data, cols, /, **change):
    rows = len(data)
    out = np.full((rows, cols), 7, np.float32)
    args = {
        "format": f.number, "data": data, "stride": data.strides[0], "data_rows": rows,
        "index": None, "rows": rows, "cols": cols, "type": F32, "out": out, "threads": 0,
    }  # fmt: skip
    args.update(change)
    return call("kvant_decode", *args.values()), out


def test_every_declared_function_is_exported_and_nothing_else(c):
    declared = functions()
    assert len(declared) > 15 and len(set(declared)) == len(declared)
    for name in declared:
        assert callable(getattr(c.lib, name))
    done = subprocess.run(
        ["nm", "-D", "--defined-only", str(PACKAGE / "libkvant.so")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        exported = {line.split()[-1] for line in done.stdout.splitlines()}
        assert {name for name in exported if not name.startswith("_")} == set(declared)


def test_every_function_is_called_in_this_folder():
    source = "".join(p.read_text() for p in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in functions() if not re.search(rf"\b{name}\b", source)] == []


def test_the_header_compiles_as_c_and_as_cpp(tmp_path):
    for language, compiler, standard in (("c", "cc", "c99"), ("c++", "c++", "c++11")):
        path = tmp_path / "kvant.h"
        path.write_text(header())
        command = [compiler, "-x", language, f"-std={standard}", "-Wall", "-Wextra", "-pedantic"]
        try:
            done = subprocess.run(
                [*command, "-Werror", "-fsyntax-only", "-include", str(path), "/dev/null"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        except FileNotFoundError:
            pytest.skip(f"needs {compiler}")
        assert (done.returncode, done.stderr) == (0, "")


def test_version(c):
    assert c.ffi.string(c.lib.kvant_version()).decode() == kvant.__version__


class TestFormats:
    def test_the_table_is_that_of_python(self, c):
        assert c.lib.kvant_format_count() == len(FORMATS)
        for f in FORMATS:
            info = c.ffi.new("kvant_format *")
            assert c.lib.kvant_format_info(f.number, info) == OK
            assert c.ffi.string(info.name).decode() == f.name
            fields = ("ggml_type", "block", "block_bytes", "group", "can_encode", "uses_importance")
            assert all(getattr(info, key) == getattr(f, key) for key in fields)
            assert c.lib.kvant_format_find(f.name.encode()) == f.number

    def test_unknown_ones(self, c):
        info = c.ffi.new("kvant_format *")
        for number in (-1, len(FORMATS), 2**31 - 1, -(2**31)):
            assert c.lib.kvant_format_info(number, info) == BAD_FORMAT
            assert text(c) == "no such format"
        for name in (b"", b"Q4_K", b"q4_", b"q4_kk"):
            assert c.lib.kvant_format_find(name) == BAD_FORMAT


class TestIsas:
    def test_the_list_is_that_of_python(self, c):
        listed = [
            (c.ffi.string(c.lib.kvant_isa_name(i)).decode(), c.lib.kvant_isa_supported(i))
            for i in range(c.lib.kvant_isa_count())
        ]
        assert listed == [(i.name, i.supported) for i in kvant.isa.listed()]
        for outside in (-1, len(listed)):
            assert c.lib.kvant_isa_name(outside) == c.ffi.NULL
            assert not c.lib.kvant_isa_supported(outside)

    def test_forcing(self, c, isa):
        assert c.lib.kvant_isa_use(isa.encode()) == OK
        assert c.ffi.string(c.lib.kvant_isa_current()).decode() == isa
        for name in (b"", b"sse", b"neon_dotprod0"):
            assert c.lib.kvant_isa_use(name) == UNSUPPORTED_ISA
            assert text(c) == "no ISA of that name in this build"
        assert c.ffi.string(c.lib.kvant_isa_current()).decode() == isa


def test_threads(c):
    before = c.lib.kvant_threads()
    c.lib.kvant_set_threads(3)
    assert c.lib.kvant_threads() == 3
    c.lib.kvant_set_threads(-1)
    assert c.lib.kvant_threads() == before >= 1


@pytest.mark.parametrize("size", [0, 1, 100, 2**21, 2**21 + 1])
def test_buffers(c, size):
    buffer = c.lib.kvant_buffer_alloc(size)
    address = int(c.ffi.cast("uintptr_t", buffer))
    assert address and address % (64 if size < 2**21 else 2**21) == 0
    assert bytes(c.ffi.buffer(buffer, size)) == bytes(size)
    c.lib.kvant_buffer_free(buffer, size)
    c.lib.kvant_buffer_free(c.ffi.NULL, size)


def test_no_memory(c):
    assert c.lib.kvant_buffer_alloc(2**64 - 1) == c.ffi.NULL
    assert c.lib.kvant_buffer_alloc(2**62) == c.ffi.NULL


class TestEncode:
    @pytest.mark.parametrize("f", ENCODED, ids=names(ENCODED))
    def test_the_bytes_of_python(self, call, f):
        cols = f.block * 2 if f.block > 1 else 37
        x = distribution("t5", 7, cols, 0)
        weights = importance(cols, 0)
        for w, per_vector in ((None, 0), (weights, 7), (np.stack([weights] * 7), 1)):
            code, out, position = encode(call, f, x, w, per_vector)
            assert (code, position) == (OK, -1)
            assert np.array_equal(out, kvant.quantize(x, f.name, importance=w).data)
        halves = x.astype(np.float16)
        code, out, _ = encode(call, f, halves, None, 0, type=F16)
        assert code == OK
        assert np.array_equal(out, kvant.quantize(halves, f.name).data)
        words = (x.view(np.uint32) >> 16).astype(np.uint16)
        code, out, _ = encode(call, f, words, None, 0, type=BF16)
        assert code == OK
        wide = (words.astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(out, kvant.quantize(wide, f.name).data)

    def test_rows_apart(self, call):
        f = kvant.format_info("q8_0")
        x = distribution("normal", 6, 64, 0)
        code, out, _ = encode(call, f, np.ascontiguousarray(x[::2]), x=x, stride=128)
        assert code == OK
        assert np.array_equal(out, kvant.quantize(x[::2], "q8_0").data)

    @pytest.mark.parametrize(
        ("change", "code", "what"),
        [
            ({"format": -1}, BAD_FORMAT, "no such format"),
            ({"format": 10_000}, BAD_FORMAT, "no such format"),
            ({"type": 3}, BAD_FORMAT, "no such element type"),
            ({"type": -1}, BAD_FORMAT, "no such element type"),
            ({"rows": -1}, BAD_SHAPE, "negative number of rows or columns"),
            ({"cols": -32}, BAD_SHAPE, "negative number of rows or columns"),
            ({"cols": 33}, BAD_SHAPE, "columns are not a multiple of the block"),
            ({"cols": 31}, BAD_SHAPE, "columns are not a multiple of the block"),
            ({"rows": 2**58, "cols": 2**20}, BAD_SHAPE, "too many elements"),
            ({"out_bytes": 67}, BAD_SHAPE, "output has the wrong number of bytes"),
            ({"out_bytes": 69}, BAD_SHAPE, "output has the wrong number of bytes"),
            ({"rows": 3}, BAD_SHAPE, "output has the wrong number of bytes"),
            (
                {"importance": np.ones(32, np.float32), "per_vector": 0},
                BAD_SHAPE,
                "importance needs at least one row per vector",
            ),
        ],
    )
    def test_misuse_is_refused_and_out_is_left_alone(self, c, call, change, code, what):
        got, out, position = encode(
            call, kvant.format_info("q8_0"), np.ones((2, 32), np.float32), **change
        )
        assert (got, position, text(c)) == (code, -1, what)
        assert (out == 0xA5).all()

    def test_a_format_that_can_only_be_decoded(self, c, call):
        got, _, _ = encode(call, kvant.format_info("iq3_s"), np.ones((1, 256), np.float32))
        assert (got, text(c)) == (BAD_FORMAT, "this format can only be decoded")

    def test_numbers_at_odd_addresses(self, c, call):
        f = kvant.format_info("q8_0")
        x = np.ones((2, 32), np.float32)
        raw = np.zeros(x.nbytes + 1, np.uint8)
        for change in ({"x": raw[1:]}, {"importance": raw[1:], "per_vector": 2}):
            got, out, _ = encode(call, f, x, **change)
            assert (got, text(c)) == (BAD_ALIGNMENT, "floats are not aligned to their size")
            assert (out == 0xA5).all()

    def test_the_first_number_that_is_not_finite(self, c, call):
        x = np.ones((5, 64), np.float32)
        x[4, 0] = np.inf
        x[3, 40] = np.nan
        got, _, position = encode(call, kvant.format_info("q4_0"), x)
        assert (got, position) == (BAD_SHAPE, 3 * 64 + 40)
        assert encode(call, kvant.format_info("q4_0"), x, position=None)[0] == BAD_SHAPE

    def test_nothing_to_do(self, call):
        f = kvant.format_info("q4_k")
        for shape in ((0, 256), (4, 0), (0, 0)):
            got, _, position = encode(call, f, np.zeros(shape, np.float32))
            assert (got, position) == (OK, -1)


class TestDecode:
    @pytest.mark.parametrize("f", FORMATS, ids=names(FORMATS))
    def test_the_floats_of_python(self, call, f):
        cols = f.block * 2
        data = np.random.default_rng(0).integers(0, 256, (5, f.row_bytes(cols)), np.uint8)
        q = kvant.QTensor(data, f.name, (5, cols))
        wanted = q.dequantize()
        code, out = decode(call, f, data, cols)
        assert code == OK
        assert np.array_equal(out.view(np.uint32), wanted.view(np.uint32))
        index = np.array([4, 0, 0, 3, 1], np.int64)
        code, out = decode(call, f, data, cols, index=index)
        assert np.array_equal(out.view(np.uint32), wanted[index].view(np.uint32))
        halves = np.empty((5, cols), np.float16)
        assert decode(call, f, data, cols, type=F16, out=halves)[0] == OK
        assert np.array_equal(halves.view(np.uint16), q.dequantize("f16").view(np.uint16))
        words = np.empty((5, cols), np.uint16)
        assert decode(call, f, data, cols, type=BF16, out=words)[0] == OK
        assert np.array_equal(words, q.dequantize("bf16").view(np.uint16))

    @pytest.mark.parametrize(
        ("change", "code", "what"),
        [
            ({"format": 99}, BAD_FORMAT, "no such format"),
            ({"type": 9}, BAD_FORMAT, "no such element type"),
            ({"cols": 31}, BAD_SHAPE, "columns are not a multiple of the block"),
            ({"rows": -1}, BAD_SHAPE, "negative number of rows or columns"),
            ({"rows": 3}, BAD_SHAPE, "more rows wanted than there are"),
            ({"index": np.array([0, 2])}, BAD_SHAPE, "row index out of range"),
            ({"index": np.array([-1, 0])}, BAD_SHAPE, "row index out of range"),
        ],
    )
    def test_misuse_is_refused_and_out_is_left_alone(self, c, call, change, code, what):
        data = np.zeros((2, 34), np.uint8)
        got, out = decode(call, kvant.format_info("q8_0"), data, 32, **change)
        assert (got, text(c)) == (code, what)
        assert (out == 7).all()

    def test_results_at_odd_addresses(self, c, call):
        raw = np.full(2 * 32 * 4 + 1, 7, np.uint8)
        data = np.zeros((2, 34), np.uint8)
        got, _ = decode(call, kvant.format_info("q8_0"), data, 32, out=raw[1:])
        assert (got, text(c)) == (BAD_ALIGNMENT, "floats are not aligned to their size")
        assert (raw == 7).all()


class TestMeasuring:
    def test_row_errors(self, c, call):
        x = distribution("normal", 6, 64, 0)
        weights = importance(64, 0)
        q = kvant.quantize(x, "q4_0")
        out = np.zeros((6, 7))
        args = [q.info.number, q.data, 36, x, F32, 6, 64, 64, weights, 6, out, 2]
        assert call("kvant_row_errors", *args) == OK
        found = kvant.quant_error(x, q, weights, per_row=True)
        ee, xx, yy, xy, wee, wxx, largest = out.T
        assert np.array_equal(np.sqrt(ee / 64), found.rmse)
        assert np.array_equal(np.sqrt(wee / wxx), found.weighted)
        assert np.array_equal(xy / (np.sqrt(xx) * np.sqrt(yy)), found.cosine)
        assert np.array_equal(largest, found.max)
        for place, value, code in (
            (0, 99, BAD_FORMAT), (4, 7, BAD_FORMAT), (6, 63, BAD_SHAPE), (9, 0, BAD_SHAPE),
            (3, x.reshape(-1).view(np.uint8)[1:], BAD_ALIGNMENT),
        ):  # fmt: skip
            changed = [*args]
            changed[place] = value
            assert call("kvant_row_errors", *changed) == code
        assert text(c) == "floats are not aligned to their size"

    def test_validate(self, call):
        data = np.zeros((3, 68), np.uint8)
        block = np.zeros(1, np.int64)
        number = kvant.format_info("q8_0").number
        assert call("kvant_validate", number, data, 68, 3, 64, 0, block) == OK
        assert block[0] == -1
        data[2, 34:36] = 255
        assert call("kvant_validate", number, data, 68, 3, 64, 0, block) == OK
        assert block[0] == 5
        assert call("kvant_validate", number, data, 68, 3, 63, 0, block) == BAD_SHAPE
        assert block[0] == -1


class TestStrings:
    @staticmethod
    def scan(c, data, count, offset=0):
        utf8 = c.ffi.new("bool *")
        places = c.ffi.new("uint64_t[]", max(count, 0) + 1)
        buffer = c.ffi.from_buffer("uint8_t[]", data)
        end = c.lib.kvant_scan_strings(buffer, len(data), offset, count, utf8, places)
        assert end == c.lib.kvant_scan_strings(buffer, len(data), offset, count, utf8, c.ffi.NULL)
        return end, bool(utf8[0]), list(places)

    def test_places_and_ends(self, c):
        words = [b"", b"one", "zwölf".encode(), b"x" * 300]
        data = b"??" + b"".join(len(w).to_bytes(8, "little") + w for w in words) + b"tail"
        end, utf8, places = self.scan(c, data, 4, 2)
        assert (end, utf8) == (len(data) - 4, True)
        assert [data[a + 8 : b] for a, b in pairwise(places)] == words

    def test_bytes_that_are_no_text(self, c):
        data = (2).to_bytes(8, "little") + b"\xff\xfe"
        assert self.scan(c, data, 1)[:2] == (10, False)

    @pytest.mark.parametrize("length", [3, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
    def test_lengths_beyond_the_end(self, c, length):
        data = length.to_bytes(8, "little") + b"ab"
        assert self.scan(c, data, 1)[0] == -1

    def test_more_strings_than_there_are(self, c):
        assert self.scan(c, bytes(16), 3)[0] == -1
        assert self.scan(c, bytes(15), 2)[0] == -1
        assert self.scan(c, bytes(16), 2)[0] == 16


def test_the_last_error_is_that_of_the_thread(c):
    assert c.lib.kvant_isa_use(b"nowhere") == UNSUPPORTED_ISA
    seen = []

    def other():
        seen.append(text(c))
        c.lib.kvant_format_find(b"nothing")
        seen.append(text(c))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == ["no error", "no such format"]
    assert text(c) == "no ISA of that name in this build"
