"""What is timed: inputs that look like weights, and sizes that sit where they should."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvant.bench import inputs

__all__ = ["COLS", "Settings", "importance", "packed_rows", "weights"]

# Row length of the benchmarks: a usual width of a model, and a multiple of every block.
COLS = 4096


@dataclass(frozen=True)
class Settings:
    """How long and how large.

    Attributes
    ----------
    rounds
        Turns of every contender.
    sample
        Seconds that one sample should at least last.
    cached_rows
        Rows of a working set that stays in the second-level cache (16 KiB of f32 each).
    threads_mib, decode_mib, peer_mib
        f32 sizes: input of the threads section, output of decoding, output beside gguf-py.
    clock
        `"cpu"` or `"wall"` for one-threaded work.
    """

    rounds: int = 11
    sample: float = 0.01
    cached_rows: int = 32
    threads_mib: int = 64
    decode_mib: int = 256
    peer_mib: int = 32
    clock: str = "cpu"


QUICK = Settings(rounds=7, sample=0.002, cached_rows=16, threads_mib=16, decode_mib=96, peer_mib=16)


def importance(cols: int = COLS) -> NDArray[np.float32]:
    """Mean squares of activations: positive, a few columns far above the others."""
    spread = np.random.default_rng(1).standard_normal(cols, np.float32)
    return np.exp(spread, dtype=np.float32)


def weights(rows: int, cols: int = COLS) -> NDArray[np.float32]:
    """Normal numbers of a model's magnitude, in huge pages."""
    return inputs.weights(rows, cols)


def packed_rows(format: str, rows: int, cols: int = COLS) -> NDArray[np.uint8]:
    """Packed rows in huge pages; random bytes with finite scales for what kvant only decodes."""
    return inputs.packed_rows(format, rows, cols)
