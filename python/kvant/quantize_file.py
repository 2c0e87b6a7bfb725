"""Quantize a GGUF file into another one: the same tensor types and bytes as llama-quantize writes.

Tensors are read from a memory map, encoded in slabs of rows and written at once, so memory stays
small whatever the size of the model.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import gguf
from .errors import FormatError, ShapeError
from .formats import format_info
from .imatrix import Imatrix
from .imatrix import load as load_imatrix
from .qtensor import QTensor
from .quantize_tensor import EMBEDDINGS, importance_of, quantize_tensor
from .recipe_table import UNIFORM_FILE_TYPES
from .recipes import Recipe, TensorInfo, plan, recipe

__all__ = [
    "Progress",
    "QuantizeSummary",
    "TensorChange",
    "output_metadata",
    "plan_file",
    "quantize_file",
]

Progress = Callable[[str, int, int], None]
"""Called with a tensor's name, the weights done so far and all weights of the file."""

_FLOATS = frozenset({"f32", "f16", "bf16"})
_NEVER_NEED_IMPORTANCE = EMBEDDINGS | {"output.weight"}
_TEXT_LIMIT = 127  # llama.cpp keeps such strings in 128 bytes

_QUANTIZATION_VERSION = np.uint32(2)


@dataclass(frozen=True)
class TensorChange:
    """One tensor before and after; `importance` tells whether an importance matrix was used."""

    name: str
    shape: tuple[int, ...]
    source: str
    format: str
    source_bytes: int
    bytes: int
    importance: bool


@dataclass(frozen=True)
class QuantizeSummary:
    """What `quantize_file` did, or in a dry run would do."""

    type: str
    tensors: tuple[TensorChange, ...]
    seconds: float
    dry_run: bool

    @property
    def source_bytes(self) -> int:
        return sum(change.source_bytes for change in self.tensors)

    @property
    def bytes(self) -> int:
        return sum(change.bytes for change in self.tensors)

    @property
    def weights(self) -> int:
        return sum(_size(change.shape) for change in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.weights if self.weights else 0.0

    @property
    def without_importance(self) -> tuple[str, ...]:
        """Tensors that were encoded without importance although their format can use it."""
        return tuple(
            change.name
            for change in self.tensors
            if change.format != change.source
            and not change.importance
            and format_info(change.format).uses_importance
        )


def quantize_file(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None,
    type: str | Mapping[str, str],
    imatrix: Imatrix | str | os.PathLike[str] | None = None,
    overrides: Sequence[tuple[str, str]] = (),
    pure: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    allow_requantize: bool = False,
) -> QuantizeSummary:
    """Read a GGUF file and write it with its weights in other formats.

    Parameters
    ----------
    src, dst : path
        `dst` may be None in a dry run; otherwise it is replaced as a whole when all is done, and
        left as it was on failure.
    type : str or mapping
        A recipe (`Q4_K_M`) or a format for all tensors (`q4_k`); see `kvant.recipes.recipe`. Or the
        format of each tensor by name: those that are not named stay as they are.
    imatrix : Imatrix, path or None
        Importance of each input column, used by the formats that can.
    overrides : sequence of (regex, format)
        The first pattern found in a tensor's name sets its format.
    pure : bool
        The recipe's base format for every tensor that may be quantized.
    dry_run : bool
        Only say what would be done.
    threads : int or None
        Threads of the encoder; the result does not depend on it.
    progress : callable or None
        See `Progress`.
    allow_requantize : bool
        Also encode tensors that are quantized already, from their decoded values.

    Raises
    ------
    FormatError
        If the type is unknown, a chosen format cannot be encoded, a tensor is quantized already,
        or a recipe needs an importance matrix.
    ShapeError
        If an importance vector does not fit its tensor, or `dst` is `src`.
    GGUFError
        If `src` is not a sound GGUF file.

    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from kvant import gguf
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> w = QTensor.from_bytes(np.zeros(2 * 4 * 256, np.uint8), "f16", (4, 256))
    >>> gguf.write(folder / "a.gguf", {"general.architecture": "llama"}, {"ffn_up.weight": w})
    >>> done = quantize_file(folder / "a.gguf", folder / "b.gguf", "Q8_0")
    >>> done.tensors[0].format, done.bits_per_weight
    ('q8_0', 8.5)
    """
    started = time.perf_counter()
    if not isinstance(type, str) and (overrides or pure):
        raise FormatError("[quantize_file] expected no overrides beside a mapping, got some")
    if dst is None and not dry_run:
        raise ShapeError("[quantize_file] expected a destination, got None without dry_run")
    if dst is not None and os.path.exists(dst) and os.path.samefile(src, dst):
        raise ShapeError(
            f"[quantize_file] expected two different files, got {os.fspath(src)} twice"
        )
    matrix, matrix_path = _load_imatrix(imatrix)
    with gguf.open(src) as file:
        if isinstance(type, str):
            chosen = recipe(type)
            formats = plan_file(file, chosen, matrix, overrides, pure)
        else:
            chosen, formats = _as_given(file, type)
        changes = tuple(_change(file, name, fmt, matrix) for name, fmt in formats.items())
        if not dry_run:
            assert dst is not None
            _refuse(chosen, changes, matrix is not None, allow_requantize)
            total = sum(_size(change.shape) for change in changes)
            count = _Count(progress, total)
            sources = {
                change.name: _source(file, change, matrix, threads, count) for change in changes
            }
            metadata = output_metadata(file.metadata, chosen, matrix, matrix_path)
            gguf.write(dst, metadata, sources)
    return QuantizeSummary(chosen.name, changes, time.perf_counter() - started, dry_run)


def plan_file(
    file: gguf.GGUFFile,
    chosen: str | Recipe,
    matrix: Imatrix | None = None,
    overrides: Sequence[tuple[str, str]] = (),
    pure: bool = False,
) -> dict[str, str]:
    """The format of each tensor of an open file, in the order in which they are written.

    Tensors of integer types keep theirs (`i32`, ...).
    """
    infos = [_info(file, name) for name in file.tensors]
    has_imatrix = matrix is not None and len(matrix) > 0
    return plan(
        chosen, file.metadata, infos, has_imatrix=has_imatrix, overrides=overrides, pure=pure
    )


def _as_given(file: gguf.GGUFFile, given: Mapping[str, str]) -> tuple[Recipe, dict[str, str]]:
    """A format for each tensor, and the recipe that labels the file: that of most numbers."""
    unknown = set(given) - set(file.tensors)
    if unknown:
        raise FormatError(f"[quantize_file] expected tensors of the file, got {min(unknown)!r}")
    infos = [_info(file, name) for name in file.tensors]
    formats = {info.name: given.get(info.name, info.format) for info in infos}
    numbers: Counter[str] = Counter()
    for info in infos:
        numbers[formats[info.name]] += _size(info.shape)
    labels = [name for name, _ in numbers.most_common() if name in UNIFORM_FILE_TYPES]
    if not labels:
        raise FormatError("[quantize_file] expected a tensor with a known format, got none")
    return recipe(labels[0]), formats


def output_metadata(
    metadata: Mapping[str, Any],
    chosen: Recipe,
    matrix: Imatrix | None = None,
    matrix_path: str | None = None,
) -> dict[str, Any]:
    """The metadata of the quantized file: the source's, and what says how it was made."""
    own: dict[str, Any] = {
        "general.quantization_version": _QUANTIZATION_VERSION,
        "general.file_type": np.uint32(chosen.file_type),
    }
    if matrix is not None and len(matrix):
        if matrix_path is not None:
            own["quantize.imatrix.file"] = _short(matrix_path)
        if matrix.datasets:
            own["quantize.imatrix.dataset"] = _short(matrix.datasets[0])
        own["quantize.imatrix.entries_count"] = np.uint32(len(matrix))
        if matrix.chunk_count > 0:
            own["quantize.imatrix.chunks_count"] = np.uint32(matrix.chunk_count)
    kept = {key: metadata[key] for key in metadata if key not in own}
    return {**kept, **own}


class _Count:
    """Adds up weights for the progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def add(self, name: str, weights: int) -> None:
        self._done += weights
        if self._progress is not None:
            self._progress(name, self._done, self._total)


def _load_imatrix(
    given: Imatrix | str | os.PathLike[str] | None,
) -> tuple[Imatrix | None, str | None]:
    if given is None or isinstance(given, Imatrix):
        return given, None
    return load_imatrix(given), os.fspath(Path(given))


def _info(file: gguf.GGUFFile, name: str) -> TensorInfo:
    info = file.tensors.info(name)
    return TensorInfo(name, tuple(info.shape), info.type.name)


def _change(file: gguf.GGUFFile, name: str, format: str, matrix: Imatrix | None) -> TensorChange:
    info = file.tensors.info(name)
    shape, source = tuple(info.shape), info.type.name
    if format == source:
        return TensorChange(name, shape, source, format, info.nbytes, info.nbytes, False)
    target = format_info(format)
    nbytes = _size(shape[:-1]) * target.row_bytes(shape[-1])
    weighted = target.uses_importance and importance_of(matrix, name, shape) is not None
    return TensorChange(name, shape, source, format, info.nbytes, nbytes, weighted)


def _refuse(
    chosen: Recipe, changes: Sequence[TensorChange], weighted: bool, requantize: bool
) -> None:
    """Stop before anything is written if some tensor cannot be made."""
    for change in changes:
        if change.format == change.source:
            continue
        if not format_info(change.format).can_encode:
            raise FormatError(
                f"[quantize_file] expected a format that can be encoded for {change.name}, "
                f"got {change.format}"
            )
        needy = change.format in chosen.needs_imatrix and change.name not in _NEVER_NEED_IMPORTANCE
        if needy and not (weighted and change.importance):
            raise FormatError(
                f"[quantize_file] expected an importance matrix for {change.format} in "
                f"{change.name} ({chosen.name}), got none"
            )
        if change.source not in _FLOATS and not requantize:
            raise FormatError(
                f"[quantize_file] expected f32, f16 or bf16 weights, got {change.source} in "
                f"{change.name} (allow requantizing to go on)"
            )


def _source(
    file: gguf.GGUFFile,
    change: TensorChange,
    matrix: Imatrix | None,
    threads: int | None,
    count: _Count,
) -> gguf.TensorSource:
    def load() -> Iterator[gguf.TensorData]:
        tensor = file.tensors[change.name]
        if change.format == change.source or not isinstance(tensor, QTensor):
            count.add(change.name, _size(change.shape))
            yield tensor
            return
        importance = importance_of(matrix, change.name, change.shape)
        try:
            for piece in quantize_tensor(tensor, change.format, importance, threads):
                yield piece
                count.add(change.name, _size(piece.shape))
        except ShapeError as error:
            raise ShapeError(f"{error} in {change.name}") from None

    return gguf.TensorSource(change.format, change.shape, load)


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _short(text: str) -> str:
    return text.encode()[:_TEXT_LIMIT].decode(errors="ignore")
