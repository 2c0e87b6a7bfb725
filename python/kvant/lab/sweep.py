"""Quantize one model in many ways and measure each: size, weight error, perplexity, divergence."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from .. import gguf, models
from ..errors import FormatError, ShapeError
from ..formats import format_info
from ..imatrix import Imatrix
from ..imatrix import load as load_imatrix
from ..qtensor import QTensor
from ..quant import quant_error
from ..quantize_file import importance_of, output_metadata, plan_file, quantized
from ..recipes import Recipe, recipe
from .environment import environment
from .metrics import Divergence
from .report import write_report
from .result import SweepResult, SweepRow
from .scoring import DEFAULT_TOKENS, BaseLogits, model_texts, score
from .workers import pool

__all__ = ["sweep"]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the steps done so far and all steps."""


def sweep(
    model_path: str | Path,
    formats: Sequence[str],
    text: str | Path | None = None,
    out: str | Path | None = None,
    ctx: int = 512,
    max_tokens: int | None = DEFAULT_TOKENS,
    *,
    imatrix: Imatrix | str | Path | None = None,
    overrides: Sequence[tuple[str, str]] = (),
    pure: bool = False,
    save: bool = False,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    command: str | None = None,
) -> SweepResult:
    """Measure each type against the model as it is.

    Parameters
    ----------
    model_path : path
        A GGUF file of an architecture that `kvant.models` runs.
    formats : sequence of str
        Recipes (`Q4_K_M`) and formats (`q4_k`); see `kvant.recipes.recipe`.
    text : str, Path or None
        The text itself, or the path of a UTF-8 file. None: what the model itself writes, drawn at
        temperature 1 from `seed`.
    out : path or None
        A folder for `sweep.json`, `sweep.png` and `report.html`.
    ctx : int
        Tokens in a window, at most the model's context; the second half of each is scored.
    max_tokens : int or None
        Use at most this much text; None uses all of it (and is `DEFAULT_TOKENS` without a text).
    imatrix, overrides, pure, threads
        As in `kvant.quantize_file`.
    save : bool
        Also write each quantized model into `out`.
    progress : callable or None
        See `Progress`.
    command : str or None
        The command that the report shows.

    Returns
    -------
    SweepResult
        Its first row is the model as it is.

    Raises
    ------
    FormatError
        If a type is unknown, asked for twice, or cannot be encoded.
    ShapeError
        If the text is shorter than one window, or `save` has no `out`.
    """
    chosen = [recipe(name) for name in formats]
    _check_names([r.name for r in chosen])
    if save and out is None:
        raise ShapeError("[sweep] expected a folder to save into, got None")
    matrix = load_imatrix(imatrix) if isinstance(imatrix, str | Path) else imatrix
    path = Path(model_path)
    with gguf.open(path) as file:
        jobs = [_Job(r, plan_file(file, r, matrix, overrides, pure)) for r in chosen]
        for job in jobs:
            job.check(file)
        model = models.load(file)
        ctx = min(ctx, model.config.context_length)
        with pool(threads) as executor:
            steps = _Steps(len(jobs), text is None, progress)
            texts, origin = model_texts(model, text, ctx, max_tokens, seed, steps.writing, executor)
            steps.expect(len(texts))
            with BaseLogits(
                model, texts, executor=executor, progress=steps.windows("original")
            ) as base:
                bench = _Bench(file, model, base, matrix, threads, executor, steps)
                rows = [_base_row(bench)]
                for job in jobs:
                    rows.append(_row(bench, job))
                    if save:
                        assert out is not None
                        rows[-1] = _saved(bench, job, rows[-1], Path(out), path.stem)
                    job.made.clear()
    result = SweepResult(
        model=str(path.parent.name if path.stem == "model" else path.stem) or path.stem,
        text=origin,
        ctx=ctx,
        rows=tuple(rows),
        command=command or f"kvant.lab.sweep({str(model_path)!r}, {list(formats)!r})",
        environment=environment(threads),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    if out is not None:
        write_report(result, out)
    return result


class _Job:
    """One type: which format each tensor gets, and the tensors once they are made."""

    def __init__(self, chosen: Recipe, plan: Mapping[str, str]) -> None:
        self.recipe = chosen
        self.plan = plan
        self.made: dict[str, QTensor] = {}

    def check(self, file: gguf.GGUFFile) -> None:
        for name, format in self.plan.items():
            if format != _format_of(file, name) and not format_info(format).can_encode:
                raise FormatError(
                    f"[sweep] expected formats that can be encoded in {self.recipe.name}, "
                    f"got {format} for {name}"
                )


class _Steps:
    """Counts windows and encodings over the whole sweep for the progress callback."""

    def __init__(self, jobs: int, writes_text: bool, report: Progress | None) -> None:
        self._jobs = jobs
        self._passes = jobs + (3 if writes_text else 2)
        self._report = report
        self._total = 0
        self._done = 0

    def expect(self, window_count: int) -> None:
        self._total = self._passes * window_count + self._jobs

    def writing(self, label: str, done: int, count: int) -> None:
        """The text is being written, window by window, before it is known how much there is."""
        self.expect(count)
        self.step(label)

    def step(self, label: str) -> None:
        self._done += 1
        if self._report is not None:
            self._report(label, self._done, self._total)

    def windows(self, label: str) -> Callable[[int], None]:
        return lambda _: self.step(label)


@dataclass(frozen=True)
class _Bench:
    """What every row is measured with."""

    file: gguf.GGUFFile
    model: models.Model
    base: BaseLogits
    matrix: Imatrix | None
    threads: int | None
    executor: Executor | None
    steps: _Steps

    def score(self, model: models.Model, label: str) -> tuple[Divergence, float]:
        """The divergence, and the seconds it took."""
        started = time.perf_counter()
        found = score(model, self.base, executor=self.executor, progress=self.steps.windows(label))
        return found, time.perf_counter() - started


def _base_row(bench: _Bench) -> SweepRow:
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
        bytes=nbytes,
        bits_per_weight=8 * nbytes / sum(_size(info.shape) for info in infos),
        relative_rmse=0.0,
        divergence=divergence,
        quantize_seconds=0.0,
        score_seconds=seconds,
        formats=dict(counts),
    )


def _row(bench: _Bench, job: _Job) -> SweepRow:
    nbytes, weights, error, reference, encoding = 0, 0, 0.0, 0.0, 0.0
    for name, format in job.plan.items():
        info = bench.file.tensors.info(name)
        weights += _size(info.shape)
        source = bench.file.tensors[name]
        if format == info.type.name or not isinstance(source, QTensor):
            nbytes += info.nbytes
            continue
        importance = importance_of(bench.matrix, name, source.shape)
        started = time.perf_counter()
        made = quantized(source, format, importance, bench.threads)
        encoding += time.perf_counter() - started
        job.made[name] = made
        nbytes += made.nbytes
        values = source.dequantize()
        error += quant_error(values, made).rmse ** 2 * values.size
        reference += float(np.square(values, dtype=np.float64).sum())
    name = job.recipe.name
    bench.steps.step(name)
    divergence, seconds = bench.score(bench.model.with_weights(job.made), name)
    return SweepRow(
        name=name,
        bytes=nbytes,
        bits_per_weight=8 * nbytes / weights,
        relative_rmse=float(np.sqrt(error / reference)) if reference else 0.0,
        divergence=divergence,
        quantize_seconds=encoding,
        score_seconds=seconds,
        formats=dict(Counter(job.plan.values())),
    )


def _saved(bench: _Bench, job: _Job, row: SweepRow, folder: Path, stem: str) -> SweepRow:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}-{job.recipe.name}.gguf"
    file = bench.file
    tensors: dict[str, Any] = {name: job.made.get(name, file.tensors[name]) for name in job.plan}
    gguf.write(path, output_metadata(file.metadata, job.recipe, bench.matrix), tensors)
    return replace(row, path=str(path))


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise FormatError("[sweep] expected at least one format, got none")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise FormatError(f"[sweep] expected each type once, got {', '.join(twice)} twice")


def _format_of(file: gguf.GGUFFile, name: str) -> str:
    return str(file.tensors.info(name).type.name)


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))
