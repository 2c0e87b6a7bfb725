"""kvant.ffn, and how ffn, moe_ffn and matmul_experts are called: results given, refusals."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from blocks import NAMES
from expert_cases import ACTIVATIONS, joined, pair, routed, stack
from hypothesis import given
from hypothesis import strategies as st
from product_cases import activations, acts, check, dtypes, layouts, outputs, seeds, threads, words

import kvant
from kvant import reference
from support import every_isa

names = st.sampled_from(NAMES)


@given(
    formats=st.tuples(names, names, names), m=st.one_of(st.integers(1, 9), st.integers(1, 70)),
    n=outputs, seed=seeds, act=acts, activation=st.sampled_from(ACTIVATIONS), dtype=dtypes,
    layout=layouts, limit=threads,
)  # fmt: skip
def test_a_network_is_its_three_products(
    formats, m, n, seed, act, activation, dtype, layout, limit
):
    gate, up = (stack(name, 1, 256, 256, seed + i)[0] for i, name in enumerate(formats[:2]))
    down = stack(formats[2], 1, n, 256, seed + 2)[0]
    x = activations((m,), 256, "normal", seed, dtype, layout)
    hidden = kvant.activation_mul(
        kvant.matmul(x, gate, act=act), kvant.matmul(x, up, act=act), activation
    )
    wanted = kvant.matmul(hidden, down, act=act)
    options = {"activation": activation, "act": act, "threads": limit}
    for isa in every_isa():
        check(f"{isa}, as in a file", kvant.ffn(x, gate, up, down, **options), wanted)
        some = [q.pack() for q in (gate, up, down)]
        check(f"{isa}, packed", kvant.ffn(x, *some, **options), wanted)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("act", ["q8", "f32"])
def test_is_its_twin(activation, act, isa):
    parts = [stack("q4_k", 1, 256, 256, 0)[0], stack("q8_0", 1, 256, 256, 1)[0]]
    parts.append(stack("q5_1", 1, 37, 256, 2)[0])
    x = activations((7,), 256, "normal", 0)
    wanted = reference.ffn(x, *map(pair, parts), joined(activation), act)
    check(isa, kvant.ffn(x, *parts, activation=activation, act=act), wanted)


GATE, UP, DOWN = (stack("q8_0", 3, r, c, 0) for r, c in ((64, 96), (64, 96), (19, 64)))
X = activations((4,), 96, "normal", 0)
IDS, FACTORS = routed(4, 2, 3, 0)
DENSE = (GATE[0], UP[0], DOWN[0])


class TestOut:
    @pytest.mark.parametrize(
        "call",
        [
            lambda **o: kvant.ffn(X, *DENSE, **o),
            lambda **o: kvant.moe_ffn(X, GATE, UP, DOWN, IDS, FACTORS, **o),
            lambda **o: kvant.matmul_experts(X, GATE, IDS, **o),
        ],
    )
    def test_it_is_written_and_returned(self, call):
        wanted = call()
        room = np.full(wanted.size + 32, 7, np.float32)
        out = room[16:-16].reshape(wanted.shape)
        assert call(out=out) is out
        assert np.array_equal(words(out), words(wanted))
        assert (room[:16] == 7).all() and (room[-16:] == 7).all()

    def test_nothing_is_allocated(self):
        parts = [q.pack() for q in (GATE, UP, stack("q8_0", 3, 4000, 64, 0))]
        out = np.empty((4, 4000), np.float32)
        kvant.moe_ffn(X, *parts, IDS, FACTORS, out=out)
        tracemalloc.start()
        kvant.moe_ffn(X, *parts, IDS, FACTORS, out=out)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 8192

    @pytest.mark.parametrize(
        ("out", "message"),
        [
            (np.zeros((4, 18), np.float32), r"\[moe_ffn\] expected out of float32 \(4, 19\)"),
            (np.zeros((4, 19)), "got float64"),
            (np.zeros((19, 4), np.float32).T, "C-contiguous, aligned and writable"),
            (FACTORS, "expected out of float32"),
        ],
    )
    def test_what_does_not_fit(self, out, message):
        with pytest.raises(kvant.ShapeError, match=message):
            kvant.moe_ffn(X, GATE, UP, DOWN, IDS, FACTORS, out=out)

    def test_overlaps(self):
        room = np.zeros(4 * 96 + 4 * 19, np.float32)
        room[: 4 * 96] = X.reshape(-1)
        x = room[: 4 * 96].reshape(4, 96)
        out = room[4 * 90 : 4 * 90 + 76].reshape(4, 19)
        for call in (
            lambda: kvant.ffn(x, *DENSE, out=out),
            lambda: kvant.moe_ffn(x, GATE, UP, DOWN, IDS, FACTORS, out=out),
        ):
            with pytest.raises(kvant.ShapeError, match="expected out apart from the inputs"):
                call()
        factors = out.reshape(-1)[:8].reshape(4, 2)
        with pytest.raises(kvant.ShapeError, match=r"\[moe_ffn\] expected out apart"):
            kvant.moe_ffn(X, GATE, UP, DOWN, IDS, factors, out=out)
        assert np.array_equal(x, X)


def experts(x=X, w=GATE, ids=IDS, **options):
    return lambda: kvant.matmul_experts(x, w, ids, **options)


def dense(x=X, gate=DENSE[0], up=DENSE[1], down=DENSE[2], **options):
    return lambda: kvant.ffn(x, gate, up, down, **options)


def moe(x=X, gate=GATE, up=UP, down=DOWN, ids=IDS, weights=FACTORS, **options):
    return lambda: kvant.moe_ffn(x, gate, up, down, ids, weights, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (experts(ids=IDS + 2), r"\[matmul_experts\] expected ids from 0 to 2, got [34] at \("),
        (experts(ids=IDS - 1 - IDS.max()), r"ids from 0 to 2, got -\d at \("),
        (experts(ids=IDS * 1.0), r"whole numbers \[m, top\] for ids, got float64 \(4, 2\)"),
        (experts(ids=1), r"whole numbers \[m, top\] for ids, got int64 \(\)"),
        (experts(ids=IDS[:3]), r"expected x \(3, 96\), got \(4, 96\)"),
        (experts(x=X[:, :64]), r"expected x \(4, 96\), got \(4, 64\)"),
        (experts(x=X[:, None, :]), r"expected x \(4, 2, 96\), got \(4, 1, 96\)"),
        (experts(x=X.astype(np.float64)), "expected f32, f16 or bf16, got float64"),
        (experts(w=GATE[0]), r"expected experts \[experts, n, k\], got \(64, 96\)"),
        (experts(act="q4"), r"\[matmul_experts\] expected act to be 'q8' or 'f32', got 'q4'"),
        (dense(gate=GATE), r"\[ffn\] expected gate \[n, k\], got \(3, 64, 96\)"),
        (dense(up=DOWN[0]), r"expected up \(64, 96\) as gate, got \(19, 64\)"),
        (dense(down=UP[0]), r"expected down \(64, 64\) for gate \(64, 96\), got \(64, 96\)"),
        (dense(x=X[:, :32]), r"expected x \(4, 96\), got \(4, 32\)"),
        (dense(x=np.float32(1)), r"expected x \(96,\), got \(\)"),
        (dense(act="q4"), r"\[ffn\] expected act"),
        (moe(down=DOWN[0]), r"\[moe_ffn\] expected down \[experts, n, k\], got \(19, 64\)"),
        (moe(up=UP[:2]), r"expected up \(3, 64, 96\) as gate, got \(2, 64, 96\)"),
        (moe(down=DOWN[:2]), r"expected down \(3, 19, 64\) for gate \(3, 64, 96\), got \(2, 19"),
        (moe(ids=IDS + 2), r"\[moe_ffn\] expected ids from 0 to 2, got [34] at \("),
        (moe(weights=FACTORS[:, :1]), r"weights of float32 \(4, 2\), got float32 \(4, 1\)"),
        (moe(weights=FACTORS.astype(np.float64)), "got float64"),
        (moe(x=X[:3]), r"expected x \(4, 96\), got \(3, 96\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(kvant.ShapeError, match=message):
        call()


@pytest.mark.parametrize("call", [dense(activation="tanh"), moe(activation="tanh")])
def test_unknown_activations(call):
    with pytest.raises(kvant.FormatError, match=r"expected activation silu, gelu, .*got 'tanh'"):
        call()


def test_inputs_stay_as_they_are():
    parts = [q.pack() for q in (GATE, UP, DOWN)]
    everything = [X, IDS, FACTORS, *(p.data for p in parts)]
    before = [a.copy() for a in everything]
    kvant.moe_ffn(X, *parts, IDS, FACTORS)
    assert all(np.array_equal(a, b) for a, b in zip(everything, before, strict=True))


def test_callers_side_by_side():
    parts = [q.pack() for q in (GATE, UP, DOWN)]
    xs = [activations((m,), 96, "normal", m) for m in range(1, 13)]
    routes = [routed(len(x), 2, 3, len(x)) for x in xs]
    wanted = [kvant.moe_ffn(x, *parts, *r, threads=1) for x, r in zip(xs, routes, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = pool.map(lambda x, r: kvant.moe_ffn(x, *parts, *r), xs, routes)
            for got, want in zip(found, wanted, strict=True):
                check("beside others", got, want)
