"""The operations at their border: what is refused, `out`, memory that overlaps, empty arrays."""

from __future__ import annotations

import numpy as np
import pytest

import kvant
from distributions import wild
from support import words

X = wild(6, 32, 0, 0.0)
HEADS = X.reshape(6, 2, 16)
TABLE = kvant.quantize(wild(9, 64, 1, 0.0), "q8_0")
IN_PLACE = {
    "rms_norm": lambda x, **out: kvant.rms_norm(x, X[0], **out),
    "softmax": lambda x, **out: kvant.softmax(x, **out),
    "gate": lambda x, **out: kvant.silu_mul(x, X, **out),
    "up": lambda x, **out: kvant.activation_mul(X, x, "gelu", **out),
    "half": lambda x, **out: kvant.rope(x.reshape(6, 2, 16), range(6), **out),
    "interleaved": lambda x, **out: kvant.rope(
        x.reshape(6, 2, 16), range(6), style="interleaved", rotary_dim=10, **out
    ),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_out_is_written_and_returned_and_may_be_the_input(name, isa):
    run = IN_PLACE[name]
    wanted = run(X)
    before = X.copy()
    out = np.full(wanted.shape, 7, np.float32)
    assert run(X, out=out) is out
    assert np.array_equal(words(out), words(wanted))
    assert np.array_equal(X, before)
    x = X.copy()
    place = x.reshape(wanted.shape)
    assert run(x, out=place) is place
    assert np.array_equal(words(place), words(wanted))


@pytest.mark.parametrize("name", IN_PLACE)
def test_out_that_overlaps_otherwise_is_refused(name):
    room = np.zeros(6 * 32 + 8, np.float32)
    x = room[: 6 * 32].reshape(6, 32)
    x[:] = X
    shape = IN_PLACE[name](X).shape
    for out in (room[8:].reshape(shape), room[1:193].reshape(shape), x[::-1].reshape(shape)):
        if not np.shares_memory(out, x):
            continue
        with pytest.raises(kvant.ShapeError, match=r"expected out to be an input or apart"):
            IN_PLACE[name](x, out=out)
    assert np.array_equal(x, X)


def test_out_beside_the_input_in_one_array():
    room = np.concatenate([X, X], axis=1)
    kvant.softmax(room[:, :32], out=room[:, 32:])
    assert np.array_equal(room[:, :32], X)
    assert np.array_equal(room[:, 32:], kvant.softmax(X))
    weight = room[0, :32]
    with pytest.raises(kvant.ShapeError, match="overlaps"):
        kvant.rms_norm(X, weight, out=room[:, :32])


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((6, 31), np.float32), r"expected out of float32 \(6, 32\), got float32 \(6, 31"),
        (np.zeros((6, 32)), r"expected out of float32 \(6, 32\), got float64 \(6, 32\)"),
        ([1.0], r"expected out of float32 \(6, 32\), got list"),
        (np.broadcast_to(np.float32(0), (6, 32)), "aligned and writable"),
        (np.zeros(6 * 128 + 1, np.uint8)[1:].view(np.float32).reshape(6, 32), "aligned and"),
        (np.zeros((32, 6), np.float32).T, r"expected out with a contiguous last axis, got strides"),
        (
            np.lib.stride_tricks.as_strided(np.zeros(64, np.float32), (6, 32), (16, 4)),
            r"expected out whose elements lie apart, got strides \(16, 4\)",
        ),
    ],
)
def test_out_that_does_not_fit(out, message):
    with pytest.raises(kvant.ShapeError, match=message):
        kvant.softmax(X, out=out)


def test_out_with_rows_unevenly_spaced():
    room = np.zeros((3, 5, 40), np.float32)
    x = X.reshape(3, 2, 32)
    with pytest.raises(kvant.ShapeError, match=r"\[softmax\] expected out with evenly spaced rows"):
        kvant.softmax(x, out=room[:, :2, :32])
    assert not room.any()
    kvant.softmax(x[:, :1], out=room[:, :1, :32])
    assert np.array_equal(room[:, 0, :32], kvant.softmax(x[:, 0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kvant.softmax(X.astype(np.float64)), r"\[softmax\] expected x of f32, got float"),
        (lambda: kvant.softmax(np.float32(1)), r"expected x of at least one axis, got a scalar"),
        (lambda: kvant.softmax(X.T), r"expected x with a contiguous last axis, got strides"),
        (lambda: kvant.softmax(X, scale=np.inf), r"expected a finite scale, got inf"),
        (lambda: kvant.rms_norm(X, X[0, :31]), r"weight of f32 \(32,\), got float32 \(31,"),
        (lambda: kvant.rms_norm(X, X[0].astype(np.float16)), r"f32 \(32,\), got float16 \(32,\)"),
        (lambda: kvant.rms_norm(X, None, -1e-9), r"\[rms_norm\] expected eps of at least 0, got"),
        (lambda: kvant.rms_norm(X, None, np.nan), r"expected eps of at least 0, got nan"),
        (lambda: kvant.silu_mul(X, X[:5]), r"expected up of shape \(6, 32\), got \(5, 32\)"),
        (lambda: kvant.silu_mul(X[0], X[:, 0]), r"expected up with a contiguous last axis"),
        (lambda: kvant.activation_mul(X, X > 0), r"\[activation_mul\] expected up of f32, got"),
        (lambda: kvant.rope(X, range(6)), r"expected x \[tokens, heads, head_dim\], got shape"),
        (lambda: kvant.rope(HEADS, range(5)), r"positions of int64 \(6,\), got int64 \(5,"),
        (lambda: kvant.rope(HEADS, [0.5] * 6), r"expected positions of int64 \(6,\), got float64"),
        (lambda: kvant.rope(HEADS, [2**63] * 6), r"expected positions of int64 \(6,\), got uint64"),
        (lambda: kvant.rope(HEADS, range(6), rotary_dim=3), r"even rotary_dim from 2 to 16, got 3"),
        (lambda: kvant.rope(HEADS, range(6), rotary_dim=18), r"rotary_dim from 2 to 16, got 18"),
        (lambda: kvant.rope(HEADS, range(6), rotary_dim=0), r"rotary_dim from 2 to 16, got 0"),
        (lambda: kvant.rope(HEADS, range(6), style="neox"), r"'half' or 'interleaved', got 'neox'"),
        (lambda: kvant.rope(HEADS, range(6), theta=0.5), r"expected theta of at least 1, got 0.5"),
        (lambda: kvant.rope(HEADS, range(6), scale=0.0), r"expected scale above 0, got 0.0"),
        (lambda: kvant.rope(HEADS, range(6), freq_factors=X[0]), r"freq_factors of f32 \(8,\)"),
        (
            lambda: kvant.rope(HEADS, range(6), freq_factors=np.zeros(8, np.float32)),
            r"expected freq_factors that are finite and above 0",
        ),
        (
            lambda: kvant.rope(HEADS, [0, 1, 2, 3, 4, -(10**8) - 1]),
            r"\[rope\] expected angles up to 1e8, got positions from -100000001 to 4",
        ),
        (lambda: kvant.embedding(TABLE, 9), r"expected ids in 0 .. 8, got 9 at \(\)"),
        (lambda: kvant.embedding(TABLE, [[0, 1], [-1, 2]]), r"0 .. 8, got -1 at \(1, 0\)"),
        (lambda: kvant.embedding(TABLE, [0.0]), r"expected whole numbers for ids, got float64"),
        (lambda: kvant.embedding(TABLE[0], [0]), r"expected a table of two axes, got shape \(64,"),
        (lambda: kvant.embedding(TABLE, [0], dtype="f64"), r"expected dtype f32, f16 or bf16"),
        (
            lambda: kvant.embedding(TABLE, [0, 1], out=np.zeros((1, 64), np.float32)),
            r"\[embedding\] expected out of float32 \(2, 64\), got float32 \(1, 64\)",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(call, message):
    with pytest.raises(kvant.ShapeError, match=message):
        call()


def test_an_unknown_activation():
    with pytest.raises(kvant.FormatError, match=r"silu, gelu, gelu_tanh, relu, got 'swish'"):
        kvant.activation_mul(X, X, "swish")


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5), (2, 0, 4)])
def test_nothing_to_do(shape):
    x = np.zeros(shape, np.float32)
    for found in (kvant.softmax(x), kvant.silu_mul(x, x), kvant.rms_norm(x, x.reshape(-1)[:0])
                  if shape[-1] == 0 else kvant.rms_norm(x, None)):  # fmt: skip
        assert (found.shape, found.dtype) == (shape, np.float32)
    assert kvant.softmax(x, out=x) is x


def test_no_tokens_and_no_heads():
    assert kvant.rope(np.zeros((0, 2, 8), np.float32), []).shape == (0, 2, 8)
    assert kvant.rope(np.zeros((2, 0, 8), np.float32), [1, 2]).shape == (2, 0, 8)
    assert kvant.embedding(TABLE, []).shape == (0, 64)


@pytest.mark.parametrize("ids", [3, [0, 8, 3, 3], [[1, 2, 3], [4, 5, 6]], np.uint8([7])])
def test_embedding_takes_rows(ids):
    wanted = TABLE.dequantize()[ids]
    found = kvant.embedding(TABLE, ids)
    assert found.shape == wanted.shape and np.array_equal(words(found), words(wanted))
    out = np.zeros(wanted.shape, np.float16)
    assert kvant.embedding(TABLE, ids, dtype="f16", out=out) is out
    assert np.array_equal(out, wanted.astype(np.float16))


def test_margins_stay_untouched(isa):
    for cols in (1, 15, 16, 17, 40):
        room = np.full((4, cols + 32), 7, np.float32)
        place = room[:, 16:-16]
        for run in (lambda x, out: kvant.softmax(x, out=out),
                    lambda x, out: kvant.rms_norm(x, x[0], out=out),
                    lambda x, out: kvant.silu_mul(x, x, out=out)):  # fmt: skip
            run(wild(4, cols, cols), place)
            assert (room[:, :16] == 7).all() and (room[:, -16:] == 7).all()
        if cols > 1:
            x = wild(4, cols, 0).reshape(4, 1, cols)
            for style in ("half", "interleaved"):
                kvant.rope(x, range(4), style=style, rotary_dim=cols // 2 * 2, out=place[:, None])
                assert (room[:, :16] == 7).all() and (room[:, -16:] == 7).all()
