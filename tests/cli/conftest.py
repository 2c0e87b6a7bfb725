"""Small models as files, shared with the tests of the lab."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))

from tiny_model import write_model


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers with a tokenizer, tied embeddings and f16 weights."""
    return write_model(tmp_path_factory.mktemp("dense") / "dense.gguf", experts=0)


@pytest.fixture(scope="session")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A qwen3moe of two layers with four experts."""
    return write_model(tmp_path_factory.mktemp("moe") / "moe.gguf", experts=4)
