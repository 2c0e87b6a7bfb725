"""kvant.matmul_experts and moe_ffn: the bits of the twin and of single products, on every ISA."""

from __future__ import annotations

import numpy as np
import pytest
from blocks import NAMES
from expert_cases import (
    ACTIVATIONS,
    composed,
    experts,
    joined,
    pair,
    products_by_expert,
    routed,
    stack,
    tokens,
    tops,
)
from hypothesis import given
from hypothesis import strategies as st
from product_cases import (
    CANONICAL_NAN,
    PLAIN,
    activations,
    acts,
    check,
    cols_near,
    dtypes,
    families,
    kinds,
    layouts,
    outputs,
    seeds,
    threads,
    words,
)

import kvant
from kvant import reference
from support import every_isa

names = st.sampled_from(NAMES)
triples = st.tuples(names, names, names)
# A multiple of every block, or a length that only float weights have.
hidden_lengths = st.sampled_from([256, 256, 512, 40])


def packed_too(*several):
    """The weights as in a file, and packed."""
    yield "as in a file", several
    yield "packed", tuple(q.pack() for q in several)


@pytest.mark.parametrize("name", NAMES)
@given(
    count=experts, m=tokens, top=tops, n=outputs, length=st.integers(1, 600), kind=kinds,
    family=families, seed=seeds, act=acts, dtype=dtypes, layout=layouts, limit=threads,
)  # fmt: skip
def test_products_are_those_of_the_reference(
    name, count, m, top, n, length, kind, family, seed, act, dtype, layout, limit
):
    k = cols_near(name, length if act == "q8" and name not in PLAIN else length % 99 + 1)
    q, (ids, _) = stack(name, count, n, k, seed, kind), routed(m, top, count, seed)
    x = activations((m,), k, family, seed, dtype, layout)
    wanted = reference.matmul_experts(x.astype(np.float32), pair(q), ids, act)
    for isa in every_isa():
        for how, (w,) in packed_too(q):
            got = kvant.matmul_experts(x, w, ids, act=act, threads=limit)
            check(f"{isa}, {how}", got, wanted)


@given(name=names, count=experts, m=tokens, top=tops, n=outputs, seed=seeds, act=acts)
def test_a_row_for_each_slot(name, count, m, top, n, seed, act):
    k = cols_near(name, 288)
    q, (ids, _) = stack(name, count, n, k, seed), routed(m, top, count, seed)
    x = activations((m, top), k, "normal", seed)
    wanted = products_by_expert(x, q, ids, act)
    for isa in every_isa():
        for how, (w,) in packed_too(q):
            check(f"{isa}, {how}", kvant.matmul_experts(x, w, ids, act=act), wanted)


def network(formats, count, hidden, n, seed, k=None):
    """Gate, up and down; the lengths fit the blocks."""
    gate, up, down = formats
    blocks = [kvant.format_info(name).block for name in formats]
    hidden = hidden if hidden % blocks[2] == 0 else 256
    k = k or max(blocks[0], blocks[1], 96 if max(blocks[:2]) <= 32 else 64)
    return (
        stack(gate, count, hidden, k, seed),
        stack(up, count, hidden, k, seed + 1),
        stack(down, count, n, hidden, seed + 2),
    )


@given(
    formats=triples, count=experts, m=st.integers(1, 9), top=tops, hidden=hidden_lengths,
    n=outputs, seed=seeds, act=acts, activation=st.sampled_from(ACTIVATIONS), limit=threads,
)  # fmt: skip
def test_networks_are_those_of_the_reference(
    formats, count, m, top, hidden, n, seed, act, activation, limit
):
    parts = network(formats, count, hidden, n, seed)
    ids, factors = routed(m, top, count, seed)
    x = activations((m,), parts[0].shape[2], "normal", seed)
    wanted = reference.moe_ffn(x, *map(pair, parts), ids, factors, joined(activation), act)
    for isa in every_isa():
        for how, some in packed_too(*parts):
            got = kvant.moe_ffn(
                x, *some, ids, factors, activation=activation, act=act, threads=limit
            )
            check(f"{isa}, {how}", got, wanted)


@given(
    formats=triples, count=experts, m=tokens, top=tops, hidden=hidden_lengths, n=outputs,
    seed=seeds, act=acts, activation=st.sampled_from(ACTIVATIONS), dtype=dtypes, layout=layouts,
    limit=threads,
)  # fmt: skip
def test_networks_are_compositions(
    formats, count, m, top, hidden, n, seed, act, activation, dtype, layout, limit
):
    parts = network(formats, count, hidden, n, seed)
    ids, factors = routed(m, top, count, seed)
    x = activations((m,), parts[0].shape[2], "normal", seed, dtype, layout)
    wanted = composed(x, parts, ids, factors, activation, act)
    for isa in every_isa():
        for how, some in packed_too(*parts):
            got = kvant.moe_ffn(
                x, *some, ids, factors, activation=activation, act=act, threads=limit
            )
            check(f"{isa}, {how}", got, wanted)


@pytest.mark.parametrize("formats", [("q4_k", "q4_k", "q6_k"), ("q4_0", "q8_0", "f16")])
def test_many_tokens_for_one_expert(formats):
    """More columns than a group of panels holds, beside experts with one and with none."""
    parts = network(formats, 4, 256, 50, 0, 512)
    ids = np.full((300, 2), 2)
    ids[7, 1] = 0
    factors = routed(300, 2, 4, 0)[1]
    x = activations((300,), 512, "normal", 0)
    wanted = composed(x, parts, ids, factors, "silu", "q8")
    for isa in every_isa():
        for how, some in packed_too(*parts):
            for limit in (1, 3):
                got = kvant.moe_ffn(x, *some, ids, factors, threads=limit)
                check(f"{isa}, {how}", got, wanted)


def test_more_tokens_than_one_run_takes():
    """Outputs so long that 256 MiB hold those of some hundred tokens."""
    parts = network(("q8_0", "q8_0", "q4_0"), 3, 32, 70_000, 0, 32)
    ids, factors = routed(270, 4, 3, 0)
    x = activations((270,), 32, "normal", 0)
    whole = kvant.moe_ffn(x, *parts, ids, factors)
    for t in (0, 133, 134, 135, 136, 269):
        alone = kvant.moe_ffn(x[t], *parts, ids[t], factors[t])
        assert np.array_equal(words(whole[t]), words(alone)), t


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("m", [2, 40])
def test_a_row_that_is_not_finite_touches_no_other(bad, m, isa):
    parts = [q.pack() for q in network(("q4_k", "q5_0", "q6_k"), 4, 256, 33, 0)]
    ids, factors = routed(m, 3, 4, 0)
    x = activations((m,), 256, "normal", 0)
    clean, products = kvant.moe_ffn(x, *parts, ids, factors), kvant.matmul_experts(x, parts[0], ids)
    x[1, 77] = bad
    others = np.arange(m) != 1
    got, found = kvant.moe_ffn(x, *parts, ids, factors), kvant.matmul_experts(x, parts[0], ids)
    assert np.array_equal(words(got[others]), words(clean[others]))
    assert np.array_equal(words(found[others]), words(products[others]))
    assert (words(got[1]) == CANONICAL_NAN).all() and (words(found[1]) == CANONICAL_NAN).all()


def test_threads_do_not_show(isa):
    parts = [q.pack() for q in network(("q4_0", "q4_0", "q4_k"), 8, 512, 300, 0, 512)]
    for m in (1, 5, 64):
        ids, factors = routed(m, 4, 8, 1)
        x = activations((m,), 512, "normal", m)
        alone = words(kvant.moe_ffn(x, *parts, ids, factors, threads=1))
        for limit in (2, 3, 4):
            got = kvant.moe_ffn(x, *parts, ids, factors, threads=limit)
            assert np.array_equal(words(got), alone)


@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (2, 1, 3)])
def test_leading_axes(lead):
    parts = network(("q8_0", "q8_0", "q8_0"), 3, 64, 17, 0, 64)
    rng = np.random.default_rng(0)
    ids, factors = rng.integers(0, 3, (*lead, 2)), rng.random((*lead, 2), np.float32)
    x = activations(lead, 64, "normal", 0)
    rows, table = x.reshape(-1, 64), ids.reshape(-1, 2)
    got = kvant.moe_ffn(x, *parts, ids, factors)
    wanted = kvant.moe_ffn(rows, *parts, table, factors.reshape(-1, 2))
    check("moe_ffn", got, wanted.reshape(*lead, 17))
    products = kvant.matmul_experts(x, parts[0], ids)
    check("products", products, kvant.matmul_experts(rows, parts[0], table).reshape(*lead, 2, 64))
    slots = kvant.matmul_experts(products, parts[2], ids)
    assert slots.shape == (*lead, 2, 17)


@pytest.mark.parametrize(("m", "top"), [(0, 3), (0, 0), (3, 0)])
def test_nothing_to_do(m, top):
    parts = network(("q8_0", "q4_0", "q8_0"), 3, 64, 17, 0, 64)
    ids, factors = np.zeros((m, top), np.int64), np.zeros((m, top), np.float32)
    x = activations((m,), 64, "normal", 0) if m else np.zeros((0, 64), np.float32)
    got = kvant.moe_ffn(x, *parts, ids, factors)
    assert got.shape == (m, 17) and not words(got).any()
    assert kvant.matmul_experts(x, parts[0], ids).shape == (m, top, 64)


def test_no_experts_and_no_outputs():
    none = kvant.QTensor(np.zeros((0, 5, 34), np.uint8), "q8_0", (0, 5, 32))
    ids, x = np.zeros((2, 0), np.int64), np.ones((2, 32), np.float32)
    for w in (none, none.pack()):
        assert kvant.matmul_experts(x, w, ids).shape == (2, 0, 5)
    empty = kvant.QTensor(np.zeros((2, 0, 34), np.uint8), "q8_0", (2, 0, 32))
    assert kvant.matmul_experts(x, empty, [[0], [1]]).shape == (2, 1, 0)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint16, np.int64])
def test_ids_of_any_whole_type(dtype):
    q = stack("q8_0", 3, 5, 64, 0)
    x, ids = activations((4,), 64, "normal", 0), np.array([[0, 2], [1, 1], [2, 0], [0, 1]])
    wanted = kvant.matmul_experts(x, q, ids)
    room = np.zeros((4, 4), dtype)
    room[:, ::2] = ids
    check("strided", kvant.matmul_experts(x, q, room[:, ::2]), wanted)
