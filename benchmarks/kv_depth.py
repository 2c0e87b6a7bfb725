"""Decoding with a model after a long context, beside decoding from the start, in turns.

The model has random weights in the shape of Llama 3.2 1B. The context is random keys and values
that are appended to every layer: what decoding costs does not depend on what they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import kvant
from kvant import models
from kvant.bench.timing import Task, ratio, turns
from kvant.kv import KVCache, KVSequence
from kvant.models.traffic import cache_bytes_per_token, weight_bytes_per_token

from .model_files import SHAPES, write_model

__all__ = ["lines", "measured"]

SHAPE, RECIPE = "llama 1B", "Q4_0"
DEPTH = 4096
# Tokens of a sample; a sequence takes back so many as if they had never been.
DECODED = 32


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each cache: tokens a second at the start and at depth."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        shape = SHAPES[SHAPE]
        keys = shape.keys | {"context_length": DEPTH + DECODED}
        write_model(path, dataclasses.replace(shape, keys=keys), RECIPE)
        model = models.load(path)
        model.prepare()
        yield from _rows(args, model)


def _rows(args: argparse.Namespace, model: models.Model) -> Iterator[dict[str, Any]]:
    tasks, bounds = {}, {}
    weights = weight_bytes_per_token(model)
    for kv in args.kv:
        for depth in (0, DEPTH):
            cache = KVCache.from_model(model, kv)
            tasks[f"{kv} {depth}"] = _decoding(model, _filled(cache, depth), depth)
        bounds[kv] = weights / (weights + cache_bytes_per_token(cache, DEPTH + DECODED // 2))
    times = turns(tasks, rounds=args.rounds, sample=0.0)
    for kv in args.kv:
        start, deep = times[f"{kv} 0"], times[f"{kv} {DEPTH}"]
        yield {
            "model": f"{SHAPE} {RECIPE}",
            "kv": kv,
            "depth": DEPTH,
            "threads": kvant.threads(),
            "tokens_per_second_at_0": start.rate(DECODED, "wall"),
            "tokens_per_second": deep.rate(DECODED, "wall"),
            "of_start": ratio(start, deep, "wall").to_json(),
            "of_start_by_bytes": bounds[kv],
        }


def _filled(cache: KVCache, depth: int) -> KVSequence:
    """A sequence with so many tokens in every layer."""
    sequence = cache.sequence()
    rng = np.random.default_rng(0)
    for layer in cache.owned if depth else ():
        shape = cache.shapes[layer]
        k, v = (
            rng.standard_normal((depth, shape.kv_heads, dim), dtype=np.float32)
            for dim in shape.stored
        )
        sequence.append(layer, k, v)
    return sequence


def _decoding(model: models.Model, sequence: KVSequence, depth: int) -> Task:
    """Tokens one by one, each with its logits; they are taken back before the next sample."""
    session = model.start(sequence)

    def run() -> None:
        for token in range(DECODED):
            model.head(session.feed(np.array([token]))[0])

    return Task(run, lambda: sequence.truncate(depth))


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each cache."""
    for row in rows:
        share = row["of_start"]
        yield (
            f"{row['model']}, {row['threads']} threads, cache {row['kv']}: "
            f"{row['tokens_per_second_at_0']:.1f} tokens/s from the start, "
            f"{row['tokens_per_second']:.1f} at {row['depth']}: "
            f"{share['median']:.2f} of it ({share['low']:.2f} - {share['high']:.2f}), "
            f"by bytes {row['of_start_by_bytes']:.2f}"
        )
