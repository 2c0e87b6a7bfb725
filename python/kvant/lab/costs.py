"""What each format of each tensor costs in divergence: measured, or estimated from few runs.

The estimate takes the loss as quadratic in the error of a product, and errors of different tensors
as unrelated: the cost of a format is the squared error of its weights, weighted by how large the
columns' activations are, times a factor of the tensor. That factor comes from one measured run of
the tensor, so a tensor costs one run instead of one for each format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..formats import format_info
from ..imatrix import Imatrix
from ..recipes import TensorInfo, fitting, may_quantize
from .assign import Choice
from .collect import collect_imatrix
from .study import Bench, Study, bench_of, measured

Floats = npt.NDArray[np.float64]

__all__ = ["DEFAULT_FORMATS", "Sensitivity", "sensitivity"]

DEFAULT_FORMATS = ("q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0")


@dataclass(frozen=True)
class Sensitivity:
    """Choices for every tensor that may be quantized, and the bytes of those that may not.

    Attributes
    ----------
    choices
        By tensor name, in the order of the file. Costs are nats of mean KL divergence.
    fixed_bytes
        Of all other tensors.
    weights
        Numbers in all tensors.
    runs
        Models that were measured for it.
    experts
        Shares of each expert in the estimated cost, f64 [experts] by tensor and format, for tensors
        that hold experts; a file has one format for all of them.
    """

    choices: Mapping[str, list[Choice]]
    fixed_bytes: int
    weights: int
    runs: int
    experts: Mapping[str, dict[str, Floats]] = field(default_factory=dict)


def sensitivity(
    study: Study,
    formats: Sequence[str] = DEFAULT_FORMATS,
    *,
    measure: str = "one",
    executor: Executor | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Sensitivity:
    """Cost of each format for each tensor.

    Parameters
    ----------
    study : Study
    formats : sequence of str
        Formats to choose from; where a row is no whole number of blocks, the one that
        llama-quantize falls back to.
    measure : {"one", "all"}
        One run for each tensor, and estimates from it; or a run for each of its formats.
    executor : Executor or None
        Carries the runs, see `kvant.lab.measured`.
    progress : callable, optional
        Called with what is being done, the steps done and all steps.

    Raises
    ------
    FormatError
        A format is unknown or cannot be encoded, or `measure` is neither.
    """
    if measure not in ("one", "all"):
        raise FormatError(f"[sensitivity] expected measure 'one' or 'all', got {measure!r}")
    for name in formats:
        if not format_info(name).can_encode:
            raise FormatError(f"[sensitivity] expected formats that can be encoded, got {name}")
    bench = bench_of(study)
    wanted, fixed, weights = _tensors(bench, formats)
    if measure == "all":
        runs = [(name, format) for name, given in wanted.items() for format in given]
    else:
        runs = [(name, _reference(bench, name, given)) for name, given in wanted.items()]
    steps = len(runs) + (len(wanted) if measure == "one" else 0)
    report = progress or (lambda label, done, total: None)
    costs: dict[tuple[str, str], float] = {}
    found = measured(
        study,
        ({name: format} for name, format in runs),
        executor,
        lambda done: report("measuring tensors", done, steps),
    )
    for run, divergence in zip(runs, found, strict=True):
        costs[run] = divergence.kl_mean
    experts: dict[str, dict[str, Floats]] = {}
    if measure == "one":
        matrix = collect_imatrix(bench.model, bench.texts, output=True)
        for done, (name, reference) in enumerate(runs, 1):
            cost = costs[name, reference]
            parts = _estimated(bench, matrix, name, wanted[name], reference, cost)
            costs |= {(name, format): float(part.sum()) for format, part in parts.items()}
            if len(parts[reference]) > 1:
                experts[name] = parts
            report("estimating formats", len(runs) + done, steps)
    choices = {
        name: [Choice(f, _nbytes(bench, name, f), costs[name, f]) for f in given]
        for name, given in wanted.items()
    }
    return Sensitivity(choices, fixed, weights, len(runs), experts)


def _tensors(bench: Bench, formats: Sequence[str]) -> tuple[dict[str, list[str]], int, int]:
    """Formats of each tensor that may be quantized; bytes of the others; all weights."""
    arch = str(bench.file.metadata.get("general.architecture", ""))
    wanted: dict[str, list[str]] = {}
    fixed = weights = 0
    for name in bench.file.tensors:
        info = bench.file.tensors.info(name)
        shape, source = tuple(info.shape), info.type.name
        weights += int(np.prod(shape, dtype=np.int64))
        if may_quantize(TensorInfo(name, shape, source), arch) and source in ("f32", "f16", "bf16"):
            fitted = [fitting(format, shape[-1]) for format in formats]
            wanted[name] = list(dict.fromkeys(fitted))
        else:
            fixed += info.nbytes
    return wanted, fixed, weights


def _nbytes(bench: Bench, name: str, format: str) -> int:
    shape = bench.file.tensors.info(name).shape
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    return rows * format_info(format).row_bytes(shape[-1])


def _reference(bench: Bench, name: str, formats: list[str]) -> str:
    """The format that is measured: small enough that its cost stands out, not the smallest."""
    ordered = sorted(formats, key=lambda f: _nbytes(bench, name, f))
    return ordered[min(1, len(ordered) - 1)]


def _estimated(
    bench: Bench, matrix: Imatrix, name: str, formats: list[str], reference: str, cost: float
) -> dict[str, Floats]:
    """Costs by format, for each expert or the one matrix there is."""
    values = bench.values(name)
    weight = _column_weights(matrix, name, values.shape)
    error = {
        format: _weighted_error(values, bench.tensor(name, format).dequantize(), weight)
        for format in formats
    }
    whole = float(error[reference].sum())
    factor = cost / whole if whole else 0.0
    return {format: factor * error[format] for format in formats}


def _column_weights(matrix: Imatrix, name: str, shape: tuple[int, ...]) -> Floats:
    """Mean squares of activations by column; those of an expert count as often as it was chosen."""
    mean = matrix.importance(name, shape[-1])
    if mean is None:
        # Rows that are looked up, not multiplied.
        return np.ones(shape[-1])
    return np.asarray(mean, np.float64) * _use(matrix, name)


def _use(matrix: Imatrix, name: str) -> Floats:
    counts = matrix.counts(name).astype(np.float64)
    return counts[:, None] / counts.max() if len(counts) > 1 else np.ones(1)


def _weighted_error(
    values: npt.NDArray[np.float32],
    decoded: npt.NDArray[np.float32],
    weight: Floats,
) -> Floats:
    """Sums over the rows and columns of each matrix, [matrices]."""
    change = decoded - values
    change *= change
    by_column = change.sum(axis=-2, dtype=np.float64)
    return np.atleast_1d((by_column * weight).sum(axis=-1))
