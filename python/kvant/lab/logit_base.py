"""Files of a base model's predictions, `.kvl`: written window by window, read by anyone later.

A header of 80 bytes, then one record per window: its tokens, its scored positions (`base_modes`)
and a CRC-32 of both. All records are of one size, so the header says how long the file must be.
Everything is little-endian; docs/quality.md has the layout.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from ..errors import Error, ShapeError
from ..gguf.replace import replacing
from .base_modes import MODES, Head
from .divergence import F32, I64, Scores
from .mapped import MappedFile
from .scoring import Window

__all__ = ["MAGIC", "LogitBase", "LogitBaseWriter", "head_digest"]

MAGIC = b"KVLBASE\0"
_VERSION = 1
# version, mode, vocab, ctx, first, size, windows, head, reserved; then the CRC-32 of all before it
_HEADER = struct.Struct("<8s6IQ32sII")
_MOST = 1 << 24


def head_digest(*arrays: Any) -> bytes:
    """SHA-256 of the arrays a head is made of: tells whether two models share it."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.digest()


@dataclass(frozen=True)
class _Layout:
    """The sizes of a file; the same for all of its windows."""

    mode: str
    vocab: int
    ctx: int
    first: int
    size: int
    head: bytes

    @property
    def rows(self) -> int:
        return self.ctx - 1 - self.first

    @property
    def row_bytes(self) -> int:
        return MODES[self.mode].row_bytes(self.vocab, self.size)

    @property
    def record(self) -> int:
        return 4 * self.ctx + self.rows * self.row_bytes + 4

    def wrong(self) -> str | None:
        """What does not fit, if anything."""
        if not (0 < self.vocab <= _MOST and 4 <= self.ctx <= _MOST):
            return "a vocabulary and a context from 4"
        if not 0 <= self.first < self.ctx - 1:
            return "a first scored position inside the context"
        most = {"topk": self.vocab}.get(self.mode, _MOST)
        if MODES[self.mode].sized and not 0 < self.size <= most:
            return f"a size from 1 to {most}"
        if not MODES[self.mode].sized and self.size:
            return "no size"
        return None

    def header(self, windows: int) -> bytes:
        number = MODES[self.mode].number
        values = (_VERSION, number, self.vocab, self.ctx, self.first, self.size, windows, self.head)
        packed = _HEADER.pack(MAGIC, *values, 0, 0)
        return packed[:-4] + struct.pack("<I", zlib.crc32(packed[:-4]))


class LogitBaseWriter:
    """Takes windows in order; made by `LogitBase.create`."""

    def __init__(self, file: BinaryIO, layout: _Layout) -> None:
        self._file, self._layout = file, layout
        self.windows = 0
        file.write(layout.header(0))

    def append(self, window: Window, rows: F32) -> None:
        """Add a window.

        Parameters
        ----------
        window : Window
            Of the file's context and first scored position.
        rows : float32
            Hidden states [scored, width] in the hidden modes, else logits [scored, vocab].

        Raises
        ------
        ShapeError
            If the window or the rows do not fit the file.
        Error
            If a row has a NaN.
        """
        layout = self._layout
        mode = MODES[layout.mode]
        wanted = (layout.rows, layout.size if mode.hidden else layout.vocab)
        if (len(window.tokens), window.first) != (layout.ctx, layout.first):
            raise ShapeError(
                f"[LogitBase.append] expected windows of {layout.ctx} tokens scored from "
                f"{layout.first} on, got {len(window.tokens)} from {window.first} on"
            )
        values = np.asarray(rows, np.float32)
        if values.shape != wanted:
            raise ShapeError(f"[LogitBase.append] expected rows {wanted}, got {values.shape}")
        if window.tokens.min() < 0 or window.tokens.max() >= layout.vocab:
            raise ShapeError(f"[LogitBase.append] expected tokens below {layout.vocab}, got others")
        if np.isnan(values).any() or not (values.max(axis=1) < np.inf).all():
            raise Error("[LogitBase.append] expected finite rows, got NaN or infinity")
        data = window.tokens.astype("<i4").tobytes()
        data += mode.encode(values, window.targets, layout.size).tobytes()
        self._file.write(data + struct.pack("<I", zlib.crc32(data)))
        self.windows += 1

    def finish(self) -> None:
        """Write the number of windows, without which the file is none."""
        if not self.windows:
            raise ShapeError("[LogitBase.create] expected at least one window, got none")
        self._file.seek(0)
        self._file.write(self._layout.header(self.windows))


class LogitBase:
    """A base model's predictions in a mapped file.

    Parameters
    ----------
    path : path
    head : callable or None
        Hidden states f32 [rows, width] to logits f32 [rows, vocab]; needed by the hidden modes.

    Attributes
    ----------
    mode : str
        See `kvant.lab.base_modes`.
    vocab, ctx, size : int
        `size` is the width of hidden states, or k; 0 in mode f16.
    head_digest : bytes
        SHA-256 of the head that belongs to hidden states; zeros where nobody said.
    windows : tuple of Window

    Raises
    ------
    FormatError
        If the file is not of this kind, is cut short, or has changed.
    """

    def __init__(self, path: str | os.PathLike[str], head: Head | None = None) -> None:
        self.head = head
        self._file = file = MappedFile(path, "LogitBase")
        raw = file.take(0, min(_HEADER.size, file.size))
        if raw[: len(MAGIC)] != MAGIC:
            raise file.error(repr(MAGIC), repr(raw[: len(MAGIC)]))
        fields = _HEADER.unpack(file.take(0, _HEADER.size))
        _, version, number, vocab, ctx, first, size, count, digest, _, check = fields
        if version != _VERSION:
            raise file.error(f"version {_VERSION}", version)
        if check != zlib.crc32(raw[:-4]):
            raise file.error("a header as it was written", "another checksum")
        names = {mode.number: name for name, mode in MODES.items()}
        if number not in names:
            raise file.error(f"a mode in 0..{len(names) - 1}", number)
        self._layout = layout = _Layout(names[number], vocab, ctx, first, size, digest)
        if wrong := layout.wrong():
            raise file.error(wrong, (vocab, ctx, first, size))
        whole = _HEADER.size + count * layout.record
        if not count or whole != file.size:
            raise file.error(f"{whole} bytes for {count} windows", file.size)
        self.mode, self.vocab, self.ctx, self.size = layout.mode, vocab, ctx, size
        self.head_digest: bytes = digest
        starts = (_HEADER.size + index * layout.record for index in range(count))
        self.windows = tuple(
            Window(file.array(start, (ctx,), "<i4").astype(np.int64), first) for start in starts
        )

    @staticmethod
    def create(
        path: str | os.PathLike[str],
        mode: str,
        *,
        vocab: int,
        ctx: int,
        first: int | None = None,
        size: int = 0,
        head: bytes = bytes(32),
    ) -> AbstractContextManager[LogitBaseWriter]:
        """Write such a file window by window.

        It appears at its place when the `with` block ends; after an error or Ctrl-C there is none.

        Parameters
        ----------
        path : path
        mode : str
            "hidden", "hidden-f16", "f16" or "topk".
        vocab, ctx : int
        first : int or None
            First scored position of each window; None for half the context.
        size : int
            Width of the hidden states, or k.
        head : bytes
            `head_digest` of the head that makes logits of hidden states.

        Returns
        -------
        context manager of LogitBaseWriter

        Raises
        ------
        ShapeError
            If the numbers do not fit each other.
        """
        if mode not in MODES:
            raise ShapeError(f"[LogitBase.create] expected a mode of {list(MODES)}, got {mode!r}")
        layout = _Layout(mode, vocab, ctx, ctx // 2 if first is None else first, size, head)
        wrong = layout.wrong() or (None if len(head) == 32 else "a digest of 32 bytes")
        if wrong:
            got = (vocab, ctx, layout.first, size, len(head))
            raise ShapeError(f"[LogitBase.create] expected {wrong}, got {got}")
        return _written(path, layout)

    def stored(self, index: int) -> Any:
        """What is kept of a window: hidden states, logits minus their largest, or a `TopK`.

        FormatError if its bytes are not those that were written.
        """
        layout = self._layout
        start = _HEADER.size + range(len(self.windows))[index] * layout.record
        body = self._file.take(start, layout.record - 4)
        [check] = struct.unpack("<I", self._file.take(start + len(body), 4))
        if check != zlib.crc32(body):
            raise self._file.error(f"window {index} as it was written", "another checksum")
        data = np.frombuffer(body, np.uint8, offset=4 * layout.ctx)
        rows = data.reshape(layout.rows, layout.row_bytes)
        return MODES[self.mode].decode(rows, self.vocab, self.size)

    def __iter__(self) -> Iterator[tuple[Window, Any]]:
        """Windows with what is stored of them."""
        for index, window in enumerate(self.windows):
            yield window, self.stored(index)

    def compare(self, index: int, test: F32) -> Scores:
        """Score a test model's logits [scored, vocab] of a window.

        In mode topk `kl` is a lower bound: what is outside of the k is taken as one token.
        """
        if test.shape != (self._layout.rows, self.vocab):
            raise ShapeError(
                f"[LogitBase.compare] expected logits {(self._layout.rows, self.vocab)}, "
                f"got {test.shape}"
            )
        targets: I64 = self.windows[index].targets
        return MODES[self.mode].compare(self.stored(index), test, targets, self.head)

    def close(self) -> None:
        """Unmap the file."""
        self._file.close()

    def __enter__(self) -> LogitBase:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _written(path: str | os.PathLike[str], layout: _Layout) -> Iterator[LogitBaseWriter]:
    with replacing(path) as file:
        writer = LogitBaseWriter(file, layout)
        yield writer
        writer.finish()
