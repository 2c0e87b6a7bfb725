"""Random models of every architecture against `transformers`, through a converted folder.

What transformers computed is kept in expected_logits.npz (every sixth row), so that the comparison
runs everywhere; where torch and transformers are installed they compute it again.
To write the file anew: KVANT_WRITE_EXPECTED=1 pytest tests/models/test_transformers.py
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import HF_NAMES, hf_folder

from kvant import models
from kvant.convert import convert

TOKENS = np.random.default_rng(5).integers(0, 300, 60)
KEPT = slice(5, None, 6)
STORE = Path(__file__).with_name("expected_logits.npz")
LIVE = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def transformers_logits(folder: Path) -> np.ndarray:
    import torch
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits: np.ndarray = peer.eval()(torch.tensor(TOKENS[None])).logits[0].numpy()
    return logits


def stored() -> dict[str, np.ndarray]:
    if not STORE.exists():
        return {}
    with np.load(STORE) as file:
        return dict(file)


def check(folder: Path) -> None:
    case = os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].split(" ")[0]
    convert(folder, folder / "model.gguf")
    got = models.load(folder / "model.gguf", act="f32").logits(TOKENS)
    if LIVE:
        expected = transformers_logits(folder)
        if os.environ.get("KVANT_WRITE_EXPECTED"):
            np.savez_compressed(STORE, **stored() | {case: expected[KEPT]})
        assert np.abs(got - expected).max() < 1e-4
    kept = stored()[case]
    assert np.abs(kept).max() > 1
    assert np.abs(got[KEPT] - kept).max() < 1e-4


@pytest.mark.parametrize("architecture", HF_NAMES)
def test_logits_agree(tmp_path: Path, architecture: str) -> None:
    check(hf_folder(tmp_path / "hf", architecture))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "qwen3moe"])
def test_logits_agree_with_a_tied_head_and_shards(tmp_path: Path, architecture: str) -> None:
    check(hf_folder(tmp_path / "hf", architecture, shards=3, tie_word_embeddings=True))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "qwen3moe"])
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
