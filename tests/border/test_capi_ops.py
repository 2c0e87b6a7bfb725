"""The operations through the C ABI: the bits of Python, codes and texts for every misuse."""

from __future__ import annotations

import numpy as np
import pytest

import kvant
from distributions import wild
from kvant.reference import ops
from support import words

OK, BAD_SHAPE, BAD_FORMAT, BAD_ALIGNMENT = 0, -1, -2, -3
X, Y = wild(5, 48, 0), wild(5, 48, 1)
ODD = np.zeros(5 * 48 * 4 + 1, np.uint8)[1:]


def text(c):
    return c.ffi.string(c.lib.kvant_error_text()).decode()


def arguments(name):
    """Arguments of one call, by name, and what Python gives for them."""
    rows = {"rows": 5, "cols": 48}
    out = {"out": np.full((5, 48), 7, np.float32), "out_stride": 48, "threads": 0}
    if name == "kvant_rms_norm":
        given = {"x": X, "x_stride": 48, "weight": Y[0], "eps": 1e-6, **rows, **out}
        return given, kvant.rms_norm(X, Y[0])
    if name == "kvant_softmax":
        given = {"x": X, "x_stride": 48, "scale": 0.5, **rows, **out}
        return given, kvant.softmax(X, scale=0.5)
    if name == "kvant_hadamard":
        signs = np.where(np.arange(16) % 3, 1, -1).astype(np.float32)
        given = {"x": X, "x_stride": 48, **rows, "block": 16, "signs": signs, "inverse": True}
        return {**given, **out}, ops.hadamard(X, 16, signs, True)
    if name == "kvant_scale":
        given = {"x": X, "x_stride": 48, "factor": -0.7, **rows, **out}
        return given, ops.scale(X, -0.7)
    if name == "kvant_activation_mul":
        given = {"activation": 1, "gate": X, "gate_stride": 48, "up": Y, "up_stride": 48}
        return {**given, **rows, **out}, kvant.activation_mul(X, Y, "gelu")
    positions, factors = np.arange(5), np.linspace(1, 3, 6, dtype=np.float32)
    given = {
        "x": X, "token_stride": 48, "head_stride": 16, "positions": positions, "tokens": 5,
        "heads": 3, "head_dim": 16, "rotary": 12, "interleaved": True, "theta": 1e4, "scale": 2.0,
        "freq_factors": factors, "out": np.full((5, 3, 16), 7, np.float32),
        "out_token_stride": 48, "out_head_stride": 16, "threads": 0,
    }  # fmt: skip
    wanted = kvant.rope(
        X.reshape(5, 3, 16), positions, style="interleaved", rotary_dim=12, freq_factors=factors,
        scale=2.0,
    )  # fmt: skip
    return given, wanted


NAMES = (
    "kvant_rms_norm", "kvant_softmax", "kvant_scale", "kvant_hadamard", "kvant_activation_mul",
    "kvant_rope",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_bits_of_python(call, name):
    given, wanted = arguments(name)
    assert call(name, *given.values()) == OK
    assert np.array_equal(words(given["out"]), words(wanted))


MISUSES = [
    *((n, {"rows": -1}, BAD_SHAPE, "negative number of rows or columns") for n in NAMES[:5]),
    *((n, {"cols": -1}, BAD_SHAPE, "negative number of rows or columns") for n in NAMES[:5]),
    *((n, {"x": ODD}, BAD_ALIGNMENT, "floats are not aligned to their size") for n in NAMES[:4]),
    *((n, {"out": ODD}, BAD_ALIGNMENT, "floats are not aligned to their size") for n in NAMES),
    ("kvant_rms_norm", {"weight": ODD}, BAD_ALIGNMENT, "floats are not aligned to their size"),
    ("kvant_rms_norm", {"eps": -1.0}, BAD_SHAPE, "eps must be a finite number of at least 0"),
    ("kvant_rms_norm", {"eps": np.nan}, BAD_SHAPE, "eps must be a finite number of at least 0"),
    ("kvant_softmax", {"scale": np.inf}, BAD_SHAPE, "scale must be a finite number"),
    *(
        ("kvant_hadamard", {"block": n}, BAD_SHAPE,
         "block must be a power of two from 16 to 512 that divides the columns")
        for n in (0, 8, 24, 32, 1024, -16)
    ),
    ("kvant_hadamard", {"signs": Y[0]}, BAD_SHAPE, "signs must be +1 or -1"),
    ("kvant_scale", {"factor": np.nan}, BAD_SHAPE, "factor must be a finite number"),
    ("kvant_activation_mul", {"activation": 4}, BAD_FORMAT, "no such activation"),
    ("kvant_activation_mul", {"activation": -1}, BAD_FORMAT, "no such activation"),
    ("kvant_activation_mul", {"up": ODD}, BAD_ALIGNMENT, "floats are not aligned to their size"),
    ("kvant_rope", {"tokens": -1}, BAD_SHAPE, "negative number of tokens or heads"),
    ("kvant_rope", {"heads": -1}, BAD_SHAPE, "negative number of tokens or heads"),
    ("kvant_rope", {"rotary": 0}, BAD_SHAPE, "rotary must be even, from 2 to head_dim"),
    ("kvant_rope", {"rotary": 11}, BAD_SHAPE, "rotary must be even, from 2 to head_dim"),
    ("kvant_rope", {"rotary": 18}, BAD_SHAPE, "rotary must be even, from 2 to head_dim"),
    ("kvant_rope", {"theta": 0.9}, BAD_SHAPE, "theta must be a finite number of at least 1"),
    ("kvant_rope", {"theta": np.inf}, BAD_SHAPE, "theta must be a finite number of at least 1"),
    ("kvant_rope", {"scale": 0.0}, BAD_SHAPE, "scale must be a finite number above 0"),
    ("kvant_rope", {"freq_factors": ODD}, BAD_ALIGNMENT, "floats are not aligned to their size"),
    (
        "kvant_rope", {"freq_factors": np.zeros(6, np.float32)}, BAD_SHAPE,
        "freq_factors must be finite numbers above 0",
    ),
    (
        "kvant_rope", {"positions": np.full(5, 2**62)}, BAD_SHAPE,
        "a position makes an angle above 1e8",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "code", "what"), MISUSES)
def test_misuse_is_refused_and_out_is_left_alone(c, call, name, change, code, what):
    given, _ = arguments(name)
    given = {**given, **change}
    assert call(name, *given.values()) == code
    assert text(c) == what
    assert (given["out"] == (0 if "out" in change else 7)).all()


def test_nothing_to_do(call):
    for name in NAMES:
        given, _ = arguments(name)
        empty = {"tokens": 0} if name == "kvant_rope" else {"rows": 0}
        assert call(name, *{**given, **empty}.values()) == OK
        assert (given["out"] == 7).all()
    for name in NAMES[:5]:
        given, _ = arguments(name)
        assert call(name, *{**given, "cols": 0}.values()) == OK


def route_arguments(**changes):
    given = {"scores": X, "stride": 48, "rows": 5, "experts": 48, "top": 3, "shares_of": 1}
    given |= {"ids": np.full((5, 3), 7), "shares": np.full((5, 3), 7, np.float32), "threads": 0}
    return given | changes


@pytest.mark.parametrize(("kind", "how"), [(0, {"norm": False}), (1, {}), (2, {"among": "chosen"})])
def test_routes_have_the_bits_of_the_reference(call, kind, how):
    given = route_arguments(shares_of=kind)
    assert call("kvant_route", *given.values()) == OK
    with np.errstate(all="ignore"):
        ids, shares = ops.route(X, 3, **how)
    assert np.array_equal(given["ids"], ids)
    assert np.array_equal(words(given["shares"]), words(shares))


@pytest.mark.parametrize(
    ("change", "code", "what"),
    [
        ({"top": 49}, BAD_SHAPE, "expected to choose from 1 to all experts"),
        ({"top": 0}, BAD_SHAPE, "expected to choose from 1 to all experts"),
        ({"shares_of": 3}, BAD_FORMAT, "no such kind of shares"),
        ({"rows": -1}, BAD_SHAPE, "negative number of rows or columns"),
        ({"scores": ODD}, BAD_ALIGNMENT, "floats are not aligned to their size"),
    ],
)
def test_misused_routes_are_refused(c, call, change, code, what):
    given = route_arguments(**change)
    assert call("kvant_route", *given.values()) == code
    assert text(c) == what
    assert (given["ids"] == 7).all() and (given["shares"] == 7).all()


@pytest.mark.parametrize("rows", [1, 5])
def test_rows_are_added_in_place(call, rows):
    y = Y.copy()
    assert call("kvant_add", X, 48 if rows == 5 else 0, 5, 48, y, 48, 0) == OK
    assert np.array_equal(words(y), words(ops.add(Y, X if rows == 5 else X[0])))
    before = y.copy()
    assert call("kvant_add", ODD, 48, 5, 48, y, 48, 0) == BAD_ALIGNMENT
    assert call("kvant_add", X, 48, -1, 48, y, 48, 0) == BAD_SHAPE
    assert np.array_equal(words(y), words(before))
