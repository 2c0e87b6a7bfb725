"""kvant.lab.kl_divergence beside float64 NumPy; as a program, beside a read of the same memory.

    python -m benchmarks.bench_divergence [VOCAB]

Bytes are those of both matrices, once.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kvant
from kvant import isa
from kvant.arrays import empty
from kvant.bench.limits import Limits
from kvant.bench.timing import Task, turns
from kvant.lab import kl_divergence, log_softmax

pytestmark = pytest.mark.benchmark(max_time=0.5, min_rounds=5, warmup=True, disable_gc=True)

F32 = NDArray[np.float32]
VOCAB = 262144


def logits(rows: int, vocab: int) -> tuple[F32, F32]:
    """A base and a test that is near it, in huge pages where the system gives them."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(1 << 20, dtype=np.float32)
    base, test = (empty((rows, vocab), np.dtype(np.float32)) for _ in range(2))
    base[:] = np.resize(noise * np.float32(3), base.shape)
    np.add(base, np.resize(noise[::-1] / np.float32(20), base.shape), out=test)
    return base, test


@pytest.mark.parametrize("name", isa.available())
@pytest.mark.parametrize("vocab", [32000, VOCAB])
def test_kl(meter: Any, vocab: int, name: str) -> None:
    base, test = logits(8, vocab)
    kvant.isa.use(name)
    found = meter(f"KL, {vocab}", lambda: kl_divergence(base, test, threads=1), 2 * base.nbytes)
    assert np.abs(found - with_numpy(base, test)).max() < 1e-6


@pytest.mark.parametrize("vocab", [32000, VOCAB])
def test_numpy(meter: Any, vocab: int) -> None:
    base, test = logits(8, vocab)
    meter(f"KL, {vocab}", lambda: with_numpy(base, test), 2 * base.nbytes, rounds=3)


def with_numpy(base: F32, test: F32) -> Any:
    p, q = log_softmax(base), log_softmax(test)
    return (np.exp(p) * (p - q)).sum(axis=1)


def shares(vocab: int, threads: int, rounds: int = 7) -> dict[str, tuple[float, float]]:
    """GB/s of each ISA and its share of reading, timed in turns; reading itself comes first."""
    base, test = logits(max(1, (160 << 20) // (4 * vocab)), vocab)
    limits = Limits(2 * base.nbytes)
    read = limits.read(threads)
    amounts, tasks = {"read": read.amount}, {"read": read.task}
    # Scalar would take all the time.
    for name in isa.available()[:-1]:

        def run(name: str = name) -> None:
            kvant.isa.use(name)
            kl_divergence(base, test, threads=threads)

        amounts[name], tasks[name] = 2 * base.nbytes / 1e9, Task(run)
    before = isa.current()
    try:
        times = turns(tasks, rounds=rounds, sample=0.0)
    finally:
        isa.use(before)
    rates = {name: times[name].rate(amounts[name], "wall") for name in tasks}
    return {name: (rate, rate / rates["read"]) for name, rate in rates.items()}


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else VOCAB
    for count in range(1, kvant.threads() + 1):
        for label, (rate, share) in shares(wanted, count).items():
            print(f"{count} threads  {label:12} {rate:6.1f} GB/s  {100 * share:4.0f} % of read")
