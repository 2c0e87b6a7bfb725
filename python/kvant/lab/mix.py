"""Optimized mixes as types of a sweep: `mix:4.25` loses least at 4.25 bits for each number.

What each format costs each tensor is measured on other text than the sweep scores: the windows that
follow the scored ones, or more of what the model writes. Only where no text is left are scored
windows used, and the report says so.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

from .. import gguf, models
from ..errors import FormatError, ShapeError
from ..imatrix import Imatrix
from .best_mix import optimize
from .costs import DEFAULT_FORMATS, candidates, sensitivity
from .scoring import Window, model_texts
from .study import Study, forget

__all__ = [
    "CHOOSING_WINDOWS",
    "check_mixes",
    "choosing_windows",
    "mix_formats",
    "mix_target",
]

CHOOSING_WINDOWS = 4
"""At most: every tensor takes a run over them, and their order settles after few."""

Progress = Callable[[str, int, int], None]


def mix_target(name: str) -> float | None:
    """The bits that a mix is asked for; None if the name is no mix.

    Raises
    ------
    FormatError
        A mix of no number above 0.

    >>> mix_target("mix:4.25"), mix_target("Q4_K_M")
    (4.25, None)
    """
    start, colon, bits = name.partition(":")
    if start.lower() != "mix" or not colon:
        return None
    try:
        target = float(bits)
    except ValueError:
        target = math.nan
    if not 0 < target < math.inf:
        raise FormatError(f"[sweep] expected bits for each weight, such as mix:4.25, got {name!r}")
    return target


def check_mixes(
    file: gguf.GGUFFile, targets: Mapping[str, float], overrides: Sequence[tuple[str, str]]
) -> int:
    """The steps that `mix_formats` will take; ShapeError if a mix asks for too few bits."""
    if not targets:
        return 0
    found = candidates(file, DEFAULT_FORMATS, overrides)
    for name, target in targets.items():
        if int(target * found.weights / 8) < found.least_bytes:
            least = math.ceil(8000 * found.least_bytes / found.weights) / 1000
            raise ShapeError(
                f"[sweep] expected at least {least:g} bits for each weight of this file, got {name}"
            )
    return 2 * len(found.sizes)


def choosing_windows(
    model: models.Model,
    text: str | Path | None,
    scored: Sequence[Window],
    ctx: int,
    seed: int,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> tuple[list[Window], str]:
    """Windows to choose mixes on, and words for where they come from.

    Parameters
    ----------
    model, text, ctx, seed, progress, executor
        As the scored windows were made with by `kvant.lab.scoring.model_texts`.
    scored : sequence of Window
    """
    count = min(CHOOSING_WINDOWS, len(scored))
    if text is None:
        # Draws of seeds from here on lie behind all those of the scored windows.
        other = (seed + 1) * len(scored)
        found, _ = model_texts(model, None, ctx, count * ctx, other, progress, executor)
        return found, f"{_counted(found)} that the model wrote besides the scored ones"
    found = model_texts(model, text, ctx, None)[0][len(scored) :][:count]
    if found:
        return found, f"{_counted(found)} after the scored ones"
    found = list(scored[:count])
    return found, f"{_counted(found)} of the scored ones, as no text was left: this flatters them"


def mix_formats(
    model_path: str | Path,
    targets: Mapping[str, float],
    texts: Sequence[Window],
    imatrix: Imatrix | None,
    overrides: Sequence[tuple[str, str]],
    threads: int | None,
    progress: Progress | None,
) -> dict[str, dict[str, str]]:
    """The formats of the tensors that each mix changes, by the mix's name.

    Costs are measured once for all targets; a run for each tensor and a step for its estimates.
    """
    with tempfile.TemporaryDirectory(prefix="kvant-") as folder:
        matrix = None
        if imatrix is not None and len(imatrix):
            matrix = str(Path(folder) / "imatrix.gguf")
            imatrix.save(matrix)
        study = Study.of(str(model_path), texts, matrix, threads)
        try:
            found = sensitivity(study, overrides=overrides, progress=progress)
        finally:
            forget()
    return {name: optimize(found, target_bpw=bits).formats for name, bits in targets.items()}


def _counted(windows: Sequence[Window]) -> str:
    return f"{len(windows)} window{'s' if len(windows) > 1 else ''}"
