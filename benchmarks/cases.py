"""What is timed: inputs that look like weights, and sizes that sit where they should."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import kvant

from .probes import buffer

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


def weights(rows: int, cols: int = COLS, seed: int = 0) -> NDArray[np.float32]:
    """Normal numbers of a model's magnitude, in huge pages."""
    x = buffer(rows * cols * 4).view(np.float32).reshape(rows, cols)
    rng = np.random.default_rng(seed)
    piece = min(rows, 512)
    x[:piece] = rng.standard_normal((piece, cols), np.float32) * np.float32(0.02)
    for start in range(piece, rows, piece):
        # Other memory, the same statistics; drawing them all anew would take longer than timing.
        count = min(piece, rows - start)
        x[start : start + count] = np.roll(x[:count], start, axis=1)
    return x


def importance(cols: int = COLS) -> NDArray[np.float32]:
    """Mean squares of activations: positive, a few columns far above the others."""
    spread = np.random.default_rng(1).standard_normal(cols, np.float32)
    return np.exp(spread, dtype=np.float32)


def packed_rows(format: str, rows: int, cols: int = COLS) -> NDArray[np.uint8]:
    """Packed rows in huge pages; random bytes with finite scales for what kvant only decodes."""
    info = kvant.format_info(format)
    distinct = min(rows, 64)
    if info.can_encode:
        piece = kvant.quantize(weights(distinct, cols), format).data
    else:
        rng = np.random.default_rng(2)
        # Below 0x70 no half, in whatever place the format keeps it, is a NaN or an infinity.
        piece = rng.integers(0, 0x70, (distinct, info.row_bytes(cols)), np.uint8)
    out = buffer(rows * info.row_bytes(cols)).reshape(rows, -1)
    for start in range(0, rows, distinct):
        out[start : start + distinct] = piece[: rows - start]
    return out
