"""Base files of llama-perplexity: what its `--kl-divergence-base` writes and reads.

After a magic word stand the window length, the vocabulary and the number of windows, then all
tokens; then, for each scored position, a line through the log-probabilities (scale and offset) and
16 bits for each token. Log-probabilities more than 16 below the largest are stored as that, so the
file is not exact: docs/quality.md says how far. The layout is that of llama.cpp's
tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import ShapeError
from ..gguf.replace import replacing
from .divergence import F32, Scores, checked_targets, row_divergence
from .mapped import MappedFile
from .scoring import Window, with_bos

__all__ = ["MAGIC", "KldFile", "KldWriter", "decode_rows", "encode_rows", "write_kld"]

MAGIC = b"_logits_"
_SIZES = struct.Struct("<Iii")
# Below this log-probability llama-perplexity leaves a term of the divergence out.
_FLOOR = np.float32(-16)
_STEPS = np.float32(65535)


def encode_rows(logits: F32) -> npt.NDArray[np.uint16]:
    """Rows of logits [rows, vocab] as a file holds them: u16 [rows, 2 * ceil(vocab / 2) + 4]."""
    rows, vocab = logits.shape
    out = np.zeros((rows, _words(vocab)), "<u2")
    if not rows:
        return out
    largest = logits.max(axis=1, keepdims=True)
    lowest = np.maximum(logits.min(axis=1, keepdims=True), largest - np.float32(16))
    log_sum = row_divergence(logits, logits).base_lse[:, None] - largest
    scale = (largest - lowest) / _STEPS
    offset = lowest - largest - log_sum.astype(np.float32)
    out[:, :4] = np.concatenate([scale, offset], axis=1).astype("<f4").view("<u2")
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.rint((np.float32(1) / scale) * (logits - lowest))
    out[:, 4 : 4 + vocab] = np.where((logits > lowest) & (scale > 0), steps, 0)
    return out


def decode_rows(words: npt.NDArray[np.uint16], vocab: int) -> F32:
    """Log-probabilities [rows, vocab] from what `encode_rows` made."""
    line = np.ascontiguousarray(words[:, :4]).view("<f4")
    found: F32 = line[:, :1] * words[:, 4 : 4 + vocab].astype(np.float32) + line[:, 1:]
    return found


def _words(vocab: int) -> int:
    return 2 * ((vocab + 1) // 2) + 4


class KldFile:
    """A base file of llama-perplexity, mapped.

    Attributes
    ----------
    ctx, vocab : int
    tokens : int32 [windows, ctx]
        As the text had them: who runs a model puts BOS at the start of each window.
    windows : tuple of Window

    Raises
    ------
    FormatError
        If the file is not one, or is cut short.

    Parameters
    ----------
    path : path
    bos : int or None
        Replaces the first token of each of `windows`.
    """

    def __init__(self, path: str | os.PathLike[str], bos: int | None = None) -> None:
        self._file = file = MappedFile(path, "KldFile")
        magic = file.take(0, min(len(MAGIC), file.size))
        if magic != MAGIC:
            raise file.error(repr(MAGIC), repr(magic))
        self.ctx, self.vocab, count = _SIZES.unpack(file.take(len(MAGIC), _SIZES.size))
        if self.ctx < 4 or self.vocab < 1 or count < 1:
            raise file.error(
                "a context of 4, a vocabulary and a window", (self.ctx, self.vocab, count)
            )
        self._first = self.ctx // 2
        self._rows = self.ctx - 1 - self._first
        start = len(MAGIC) + _SIZES.size
        self._data = start + 4 * self.ctx * count
        size = self._data + count * self._rows * 2 * _words(self.vocab)
        if size != file.size:
            raise file.error(f"{size} bytes for {count} windows", file.size)
        self.tokens = file.array(start, (count, self.ctx), "<i4")
        if self.tokens.min() < 0 or self.tokens.max() >= self.vocab:
            raise file.error(f"tokens in 0..{self.vocab - 1}", "others")
        self.windows = tuple(
            Window(with_bos(row.astype(np.int64), bos), self._first) for row in self.tokens
        )

    def words(self, index: int) -> npt.NDArray[np.uint16]:
        """A window's rows as they are stored."""
        width = _words(self.vocab)
        offset = self._data + range(len(self.windows))[index] * self._rows * 2 * width
        return self._file.array(offset, (self._rows, width), "<u2")

    def log_probs(self, index: int) -> F32:
        """Log-probabilities [rows, vocab] of the scored positions of a window."""
        return decode_rows(self.words(index), self.vocab)

    def __iter__(self) -> Iterator[tuple[Window, F32]]:
        """Windows with their log-probabilities."""
        for index, window in enumerate(self.windows):
            yield window, self.log_probs(index)

    def compare(self, index: int, test: F32) -> Scores:
        """Score a test model's logits as llama-perplexity does.

        The stored numbers stand for log-probabilities although they no longer add up to 1, and
        terms of -16 or less are left out: a divergence may come out slightly below 0.
        """
        log_p = self.log_probs(index)
        if test.shape != log_p.shape:
            raise ShapeError(f"[KldFile.compare] expected {log_p.shape}, got {test.shape}")
        at = checked_targets("KldFile.compare", self.windows[index].targets, log_p.shape)
        rows = np.arange(len(at))
        base_nll = -log_p[rows, at].astype(np.float64)
        top = log_p.argmax(axis=1)
        log_p[log_p <= _FLOOR] = -np.inf
        found = row_divergence(log_p, test)
        # sum of P log(P / q), where the P add up to exp(base_lse).
        total = np.exp(found.base_lse)
        return Scores(
            kl=total * (found.kl + found.base_lse),
            nll=found.test_lse - test[rows, at],
            base_nll=base_nll,
            same=top == found.test_top,
        )

    def close(self) -> None:
        """Unmap the file."""
        self._file.close()

    def __enter__(self) -> KldFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class KldWriter:
    """Takes windows in order; made by `write_kld`."""

    def __init__(self, file: BinaryIO, tokens: npt.NDArray[np.int32], vocab: int) -> None:
        self._file = file
        self._shape = (tokens.shape[1] - 1 - tokens.shape[1] // 2, vocab)
        self.missing = len(tokens)
        file.write(MAGIC + _SIZES.pack(tokens.shape[1], vocab, len(tokens)) + tokens.tobytes())

    def append(self, logits: F32) -> None:
        """Add the next window's logits at its scored positions, f32 [ctx - 1 - ctx // 2, vocab]."""
        if logits.shape != self._shape or not self.missing:
            raise ShapeError(
                f"[write_kld] expected logits {self._shape} for {self.missing} more windows, "
                f"got {logits.shape}"
            )
        self._file.write(encode_rows(logits).tobytes())
        self.missing -= 1


@contextmanager
def write_kld(
    path: str | os.PathLike[str], tokens: npt.ArrayLike, vocab: int
) -> Iterator[KldWriter]:
    """Write a base file for llama-perplexity, window by window.

    The file appears at its place when all windows have come; after an error there is none.

    Parameters
    ----------
    path : path
    tokens : int [windows, ctx]
        The text as it was, without BOS put into each window.
    vocab : int

    Yields
    ------
    KldWriter

    Raises
    ------
    ShapeError
        If tokens or logits do not fit, or windows are missing at the end.
    """
    ids: npt.NDArray[Any] = np.asarray(tokens)
    if ids.ndim != 2 or not len(ids) or ids.shape[1] < 4 or not 0 < vocab < 2**31:
        raise ShapeError(f"[write_kld] expected tokens [windows, ctx], got {list(ids.shape)}")
    if ids.min() < 0 or ids.max() >= vocab:
        raise ShapeError(f"[write_kld] expected tokens in 0..{vocab - 1}, got others")
    with replacing(path) as file:
        writer = KldWriter(file, np.ascontiguousarray(ids, "<i4"), vocab)
        yield writer
        if writer.missing:
            raise ShapeError(f"[write_kld] expected all windows, got {writer.missing} too few")
