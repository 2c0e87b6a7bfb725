"""The importance matrix of a run against sums over what the observer sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_model

from kvant import models
from kvant.errors import ShapeError
from kvant.lab import collect_imatrix, windows

TOKENS = np.random.default_rng(0).integers(1, 258, 200)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> models.Model:
    path: Path = tmp_path_factory.mktemp("collect") / "moe.gguf"
    return models.load(write_model(path, experts=4))


@pytest.mark.parametrize("output", [False, True])
def test_sums_are_those_of_the_activations(model: models.Model, output: bool) -> None:
    texts = windows(TOKENS, 50)
    done: list[int] = []
    matrix = collect_imatrix(model, texts, output=output, progress=done.append)
    assert done == [1, 2, 3, 4]
    seen: dict[tuple[str, int], list[np.ndarray]] = {}
    for text in texts:
        model.logits(
            text.tokens, observe=lambda n, x, e: seen.setdefault((n, e or 0), []).append(x)
        )
    names = {name for name, _ in seen if output or name.startswith("blk.")}
    assert set(matrix) == names
    for name in names:
        importance = matrix.importance(name)
        assert importance is not None
        for expert, row in enumerate(np.atleast_2d(importance)):
            x = np.concatenate(seen[name, expert]).astype(np.float64)
            np.testing.assert_allclose(row, (x * x).mean(axis=0), rtol=1e-5)
    assert matrix.chunk_count == 4
    assert matrix.chunk_size == 50


def test_experts_that_see_no_token_are_told(model: models.Model) -> None:
    matrix = collect_imatrix(model, windows(TOKENS[:8], 8)[:1])
    counts = matrix.coverage()["blk.0.ffn_up_exps.weight"]
    assert counts.matrices == 4
    assert counts.tokens <= 8


def test_no_text_is_an_error(model: models.Model) -> None:
    with pytest.raises(ShapeError, match="at least one window"):
        collect_imatrix(model, [])
