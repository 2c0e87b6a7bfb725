"""Quantize one model in many ways and measure each: size, weight error, perplexity, divergence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from .. import gguf, models
from ..errors import FormatError, ShapeError
from ..formats import format_info
from ..imatrix import Imatrix
from ..imatrix import load as load_imatrix
from ..quantize_file import plan_file
from ..recipes import file_order, recipe
from .environment import environment
from .mix import CHOOSING_WINDOWS, check_mixes, choosing_windows, mix_formats, mix_target
from .report import write_report
from .result import SweepResult
from .scoring import DEFAULT_TOKENS, BaseLogits, model_texts
from .sweep_row import Bench, Job, original_row, tested_row
from .workers import side_by_side

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
        Recipes (`Q4_K_M`) and formats (`q4_k`), see `kvant.recipes.recipe`; and optimized mixes of
        so many bits for each number of the file (`mix:4.25`), see `kvant.lab.optimize`.
    text : str, Path or None
        The text itself, or the path of a UTF-8 file. None: what the model itself writes, drawn at
        temperature 1 from `seed`.
    out : path or None
        A folder for `sweep.json`, `sweep.png` and `report.html`.
    ctx : int
        Tokens in a window, at most the model's context; the second half of each is scored.
    max_tokens : int or None
        Score at most this much text; None scores all of it (and is `DEFAULT_TOKENS` without a
        text). Mixes are chosen on windows that follow, see `kvant.lab.mix`.
    imatrix, overrides, pure
        As in `kvant.quantize_file`; `pure` is of recipes only.
    save : bool
        Also write each quantized model into `out`.
    threads : int or None
        At most this many; None takes the set number. No figure but the times depends on it.
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
        If the text is shorter than one window, a mix is asked for fewer bits than there are
        formats for, or `save` has no `out`.
    """
    names = [_name(name) for name in formats]
    targets = {name: bits for name in names if (bits := mix_target(name)) is not None}
    _check_names(names)
    if save and out is None:
        raise ShapeError("[sweep] expected a folder to save into, got None")
    matrix = load_imatrix(imatrix) if isinstance(imatrix, str | Path) else imatrix
    path = Path(model_path)
    with gguf.open(path) as file, side_by_side(threads) as (executor, each):
        jobs = _jobs(file, [n for n in names if n not in targets], matrix, overrides, pure)
        runs = check_mixes(file, targets, overrides)
        steps = _Steps(len(names), runs, text is None, progress)
        # Its packed weights are let go before those of the mixes' study are made.
        writer = models.load(file, threads=each)
        ctx = min(ctx, writer.config.context_length)
        texts, origin = model_texts(writer, text, ctx, max_tokens, seed, steps.writing, executor)
        steps.expect(len(texts))
        chosen_on = None
        if targets:
            others, chosen_on = choosing_windows(
                writer, text, texts, ctx, seed, steps.of_others, executor
            )
            del writer
            mixes = mix_formats(path, targets, others, matrix, overrides, threads, steps.of_others)
            jobs |= {name: Job(name, "mix", _whole(file, own)) for name, own in mixes.items()}
        model = models.load(file, threads=each)
        with BaseLogits(
            model, texts, executor=executor, progress=lambda _: steps.step("original")
        ) as base:
            bench = Bench(file, model, base, matrix, threads, executor, steps.step)
            rows = [original_row(bench)]
            for name in names:
                rows.append(tested_row(bench, jobs[name], _saved_as(path, name, out, save)))
    result = SweepResult(
        model=str(path.parent.name if path.stem == "model" else path.stem) or path.stem,
        text=origin,
        ctx=ctx,
        rows=tuple(rows),
        command=command or f"kvant.lab.sweep({str(model_path)!r}, {list(formats)!r})",
        environment=environment(threads),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        mixes=chosen_on,
    )
    if out is not None:
        write_report(result, out)
    return result


class _Steps:
    """Counts windows, encodings and runs over the whole sweep for the progress callback."""

    def __init__(self, jobs: int, runs: int, writes_text: bool, report: Progress | None) -> None:
        self._jobs = jobs
        self._runs = runs
        self._writes_text = writes_text
        self._report = report
        self._total = 0
        self._done = 0

    def expect(self, windows: int) -> None:
        written = 0
        if self._writes_text:
            written = windows + (min(windows, CHOOSING_WINDOWS) if self._runs else 0)
        self._total = (self._jobs + 2) * windows + self._jobs + self._runs + written

    def writing(self, label: str, done: int, windows: int) -> None:
        """The text is being written, window by window, before it is known how much there is."""
        self.expect(windows)
        self.step(label)

    def of_others(self, label: str, done: int, total: int) -> None:
        """A step of a part that counts its own."""
        self.step(label)

    def step(self, label: str) -> None:
        self._done += 1
        if self._report is not None:
            self._report(label, self._done, self._total)


def _name(given: str) -> str:
    """The name of a type as rows carry it."""
    bits = mix_target(given)
    return recipe(given).name if bits is None else f"mix:{bits:g}"


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise FormatError("[sweep] expected at least one format, got none")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise FormatError(f"[sweep] expected each type once, got {', '.join(twice)} twice")


def _jobs(
    file: gguf.GGUFFile,
    names: Sequence[str],
    matrix: Imatrix | None,
    overrides: Sequence[tuple[str, str]],
    pure: bool,
) -> dict[str, Job]:
    """Recipes and uniform types by name, once it is known that they can be made."""
    jobs = {}
    for name in names:
        chosen = recipe(name)
        plan = plan_file(file, chosen, matrix, overrides, pure)
        for tensor, format in plan.items():
            if format != _format_of(file, tensor) and not format_info(format).can_encode:
                raise FormatError(
                    f"[sweep] expected formats that can be encoded in {name}, "
                    f"got {format} for {tensor}"
                )
        kind = "uniform" if pure or chosen.family == "uniform" else "recipe"
        jobs[name] = Job(name, kind, plan)
    return jobs


def _whole(file: gguf.GGUFFile, own: Mapping[str, str]) -> dict[str, str]:
    """A format for every tensor, in the order in which they are written."""
    ordered = sorted(file.tensors, key=file_order)
    return {name: own.get(name) or _format_of(file, name) for name in ordered}


def _format_of(file: gguf.GGUFFile, name: str) -> str:
    return str(file.tensors.info(name).type.name)


def _saved_as(model: Path, name: str, out: str | Path | None, save: bool) -> Path | None:
    # A colon is no part of a file's name on every system.
    return Path(out) / f"{model.stem}-{name.replace(':', '-')}.gguf" if save and out else None
