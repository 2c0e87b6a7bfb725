"""A cache of keys and values through the C ABI: the bits of Python, codes and texts for misuse."""

from __future__ import annotations

import numpy as np
import pytest

from kvant.models import Cache
from support import words

OK, BAD_SHAPE, BAD_FORMAT, BAD_ALIGNMENT = 0, -1, -2, -3
F32, F16 = 0, 1
TOKENS, HEADS, GROUP, DIM, VALUE_DIM = 70, 2, 3, 12, 20
K, V, Q = (
    np.random.default_rng(i).standard_normal((TOKENS, heads, dim), dtype=np.float32)
    for i, (heads, dim) in enumerate([(HEADS, DIM), (HEADS, VALUE_DIM), (HEADS * GROUP, DIM)])
)
SINKS = np.linspace(-1, 1, HEADS * GROUP, dtype=np.float32)
ODD = np.zeros(1 << 17, np.uint8)[1:]


def pages(c, kind, **changes):
    """A struct of pages, and the arrays it points to."""
    size = 4 if kind == F32 else 2
    k = np.zeros(HEADS * 2 * DIM * 64 * size, np.uint8)
    v = np.zeros(HEADS * 2 * 64 * 32 * size, np.uint8)
    given = {"k": k, "v": v, "type": kind, "heads": HEADS, "dim": DIM}
    given |= {"value_dim": VALUE_DIM, "pages": 2} | changes
    struct = c.ffi.new("kvant_kv_pages*")
    for name, value in given.items():
        data = c.ffi.cast("void*", value.ctypes.data) if isinstance(value, np.ndarray) else value
        setattr(struct, name, data)
    return struct, (k, v)


def append_arguments(struct):
    strides = {"k_token_stride": HEADS * DIM, "k_head_stride": DIM}
    given = {"pages": struct, "position": 0, "tokens": TOKENS, "k": K, **strides, "v": V}
    return {**given, "v_token_stride": HEADS * VALUE_DIM, "v_head_stride": VALUE_DIM, "threads": 0}


def attend_arguments(struct):
    out = np.full((TOKENS, HEADS * GROUP, VALUE_DIM), 7, np.float32)
    given = {"pages": struct, "position": 0, "tokens": TOKENS, "q": Q}
    given |= {"q_token_stride": HEADS * GROUP * DIM, "q_head_stride": DIM}
    given |= {"heads": HEADS * GROUP, "window": 9, "scale": 0.3, "sinks": SINKS}
    return given | {"out": out, "threads": 0}


@pytest.mark.parametrize("kind", [F32, F16])
def test_the_bits_of_python(c, call, kind):
    struct, _ = pages(c, kind)
    assert call("kvant_kv_append", *append_arguments(struct).values()) == OK
    given = attend_arguments(struct)
    assert call("kvant_kv_attend", *given.values()) == OK
    cache = Cache(1, HEADS, DIM, VALUE_DIM, 128, "f16" if kind == F16 else "f32", [9])
    cache.append(0, K, V)
    assert np.array_equal(words(given["out"]), words(cache.attend(0, Q, 0.3, sinks=SINKS)))


ALIGNED = "floats are not aligned to their size"
SIZES = "heads and their sizes must be from 1 to 65536"
STRUCTS = [
    ({"type": 2}, BAD_FORMAT, "keys and values must be f32 or f16"),
    ({"heads": 0}, BAD_SHAPE, SIZES),
    ({"dim": 0}, BAD_SHAPE, SIZES),
    ({"value_dim": 1 << 17}, BAD_SHAPE, SIZES),
    ({"pages": -1}, BAD_SHAPE, "too many pages"),
    ({"pages": 1 << 50}, BAD_SHAPE, "too many pages"),
    ({"pages": 1}, BAD_SHAPE, "tokens run past the pages"),
    ({"k": ODD}, BAD_ALIGNMENT, ALIGNED),
    ({"v": ODD}, BAD_ALIGNMENT, ALIGNED),
]
CALLS = [
    ("append", {"position": -1}, BAD_SHAPE, "tokens run past the pages"),
    ("append", {"position": 60}, BAD_SHAPE, "tokens run past the pages"),
    ("append", {"tokens": -1}, BAD_SHAPE, "tokens run past the pages"),
    ("append", {"k": ODD}, BAD_ALIGNMENT, ALIGNED),
    ("append", {"v": ODD}, BAD_ALIGNMENT, ALIGNED),
    ("attend", {"position": 2**62}, BAD_SHAPE, "tokens run past the pages"),
    ("attend", {"heads": 0}, BAD_SHAPE, "heads of q are not a multiple of those of keys"),
    ("attend", {"heads": 5}, BAD_SHAPE, "heads of q are not a multiple of those of keys"),
    ("attend", {"window": 0}, BAD_SHAPE, "window must be at least 1"),
    ("attend", {"q": ODD}, BAD_ALIGNMENT, ALIGNED),
    ("attend", {"sinks": ODD}, BAD_ALIGNMENT, ALIGNED),
    ("attend", {"out": ODD}, BAD_ALIGNMENT, ALIGNED),
]


@pytest.mark.parametrize(("change", "code", "what"), STRUCTS)
def test_pages_that_cannot_be(c, call, change, code, what):
    struct, arrays = pages(c, F32, **change)
    for name, given in (("append", append_arguments), ("attend", attend_arguments)):
        assert call(f"kvant_kv_{name}", *given(struct).values()) == code
        assert c.ffi.string(c.lib.kvant_error_text()).decode() == what
    assert not any(a.any() for a in (*arrays, ODD))


@pytest.mark.parametrize(("name", "change", "code", "what"), CALLS)
def test_misuse_is_refused_and_memory_is_left_alone(c, call, name, change, code, what):
    struct, arrays = pages(c, F32)
    given = (append_arguments if name == "append" else attend_arguments)(struct) | change
    assert call(f"kvant_kv_{name}", *given.values()) == code
    assert c.ffi.string(c.lib.kvant_error_text()).decode() == what
    assert not any(a.any() for a in (*arrays, ODD))
    assert "out" not in given or "out" in change or (given["out"] == 7).all()


def test_no_tokens(c, call):
    struct, arrays = pages(c, F32)
    assert call("kvant_kv_append", *(append_arguments(struct) | {"tokens": 0}).values()) == OK
    given = attend_arguments(struct) | {"tokens": 0}
    assert call("kvant_kv_attend", *given.values()) == OK
    assert not any(a.any() for a in arrays)
    assert (given["out"] == 7).all()
