"""Importance matrices: how much each input column of each weight matters.

An imatrix holds, for every weight, the sum of the squared activations of each column and the
number of tokens they were summed over. `importance` divides the two exactly as llama-quantize
does, so that `quantize(w, format, importance=...)` searches with the same weights. Both files of
llama.cpp are read and written: GGUF (`general.type` = "imatrix") and the older `.dat`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvant.errors import FormatError, ShapeError
from kvant.gguf.cursor import shown
from kvant.gguf.imatrix_file import Entry, ImatrixData, read_imatrix, write_gguf, write_legacy

__all__ = ["Coverage", "Imatrix", "load"]

_F32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Coverage:
    """How many tokens stand behind one entry.

    `matrices` is the number of experts (1 for a dense weight), `tokens` the largest count,
    `unseen` the experts that no token reached: their importance is 1 everywhere.
    """

    matrices: int
    tokens: int
    unseen: tuple[int, ...]


class Imatrix:
    """Sums of squared activations, weight by weight.

    Parameters
    ----------
    chunk_size
        Tokens in a chunk; only the files use it.
    datasets
        Names of the texts behind the numbers.

    Examples
    --------
    >>> import numpy as np
    >>> im = Imatrix()
    >>> im.add("blk.0.ffn_up.weight", np.array([[1.0, 2.0], [3.0, 0.0]]))
    >>> im.importance("blk.0.ffn_up.weight").tolist()
    [5.0, 2.0]
    """

    def __init__(self, chunk_size: int = 512, datasets: Sequence[str] = ()) -> None:
        if chunk_size < 1:
            raise ShapeError(f"[Imatrix] expected a chunk of 1 token or more, got {chunk_size}")
        self._data = ImatrixData(chunk_size, datasets=list(datasets))

    @property
    def chunk_size(self) -> int:
        """Tokens in a chunk."""
        return self._data.chunk_size

    @property
    def chunk_count(self) -> int:
        """Chunks seen so far."""
        return self._data.chunk_count

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the texts behind the numbers."""
        return tuple(self._data.datasets)

    @property
    def _entries(self) -> dict[str, Entry]:
        return self._data.entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def importance(self, name: str, columns: int | None = None) -> NDArray[np.float32] | None:
        """Return the importance of each column of a weight, or None if nothing is known.

        Parameters
        ----------
        name
            The weight, "blk.0.ffn_down.weight".
        columns
            Row length of the weight. Needed for 3-d weights whose entry is stored flat: legacy
            files, and dense 3-d weights.

        Returns
        -------
        float32 [columns], or [matrices, columns] for experts. Experts that saw no token get 1.

        Raises
        ------
        ShapeError
            The entry does not fill whole rows of `columns`.
        """
        entry = self._entries.get(name)
        if entry is None:
            return None
        mean = entry.importance()
        if columns is not None and columns != mean.shape[1]:
            if columns < 1 or mean.size % columns:
                raise ShapeError(
                    f"[Imatrix.importance] expected rows of {columns} values for {shown(name)}, "
                    f"got {mean.size} values"
                )
            mean = mean.reshape(-1, columns)
        return mean[0] if mean.shape[0] == 1 else mean

    def counts(self, name: str) -> NDArray[np.int64]:
        """Tokens that each expert of a weight saw [matrices]; KeyError if nothing is known."""
        return np.array(self._entries[name].counts, np.int64)

    def add(
        self,
        name: str,
        x: ArrayLike,
        experts: ArrayLike | None = None,
        n_expert: int | None = None,
    ) -> None:
        """Add the activations that one weight was multiplied with.

        Parameters
        ----------
        name
            The weight.
        x
            float [..., columns], one row for each token. With `experts`: [tokens, columns], or
            [tokens, k, columns] where each chosen expert has its own input.
        experts
            int [tokens] or [tokens, k]: the experts that each token went to.
        n_expert
            Number of experts of the weight; needed with `experts`.

        Raises
        ------
        ShapeError
            Shapes do not fit each other or earlier calls.
        FormatError
            An activation is not finite, or a sum leaves f32.
        """
        rows = np.asarray(x, dtype=np.float64)
        if rows.ndim == 0 or rows.shape[-1] == 0:
            raise ShapeError(f"[Imatrix.add] expected rows of activations, got shape {rows.shape}")
        columns = rows.shape[-1]
        if experts is None:
            flat = rows.reshape(-1, columns)
            ids, matrices = np.zeros(len(flat), dtype=np.int64), 1
        else:
            flat, ids, matrices = _route(rows, np.asarray(experts), n_expert)
        if not np.isfinite(flat).all():
            raise FormatError(f"[Imatrix.add] expected finite activations, got some for {name}")
        sums = np.zeros((matrices, columns))
        for expert in np.unique(ids):
            chosen = flat[ids == expert]
            sums[expert] = (chosen * chosen).sum(axis=0)
        self.add_sums(name, sums, np.bincount(ids, minlength=matrices))

    def add_sums(self, name: str, sums: ArrayLike, counts: ArrayLike) -> None:
        """Add sums of squares that were made elsewhere.

        Parameters
        ----------
        name
            The weight.
        sums
            float [matrices, columns], over the activations of each expert; one matrix otherwise.
        counts
            int [matrices], the tokens behind each.

        Raises
        ------
        ShapeError
            Shapes do not fit each other or earlier calls.
        FormatError
            A sum is not finite or leaves f32.
        """
        squares, tokens = np.asarray(sums, np.float64), np.asarray(counts)
        if squares.ndim != 2 or tokens.shape != squares.shape[:1] or tokens.dtype.kind not in "iu":
            raise ShapeError(
                "[Imatrix.add_sums] expected sums [matrices, columns] and counts [matrices], "
                f"got {squares.shape} and {tokens.dtype} {tokens.shape}"
            )
        if not np.isfinite(squares).all():
            raise FormatError(f"[Imatrix.add_sums] expected finite sums, got others for {name}")
        self._entries[name] = self._fitted("add", name, Entry(squares, tokens.astype(np.int64)))
        most = max(int(e.counts.max()) for e in self._entries.values())
        self._data.chunk_count = max(self.chunk_count, most // self.chunk_size)

    def merge(self, other: Imatrix) -> Imatrix:
        """Add everything that `other` has seen; returns this imatrix.

        Raises
        ------
        ShapeError
            An entry has another size in `other`. Nothing has been added then.
        """
        fitted = {n: self._fitted("merge", n, e) for n, e in other._entries.items()}
        self._entries.update(fitted)
        self._data.datasets.extend(other.datasets)
        self._data.chunk_count += other.chunk_count * other.chunk_size // self.chunk_size
        return self

    def coverage(self) -> dict[str, Coverage]:
        """Return, weight by weight, how many tokens were seen and which experts saw none."""
        return {
            name: Coverage(
                matrices=len(self._entries[name].counts),
                tokens=int(self._entries[name].counts.max()),
                unseen=tuple(np.flatnonzero(self._entries[name].counts == 0).tolist()),
            )
            for name in self
        }

    def save(self, path: str | os.PathLike[str], legacy: bool = False) -> None:
        """Write a file that llama-quantize reads.

        Parameters
        ----------
        path
            The file; replaced if it exists.
        legacy
            Write the older `.dat` instead of GGUF. It keeps one count for all experts, no entry
            without tokens, and only the last dataset.

        Raises
        ------
        FormatError
            There is nothing to write.
        GGUFError
            A name is too long for the file.
        """
        seen = {n: e for n, e in self._entries.items() if not legacy or e.counts.any()}
        if not seen:
            raise FormatError("[Imatrix.save] expected an entry to write, got none")
        if legacy:
            write_legacy(path, self._data, seen)
        else:
            write_gguf(path, self._data)

    def _fitted(self, function: str, name: str, new: Entry) -> Entry:
        """Return the sum of `new` and what is there, as a new entry."""
        old = self._entries.get(name)
        if old is None:
            total = Entry(new.sums.copy(), new.counts.astype(np.int64))
        else:
            if old.sums.size != new.sums.size:
                raise ShapeError(
                    f"[Imatrix.{function}] expected {old.sums.size} values for {shown(name)}, "
                    f"got {new.sums.size}"
                )
            old, new = _broadcast(function, name, old, new)
            total = Entry(old.sums + new.sums, old.counts + new.counts)
        if total.sums.size and float(total.sums.max()) > _F32_MAX:
            raise FormatError(f"[Imatrix.{function}] expected sums within f32, got more: {name}")
        return total


def _broadcast(function: str, name: str, a: Entry, b: Entry) -> tuple[Entry, Entry]:
    """Give an entry with a single count (flat, from a legacy file) the experts of the other."""
    matrices = max(len(a.counts), len(b.counts))
    spread = []
    for entry in (a, b):
        if len(entry.counts) not in (1, matrices):
            raise ShapeError(
                f"[Imatrix.{function}] expected {matrices} experts for {shown(name)}, "
                f"got {len(entry.counts)}"
            )
        counts = np.broadcast_to(entry.counts, (matrices,))
        spread.append(Entry(entry.sums.reshape(matrices, -1), counts))
    return spread[0], spread[1]


def _route(
    rows: NDArray[np.float64], experts: NDArray[Any], n_expert: int | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    """Line up each row with the expert that it went to."""
    if experts.dtype.kind not in "iu" or experts.ndim not in (1, 2):
        raise ShapeError(
            f"[Imatrix.add] expected expert numbers [tokens] or [tokens, k], "
            f"got {experts.dtype} {experts.shape}"
        )
    ids = (experts[:, None] if experts.ndim == 1 else experts).astype(np.int64)
    if n_expert is None or (ids.size and not 0 <= ids.min() <= ids.max() < n_expert):
        raise ShapeError(
            f"[Imatrix.add] expected n_expert and expert numbers below it, got n_expert={n_expert}"
        )
    if rows.ndim == 2:
        rows = np.broadcast_to(rows[:, None], (len(rows), ids.shape[1], rows.shape[1]))
    if rows.ndim != 3 or rows.shape[:2] != ids.shape:
        raise ShapeError(
            f"[Imatrix.add] expected activations for {ids.shape[0]} tokens and {ids.shape[1]} "
            f"experts each, got shape {rows.shape}"
        )
    return rows.reshape(-1, rows.shape[-1]), ids.reshape(-1), n_expert


def load(path: str | os.PathLike[str], chunk_size: int = 512) -> Imatrix:
    """Read an imatrix, GGUF or legacy `.dat`.

    Parameters
    ----------
    path
        The file.
    chunk_size
        Tokens in a chunk of a legacy file, which does not say it. It sets the scale at which the
        file is merged with others; `importance` is the same for every power of two.

    Raises
    ------
    GGUFError
        The file breaks a rule; the message names the field and the byte offset.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "im.gguf")
    >>> im = Imatrix(datasets=["novels.txt"])
    >>> im.add("output.weight", [[1.0, 2.0]])
    >>> im.save(path)
    >>> load(path).importance("output.weight").tolist()
    [1.0, 4.0]
    """
    loaded = Imatrix(chunk_size)
    loaded._data = read_imatrix(path, chunk_size)
    return loaded
