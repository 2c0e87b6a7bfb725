"""What each format of each tensor costs in divergence: measured, or estimated from few runs.

The estimate takes the loss as quadratic in the error of a product, and errors of different tensors
as unrelated: the cost of a format is the squared error of its weights, weighted by how large the
columns' activations are, times a factor of the tensor. That factor comes from one measured run of
the tensor, so a tensor costs one run instead of one for each format. That its activations take
eight bits in any of these formats is no difference between them: near q8_0 estimates are low.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .. import gguf
from ..errors import FormatError
from ..formats import format_info
from ..imatrix import Imatrix
from ..qtensor import QTensor
from ..recipes import TensorInfo, fitting, may_quantize
from .assign import Choice
from .collect import collect_imatrix
from .study import Bench, Study, bench_of, measured

Floats = npt.NDArray[np.float64]

__all__ = ["DEFAULT_FORMATS", "Candidates", "Sensitivity", "candidates", "sensitivity"]

_SLAB = 1 << 22  # numbers

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
    overrides: Sequence[tuple[str, str]] = (),
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
    overrides : sequence of (regex, format)
        The first pattern found in a tensor's name leaves it this format only.
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
    bench = bench_of(study)
    found = candidates(bench.file, formats, overrides)
    wanted = found.sizes
    report = progress or (lambda label, done, total: None)
    steps = sum(map(len, wanted.values())) if measure == "all" else 2 * len(wanted)
    errors: dict[str, dict[str, Floats]] = {}
    if measure == "one":
        matrix = collect_imatrix(bench.model, bench.texts, output=True)
        for done, (name, sizes) in enumerate(wanted.items(), 1):
            errors[name] = {f: _weighted_error(bench, matrix, name, f) for f in sizes}
            report("errors of formats", done, steps)
        runs = [(name, _reference(sizes, errors[name])) for name, sizes in wanted.items()]
    else:
        runs = [(name, format) for name, sizes in wanted.items() for format in sizes]
    before = steps - len(runs)
    divergences = measured(
        study,
        ({name: format} for name, format in runs),
        executor,
        lambda done: report("measuring tensors", before + done, steps),
    )
    costs: dict[tuple[str, str], float] = {}
    experts: dict[str, dict[str, Floats]] = {}
    for (name, format), divergence in zip(runs, divergences, strict=True):
        if measure == "all":
            costs[name, format] = divergence.kl_mean
            continue
        parts = _scaled(errors[name], format, divergence.kl_mean)
        costs |= {(name, f): float(part.sum()) for f, part in parts.items()}
        if len(parts[format]) > 1:
            experts[name] = parts
    choices = {
        name: [Choice(format, nbytes, costs[name, format]) for format, nbytes in sizes.items()]
        for name, sizes in wanted.items()
    }
    return Sensitivity(choices, found.fixed_bytes, found.weights, len(runs), experts)


class Candidates(NamedTuple):
    """What a file leaves to choose: the bytes of each format of each tensor that may be quantized.

    `sizes` is by tensor name, then by format; `fixed_bytes` are of all other tensors, `weights`
    numbers in all tensors.
    """

    sizes: dict[str, dict[str, int]]
    fixed_bytes: int
    weights: int

    @property
    def least_bytes(self) -> int:
        """Of all tensors, with the smallest format of each."""
        return self.fixed_bytes + sum(min(sizes.values()) for sizes in self.sizes.values())


def candidates(
    file: gguf.GGUFFile, formats: Sequence[str], overrides: Sequence[tuple[str, str]] = ()
) -> Candidates:
    """Formats that the tensors of a file can be given; nothing is read but the file's header.

    Arguments, and what is raised for formats, are those of `sensitivity`.
    """
    for name in (*formats, *(format for _, format in overrides)):
        if not format_info(name).can_encode:
            raise FormatError(f"[sensitivity] expected formats that can be encoded, got {name}")
    arch = str(file.metadata.get("general.architecture", ""))
    patterns = [(re.compile(pattern), format) for pattern, format in overrides]
    sizes: dict[str, dict[str, int]] = {}
    fixed = weights = 0
    for name in file.tensors:
        info = file.tensors.info(name)
        shape, source = tuple(info.shape), info.type.name
        weights += int(np.prod(shape, dtype=np.int64))
        if may_quantize(TensorInfo(name, shape, source), arch) and source in ("f32", "f16", "bf16"):
            named = next((format for p, format in patterns if p.search(name)), None)
            fitted = [fitting(f, shape[-1]) for f in (formats if named is None else (named,))]
            sizes[name] = {format: _nbytes(shape, format) for format in fitted}
        else:
            fixed += info.nbytes
    return Candidates(sizes, fixed, weights)


def _nbytes(shape: tuple[int, ...], format: str) -> int:
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    return rows * format_info(format).row_bytes(shape[-1])


def _reference(sizes: Mapping[str, int], errors: Mapping[str, Floats]) -> str:
    """The format that is measured: small enough that its cost stands out, not the smallest.

    One without any error, such as that of the file, tells nothing of the others.
    """
    ordered = sorted(sizes, key=lambda format: sizes[format])
    lossy = [format for format in ordered if errors[format].any()] or ordered
    return lossy[min(1, len(lossy) - 1)]


def _scaled(errors: Mapping[str, Floats], reference: str, cost: float) -> dict[str, Floats]:
    """Costs by format, for each expert or the one matrix there is."""
    whole = float(errors[reference].sum())
    factor = cost / whole if whole else 0.0
    return {format: factor * error for format, error in errors.items()}


def _weighted_error(bench: Bench, matrix: Imatrix, name: str, format: str) -> Floats:
    """Squared errors of a tensor's matrices [matrices], columns weighted by their activations."""
    source, made = bench.source(name), bench.tensor(name, format)
    weight = _column_weights(matrix, name, source.shape)
    stack = source.ndim > 2
    return np.array(
        [
            _by_column(source[i] if stack else source, made[i] if stack else made)
            @ (weight[i] if weight.ndim > 1 else weight)
            for i in range(source.shape[0] if stack else 1)
        ]
    )


def _by_column(source: QTensor, made: QTensor) -> Floats:
    """Squared errors of a matrix, summed by column, a slab of rows at a time."""
    step = max(1, _SLAB // source.shape[-1])
    total = np.zeros(source.shape[-1])
    for start in range(0, source.shape[0], step):
        rows = slice(start, start + step)
        change = made[rows].dequantize() - source[rows].dequantize()
        change *= change
        total += change.sum(axis=0, dtype=np.float64)
    return total


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
