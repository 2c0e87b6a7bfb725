"""Random models of every architecture against `transformers`, through a converted folder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import ARCHITECTURE_NAMES, hf_folder

from kvant import models
from kvant.convert import convert

TOKENS = np.random.default_rng(5).integers(0, 300, 60)


def expected_logits(folder: Path) -> np.ndarray:
    torch: Any = pytest.importorskip("torch", reason="torch computes the expected logits")
    transformers: Any = pytest.importorskip("transformers", reason="it computes expected logits")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits: np.ndarray = peer.eval()(torch.tensor(TOKENS[None])).logits[0].numpy()
    return logits


def check(folder: Path) -> None:
    expected = expected_logits(folder)
    convert(folder, folder / "model.gguf")
    got = models.load(folder / "model.gguf").logits(TOKENS)
    assert np.abs(expected).max() > 1
    assert np.abs(got - expected).max() < 1e-4


@pytest.mark.parametrize("architecture", ARCHITECTURE_NAMES)
def test_logits_agree(tmp_path: Path, architecture: str) -> None:
    check(hf_folder(tmp_path / "hf", architecture))


@pytest.mark.parametrize("architecture", ARCHITECTURE_NAMES)
def test_logits_agree_with_a_tied_head_and_shards(tmp_path: Path, architecture: str) -> None:
    check(hf_folder(tmp_path / "hf", architecture, shards=3, tie_word_embeddings=True))


@pytest.mark.parametrize("architecture", ARCHITECTURE_NAMES)
def test_logits_agree_with_biases_in_attention(tmp_path: Path, architecture: str) -> None:
    check(hf_folder(tmp_path / "hf", architecture, attention_bias=True))


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 3.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
)
def test_logits_agree_with_scaled_rope(tmp_path: Path, scaling: dict[str, Any]) -> None:
    check(hf_folder(tmp_path / "hf", "llama", rope_scaling=scaling))


def test_logits_agree_with_one_key_head_and_one_expert(tmp_path: Path) -> None:
    changes = {"num_key_value_heads": 1, "num_experts_per_tok": 1}
    check(hf_folder(tmp_path / "hf", "qwen3moe", **changes))
