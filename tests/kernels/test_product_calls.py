"""How products are called: results given, threads, forks, refusals."""

from __future__ import annotations

import os
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from product_cases import activations, check, reference_product, weights

import kvant
from support import run_python

X = activations((4,), 256, "normal", 0)
Q = weights("q4_k", 19, 256, 0)
P = Q.pack()
STACK = kvant.QTensor(Q.data[:18].reshape(2, 9, -1), "q4_k", (2, 9, 256))


class TestOut:
    @pytest.mark.parametrize("w", [Q, P], ids=["file", "packed"])
    @pytest.mark.parametrize("x", [X, X.astype(np.float16), X[::2], X[0]])
    def test_it_is_written_and_returned(self, w, x):
        room = np.full((*x.shape[:-1], 19), 7, np.float32)
        assert kvant.matmul(x, w, out=room) is room
        check("out", room, reference_product(x, Q))

    def test_several(self):
        rooms = [np.full((4, 19), 7, np.float32) for _ in range(2)]
        found = kvant.matmul_many(X, [Q, P], out=rooms)
        assert all(a is b for a, b in zip(found, rooms, strict=True))
        for room in rooms:
            check("out", room, reference_product(X, Q))

    def test_neighbours_stay(self):
        room = np.full(4 * 19 + 32, 7, np.float32)
        kvant.matmul(X, P, out=room[16:-16].reshape(4, 19))
        assert (room[:16] == 7).all() and (room[-16:] == 7).all()

    @pytest.mark.parametrize("act", ["q8", "f32"])
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_nothing_is_allocated(self, act, dtype):
        x, q = activations((30,), 256, "normal", 0).astype(dtype), weights("q4_0", 512, 256, 0)
        # A larger result would come from the library's own memory, which is not traced.
        out, p = np.empty((30, 512), np.float32), q.pack()

        def peak(**options):
            kvant.matmul(x, p, act=act, **options)
            tracemalloc.start()
            kvant.matmul(x, p, act=act, **options)
            kvant.matmul(x, q, act=act, **options)
            kvant.matmul_many(x, [p], act=act, out=[out] if options else None)
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return most

        assert peak(out=out) < 4096
        assert peak() > out.nbytes


def refused(call, message, error=kvant.ShapeError):
    with pytest.raises(error, match=message):
        call()


class TestRefusals:
    @pytest.mark.parametrize(
        ("out", "message"),
        [
            (np.zeros((4, 18), np.float32), r"out of float32 \(4, 19\), got float32 \(4, 18\)"),
            (np.zeros((19, 4), np.float32).T, "C-contiguous, aligned and writable"),
            (np.zeros((4, 19)), r"out of float32 \(4, 19\), got float64 \(4, 19\)"),
            (np.zeros((4, 19), np.uint32), "got uint32"),
            (np.zeros(76, np.float32), r"got float32 \(76,\)"),
            (np.zeros((4, 38), np.float32)[:, ::2], "C-contiguous, aligned and writable"),
            (np.zeros((8, 19), np.float32)[::2], "C-contiguous, aligned and writable"),
            (np.zeros(305, np.uint8)[1:].view(np.float32).reshape(4, 19), "aligned and writable"),
            (np.broadcast_to(np.float32(0), (4, 19)), "C-contiguous, aligned and writable"),
            (np.frombuffer(bytes(304), np.float32).reshape(4, 19), "C-contiguous, aligned and wri"),
            ([[0.0] * 19] * 4, r"out of float32 \(4, 19\), got list"),
        ],
    )
    def test_results_that_do_not_fit(self, out, message):
        for x in (X, X.astype(np.float16)):
            refused(lambda x=x: kvant.matmul(x, Q, out=out), rf"^\[matmul\] expected .*{message}")
        refused(lambda: kvant.matmul_many(X, [P], out=[out]), message)

    @pytest.mark.parametrize(
        "bad", [X.astype(np.float64), X.astype(np.int8), X.tolist(), X.astype(">f4")]
    )
    def test_activations_of_another_type(self, bad):
        refused(lambda: kvant.matmul(bad, Q), r"\[matmul\] expected f32, f16 or bf16, got")

    def test_activations_of_another_shape(self):
        refused(
            lambda: kvant.matmul(X[:, :32], Q),
            r"expected x \[..., 256\] for weights \(19, 256\), got \(4, 32\)",
        )
        refused(
            lambda: kvant.matmul(X[:, :32].astype(np.float16), P),
            r"x \[..., 256\] for weights \(19, 256\), got \(4, 32\)",
        )
        refused(
            lambda: kvant.matmul_many(X, [Q, weights("q8_0", 3, 32, 0)]), r"expected x \[..., 32\]"
        )
        refused(lambda: kvant.matmul(np.float32(1), Q), "expected at least one axis, got a scalar")
        refused(
            lambda: kvant.matmul(np.zeros((256, 4), np.float32).T, Q),
            "expected a contiguous last axis",
        )
        refused(lambda: kvant.matmul(np.zeros((4, 0), np.float32), Q), r"expected x \[..., 256\]")

    @pytest.mark.parametrize("act", ["int8", "Q8", "", None, 0])
    def test_unknown_activations(self, act):
        for call in (
            lambda: kvant.matmul(X, Q, act=act),
            lambda: kvant.matmul_many(X, [Q], act=act),
        ):
            refused(call, r"expected act to be 'q8' or 'f32', got")

    def test_weights_of_another_shape(self):
        one = kvant.QTensor(Q.data[0], "q4_k", (256,))
        for w in (one, STACK, STACK.pack()):
            refused(lambda w=w: kvant.matmul(X, w), r"\[matmul\] expected weights \[n, k\], got")

    def test_how_many(self):
        assert len(kvant.matmul_many(X, [P] * 16)) == 16
        refused(lambda: kvant.matmul_many(X, [P] * 17), "expected up to 16 weights, got 17")
        refused(
            lambda: kvant.matmul_many(X, [P, Q], out=[np.zeros((4, 19), np.float32)]),
            "expected 2 arrays as out, got 1",
        )
        refused(lambda: kvant.matmul_many(X, [], out=[X]), "expected 0 arrays as out, got 1")

    def test_overlaps(self):
        both = np.zeros(4 * 256 + 76, np.float32)
        x, out = both[: 4 * 256].reshape(4, 256), both[4 * 256 :].reshape(4, 19)
        kvant.matmul(x, Q, out=out)
        for first in (0, 4 * 256 - 1, 500):
            over = both[first : first + 76].reshape(4, 19)
            refused(lambda over=over: kvant.matmul(x, Q, out=over), "y overlaps x, weights")
        raw = np.zeros(19 * 144 + 304, np.uint8)
        w = kvant.QTensor(raw[: 19 * 144].reshape(19, 144), "q4_k", (19, 256))
        kvant.matmul(X, w, out=raw[19 * 144 :].view(np.float32).reshape(4, 19))
        for first in (0, 19 * 144 - 4):
            over = raw[first : first + 304].view(np.float32).reshape(4, 19)
            refused(lambda over=over: kvant.matmul(X, w, out=over), "y overlaps x, weights")
        p = w.pack()
        over = p.data[:304].view(np.float32).reshape(4, 19)
        refused(lambda: kvant.matmul(X, p, out=over), "y overlaps x, weights")
        assert np.array_equal(p.unpack().data, w.data)
        rows = np.zeros((7, 19), np.float32)
        kvant.matmul_many(X[:3], [Q, Q], out=[rows[:3], rows[3:6]])
        refused(lambda: kvant.matmul_many(X, [Q, Q], out=[rows[:4], rows[3:]]), "or another y")
        refused(lambda: kvant.matmul_many(X, [Q, P], out=[rows[:4], rows[:4]]), "or another y")


def test_nothing_of_nothing_in_a_new_thread():
    """A thread that never had scratch memory; its lack once passed for a lack of memory."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(kvant.matmul_many, X, []).result() == []


def test_callers_in_eight_python_threads(isa):
    x = activations((70,), 512, "t5", 0)
    several = [weights(name, 90, 512, 0) for name in ("q4_k", "q8_0", "iq4_nl", "f16")]
    several += [w.pack() for w in several]
    wanted = [kvant.matmul(x, w, threads=1) for w in several]
    start = threading.Barrier(8)

    def work(caller):
        start.wait()
        for turn in range(4):
            i = (caller + turn) % len(several)
            check(isa, kvant.matmul(x, several[i], threads=turn + 1), wanted[i])
        for got, one in zip(kvant.matmul_many(x, several, threads=2), wanted, strict=True):
            check(isa, got, one)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [True] * 8


FORK = """
import os, warnings
import numpy as np, kvant
warnings.simplefilter("ignore")
x = np.random.default_rng(0).standard_normal((70, 512)).astype(np.float32)
q = kvant.quantize(np.resize(x, (200, 512)), "q4_k")
p = q.pack(threads=3)
wanted = kvant.matmul(x, p, threads=3)
for _ in range(5):
    child = os.fork()
    if child == 0:
        found = [kvant.matmul(x, w, threads=n) for n in (3, 1, 4) for w in (p, q, q.pack())]
        os._exit(0 if all(np.array_equal(y, wanted) for y in found) else 1)
    assert np.array_equal(kvant.matmul(x, p, threads=2), wanted)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_children_multiply():
    done = run_python(FORK, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("fine", "")


def test_weights_must_be_quantized():
    x = np.ones((1, 32), np.float32)
    for call in (lambda: kvant.matmul(x, x), lambda: kvant.matmul_many(x, [x])):
        with pytest.raises(kvant.ShapeError, match="expected weights as QTensor or PackedTensor"):
            call()
