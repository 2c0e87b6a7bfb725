"""Messages of products begin with the function that was called, whoever found the mistake."""

from __future__ import annotations

import re

import numpy as np
import pytest

import kvant
from distributions import distribution
from kvant import _core

M, N, K = 3, 32, 64
X = distribution("normal", M, K, 0)
W = kvant.quantize(distribution("normal", N, K, 1), "q8_0")
UP = kvant.QTensor(W.data[None], "q8_0", (1, N, K))
DOWN = kvant.quantize(distribution("normal", K, N, 2)[None], "q8_0")
IDS, ONES = np.zeros((M, 1), np.int64), np.ones((M, 1), np.float32)


def inside(w, *shape):
    """A result that would be written over weights."""
    return w.data.reshape(-1)[: 4 * int(np.prod(shape))].view(np.float32).reshape(shape)


def ffn(x=X, gate=W, up=W, down=DOWN[0], **options):
    return kvant.ffn(x, gate, up, down, **options)


def moe_ffn(x=X, gate=UP, up=UP, down=DOWN, ids=IDS, weights=ONES, **options):
    return kvant.moe_ffn(x, gate, up, down, ids, weights, **options)


def matmul_experts(x=X, experts=UP, ids=IDS, **options):
    return kvant.matmul_experts(x, experts, ids, **options)


HALF, NONE = X.astype(np.float16), np.zeros((M, 0), np.float32)
MISTAKES = {
    "matmul": [
        lambda: kvant.matmul(X, X),
        lambda: kvant.matmul(X, UP),
        lambda: kvant.matmul(X.astype(int), W),
        lambda: kvant.matmul(X[:, :32], W),
        lambda: kvant.matmul(HALF[:, :32], W),
        lambda: kvant.matmul(X, W, act="f16"),
        lambda: kvant.matmul(HALF, W, act="f16"),
        lambda: kvant.matmul(X, W, out=X),
        lambda: kvant.matmul(HALF, W, out=X),
        lambda: kvant.matmul(X, W, out=inside(W, M, N)),
        lambda: kvant.matmul(HALF, W, out=inside(W, M, N)),
        lambda: NONE @ W.T,
        lambda: X @ UP.pack().T,
    ],
    "matmul_many": [
        lambda: kvant.matmul_many(X, [W, X]),
        lambda: kvant.matmul_many(X, [W, UP]),
        lambda: kvant.matmul_many(X, [W] * 17),
        lambda: kvant.matmul_many(X.astype(int), [W]),
        lambda: kvant.matmul_many(X[:, :32], [W]),
        lambda: kvant.matmul_many(X, [W], act="f16"),
        lambda: kvant.matmul_many(X, [W], out=[]),
        lambda: kvant.matmul_many(X, [W], out=[X]),
        lambda: kvant.matmul_many(X, [W], out=[inside(W, M, N)]),
    ],
    "matmul_experts": [
        lambda: matmul_experts(experts=X),
        lambda: matmul_experts(experts=W),
        lambda: matmul_experts(X.astype(int)),
        lambda: matmul_experts(X[:, :32]),
        lambda: matmul_experts(ids=ONES),
        lambda: matmul_experts(ids=IDS + 1),
        lambda: matmul_experts(act="f16"),
        lambda: matmul_experts(out=X),
        lambda: matmul_experts(out=inside(UP, M, 1, N)),
    ],
    "ffn": [
        lambda: ffn(gate=X),
        lambda: ffn(up=UP),
        lambda: ffn(down=W),
        lambda: ffn(X.astype(int)),
        lambda: ffn(X[:, :32]),
        lambda: ffn(act="f16"),
        lambda: ffn(activation="tanh"),
        lambda: ffn(out=ONES),
        lambda: ffn(out=inside(W, M, K)),
    ],
    "moe_ffn": [
        lambda: moe_ffn(down=X),
        lambda: moe_ffn(gate=W),
        lambda: moe_ffn(down=UP),
        lambda: moe_ffn(X.astype(int)),
        lambda: moe_ffn(X[:, :32]),
        lambda: moe_ffn(ids=ONES),
        lambda: moe_ffn(ids=IDS - 1),
        lambda: moe_ffn(weights=IDS),
        lambda: moe_ffn(act="f16"),
        lambda: moe_ffn(activation="tanh"),
        lambda: moe_ffn(out=ONES),
        lambda: moe_ffn(out=inside(UP, M, K)),
    ],
    "pack": [
        lambda: UP[0][0].pack(),
        lambda: _core.pack(W.info.number, W.data.reshape(-1), N, K, np.zeros(9, np.uint8), 0),
        lambda: _core.packed_bytes(W.info.number, N, K + 1),
    ],
    "unpack": [
        lambda: _core.unpack(W.info.number, W.pack().data, N, K, np.zeros(9, np.uint8), 0),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("function", "call"), [(name, call) for name, calls in MISTAKES.items() for call in calls]
)
def test_the_function_stands_first(function, call):
    before = X.copy(), W.data.copy()
    with pytest.raises(kvant.Error) as caught:
        call()
    assert re.match(rf"\[{function}\] \S", str(caught.value)), str(caught.value)
    assert np.array_equal(X, before[0]) and np.array_equal(W.data, before[1])
