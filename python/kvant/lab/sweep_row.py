"""One row of a sweep: a model is given other formats, run over the text, and compared."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import gguf, models
from ..imatrix import Imatrix
from ..qtensor import QTensor
from ..quant import quant_error
from ..quantize_file import output_metadata
from ..quantize_tensor import importance_of, quantized
from ..recipes import Recipe, recipe
from .metrics import Divergence
from .result import SweepRow
from .scoring import BaseLogits, score
from .tensor_error import TensorError, relative_rmse

__all__ = ["Bench", "Job", "original_row", "tested_row"]


@dataclass(frozen=True)
class Job:
    """One type: its name and kind, and the format that each tensor of the file gets."""

    name: str
    kind: str
    plan: Mapping[str, str]


@dataclass(frozen=True)
class Bench:
    """What every row is measured with; `step` is called with a label after every step."""

    file: gguf.GGUFFile
    model: models.Model
    base: BaseLogits
    matrix: Imatrix | None
    threads: int | None
    executor: Executor | None
    step: Callable[[str], None]

    def score(self, model: models.Model, label: str) -> tuple[Divergence, float]:
        """The divergence, and the seconds it took."""
        started = time.perf_counter()
        found = score(model, self.base, executor=self.executor, progress=lambda _: self.step(label))
        return found, time.perf_counter() - started


def original_row(bench: Bench) -> SweepRow:
    """The original, run again and compared with itself: the divergence must come out as 0."""
    divergence, seconds = bench.score(bench.model, "original")
    infos = [bench.file.tensors.info(name) for name in bench.file.tensors]
    counts = Counter(info.type.name for info in infos)
    sizes: Counter[str] = Counter()
    for info in infos:
        sizes[info.type.name] += info.nbytes
    nbytes = sum(sizes.values())
    return SweepRow(
        name=f"original ({sizes.most_common(1)[0][0]})",
        kind="original",
        bytes=nbytes,
        bits_per_weight=8 * nbytes / sum(_size(info.shape) for info in infos),
        relative_rmse=0.0,
        divergence=divergence,
        quantize_seconds=0.0,
        score_seconds=seconds,
        formats=dict(counts),
    )


def tested_row(bench: Bench, job: Job, save: Path | None = None) -> SweepRow:
    """Encode, run and compare; `save` is the path of a file to write the model to."""
    made: dict[str, QTensor] = {}
    errors: list[TensorError] = []
    nbytes, weights, encoding = 0, 0, 0.0
    for name, format in job.plan.items():
        info = bench.file.tensors.info(name)
        weights += _size(info.shape)
        source = bench.file.tensors[name]
        if format == info.type.name or not isinstance(source, QTensor):
            nbytes += info.nbytes
            continue
        importance = importance_of(bench.matrix, name, source.shape)
        started = time.perf_counter()
        made[name] = quantized(source, format, importance, bench.threads)
        encoding += time.perf_counter() - started
        nbytes += made[name].nbytes
        errors.append(_error(name, source, made[name]))
    bench.step(job.name)
    divergence, seconds = bench.score(bench.model.with_weights(made), job.name)
    if save is not None:
        _save(bench, job, made, save)
    return SweepRow(
        name=job.name,
        kind=job.kind,
        bytes=nbytes,
        bits_per_weight=8 * nbytes / weights,
        relative_rmse=relative_rmse(errors),
        divergence=divergence,
        quantize_seconds=encoding,
        score_seconds=seconds,
        formats=dict(Counter(job.plan.values())),
        tensors=tuple(errors),
        path=None if save is None else str(save),
    )


def _error(name: str, source: QTensor, made: QTensor) -> TensorError:
    values = source.dequantize()
    squared = quant_error(values, made).rmse ** 2 * values.size
    return TensorError(name, made.format, squared, float(np.square(values, dtype=np.float64).sum()))


def _save(bench: Bench, job: Job, made: Mapping[str, QTensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = bench.file
    tensors: dict[str, Any] = {name: made.get(name, file.tensors[name]) for name in job.plan}
    metadata = output_metadata(file.metadata, _labelled(job, made), bench.matrix)
    gguf.write(path, metadata, tensors)


def _labelled(job: Job, made: Mapping[str, QTensor]) -> Recipe:
    """The recipe that the file names; a mix is called by its most frequent format."""
    if job.kind != "mix":
        return recipe(job.name)
    frequent = Counter(tensor.format for tensor in made.values()).most_common(1)
    return recipe(frequent[0][0] if frequent else "f16")


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))
