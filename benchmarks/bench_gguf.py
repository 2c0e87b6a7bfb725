"""Opening a GGUF file with a vocabulary of 262,144 tokens: mapped, checked, nothing decoded.

Bytes moved are those of the file, all of which are walked. The file is in the page cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant import gguf

from .conftest import timing

pytestmark = pytest.mark.benchmark(max_time=0.5, min_rounds=7, warmup=True, disable_gc=True)

TOKENS = 262_144


@pytest.fixture(scope="module")
def vocabulary() -> list[str]:
    """Tokens with the lengths of a real vocabulary, some outside ASCII."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 14, TOKENS)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz▁éß語"))
    text = "".join(letters[rng.integers(0, letters.size, int(lengths.sum()))])
    ends = np.cumsum(lengths).tolist()
    starts = [0, *ends[:-1]]
    return [text[a:b] for a, b in zip(starts, ends, strict=True)]


@pytest.fixture(scope="module")
def path(vocabulary: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("vocabulary") / "vocabulary.gguf"
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.scores": np.zeros(TOKENS, np.float32),
        "tokenizer.ggml.token_type": np.ones(TOKENS, np.int32),
    }
    gguf.write(file, metadata, {})
    return file


def test_open(meter: Any, path: Path, vocabulary: list[str]) -> None:
    def call() -> int:
        with gguf.open(path) as file:
            return len(file.metadata["tokenizer.ggml.tokens"])

    assert meter("gguf.open vocabulary", call, path.stat().st_size) == TOKENS
    with gguf.open(path) as file:
        assert file.metadata["tokenizer.ggml.tokens"].tolist() == vocabulary


def test_open_and_decode_all(meter: Any, path: Path, vocabulary: list[str]) -> None:
    def call() -> list[str]:
        with gguf.open(path) as file:
            tokens: list[str] = file.metadata["tokenizer.ggml.tokens"].tolist()
            return tokens

    assert meter("gguf.open vocabulary, all tokens", call, path.stat().st_size) == vocabulary


def test_gguf_py(meter: Any, path: Path, request: pytest.FixtureRequest) -> None:
    if not timing(request.config):
        pytest.skip("gguf-py needs many seconds for this file")
    module = pytest.importorskip("gguf")

    def call() -> int:
        return len(module.GGUFReader(path).fields["tokenizer.ggml.tokens"].data)

    assert meter("gguf.open vocabulary", call, path.stat().st_size, rounds=1) == TOKENS
