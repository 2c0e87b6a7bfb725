"""`python -m benchmarks.models`: decoding and prefill beside llama.cpp, same files, in turns.

Random weights in real shapes, or the files that are named. llama.cpp is what llama-cpp-python
brings, with each of its ways to load (repacked in its own memory, or mapped); the best one counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import kvant
from kvant import models
from kvant.bench.limits import Limits
from kvant.bench.timing import turns
from kvant.models.profile import Profile
from kvant.models.traffic import cache_bytes_per_token, weight_bytes_per_token

from .llama_cpp import LlamaCpp, settings
from .model_files import SHAPES, write_model

__all__ = ["main"]

RECIPES = ("Q4_0", "Q4_K_M", "Q8_0")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 0, or 130 for Ctrl-C."""
    options = _options(sys.argv[1:] if arguments is None else arguments)
    rows: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for name, path in _files(options, Path(folder)):
                print(f"{name} ...", file=sys.stderr, flush=True)
                rows.append({"model": name} | _measure(path, options))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        _print(rows)
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="GGUF files instead of random ones")
    parser.add_argument("--shape", action="append", choices=tuple(SHAPES), help="repeatable")
    parser.add_argument("--recipe", action="append", help="of llama-quantize (repeatable)")
    parser.add_argument("--prefill", type=int, default=512, metavar="N")
    parser.add_argument("--decode", type=int, default=64, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--folder", type=Path, help="where random files are written meanwhile")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def _files(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    for path in options.files:
        yield str(path), path
    if options.files:
        return
    for name in options.shape or SHAPES:
        for recipe in options.recipe or RECIPES:
            path = folder / "model.gguf"
            write_model(path, SHAPES[name], recipe)
            yield f"{name} {recipe}", path


def _measure(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of seconds, ours and theirs, and what they were bound by."""
    threads = kvant.threads()
    model = models.load(path)
    model.prepare()
    context = model.config.context_length
    prefill = min(options.prefill, context // 2)
    decode = min(options.decode, context - 1)
    tokens = np.random.default_rng(1).integers(0, model.config.vocab_size, prefill)
    sides: dict[str, Any] = {"kvant": _Ours(model)}
    room = max(prefill, decode)
    sides |= {name: LlamaCpp(path, threads, room, how) for name, how in settings().items()}
    limits = Limits(320 << 20)
    read = limits.read(threads)
    times: dict[tuple[str, str], list[float]] = {}
    reads: list[float] = []
    for _ in range(options.rounds + 1):
        for side, runner in sides.items():
            for what, run in (
                ("prefill", lambda r=runner: r.prefill(tokens)),
                ("decode", lambda r=runner: r.decode(decode)),
            ):
                times.setdefault((side, what), []).append(_seconds(run))
        wall = turns({"read": read.task}, rounds=3, sample=0.05)["read"].wall
        reads.append(read.amount * 1e9 / float(np.median(wall)))
    # The first round warms caches up.
    median = {key: float(np.median(values[1:])) for key, values in times.items()}
    nbytes = weight_bytes_per_token(model) + cache_bytes_per_token(model.cache(), decode // 2)
    with Profile() as profile:
        sides["kvant"].decode(decode)
    for side in sides.values():
        side.close()
    found: dict[str, Any] = {"python_share": profile.python_share, "bytes_per_token": nbytes}
    for what, count in (("prefill", prefill), ("decode", decode)):
        own = median["kvant", what]
        found[what] = {
            "tokens_per_second": {s: count / median[s, what] for s in sides},
            "ratio": min((median[s, what] / own for s in sides if s != "kvant"), default=None),
        }
    rate = decode / median["kvant", "decode"]
    found["read_share"] = nbytes * rate / float(np.median(reads[1:]))
    return found


class _Ours:
    def __init__(self, model: models.Model) -> None:
        self._model = model

    def prefill(self, tokens: np.ndarray) -> None:
        """Pass a prompt and make the logits of its last token."""
        model = self._model
        model.head(model.start().feed(tokens)[-1])

    def decode(self, count: int) -> None:
        """Pass tokens one by one, each with its logits, from an empty context on."""
        model = self._model
        session = model.start()
        for token in range(count):
            model.head(session.feed(np.array([token]))[0])

    def close(self) -> None:
        """Nothing to give back."""


def _seconds(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _print(rows: list[dict[str, Any]]) -> None:
    peers = sorted({s for r in rows for s in r["decode"]["tokens_per_second"]} - {"kvant"})
    for what in ("decode", "prefill"):
        table = Table(title=f"{what}, tokens/s, {kvant.threads()} threads", title_justify="left")
        more = ("x best", "of read", "Python") if what == "decode" else ("x best",)
        for heading in ("model", "kvant", *peers, *more):
            table.add_column(heading, justify="left" if heading == "model" else "right")
        for row in rows:
            rates = row[what]["tokens_per_second"]
            cells = [f"{rates['kvant']:.1f}", *(f"{rates[p]:.1f}" for p in peers)]
            ratio = row[what]["ratio"]
            cells.append("" if ratio is None else f"{ratio:.2f}")
            if what == "decode":
                cells += [f"{row['read_share']:.2f}", f"{100 * row['python_share']:.1f} %"]
            table.add_row(row["model"], *cells)
        Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
