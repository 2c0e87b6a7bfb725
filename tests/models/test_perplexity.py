"""Trained models on text they have not seen.

The expected figures are those of `transformers` in f32 on the same windows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scoring import perplexity

from kvant import models
from support import shared_path


@pytest.mark.parametrize(("name", "expected"), [("tiny-moe", 37.01104), ("novels-dense", 55.78639)])
def test_perplexity_of_trained_models(name: str, expected: float) -> None:
    model = models.load(shared_path(f"models/{name}/model.gguf"))
    ids = model.tokenizer.encode(_hound(40_000))
    # Keys and values are f16, which moves single tokens but hardly the mean.
    assert perplexity(model, ids, window=512, bos=0) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("name", ["tiny-moe", "novels-dense"])
def test_logits_of_trained_models_agree_with_transformers(name: str) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch computes the expected logits")
    transformers: Any = pytest.importorskip("transformers", reason="it computes expected logits")
    folder = shared_path(f"models/{name}")
    model = models.load(folder / "model.gguf", act="f32")
    ids = [0, *model.tokenizer.encode(_hound(4000))[:511]]
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = peer(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(model.logits(ids) - expected).max() < 1e-4


def _hound(count: int) -> str:
    """The first bytes of a novel that was kept out of the training, without its byte-order mark."""
    raw = shared_path("data/text/Doyle_Hound_1902.txt").read_bytes()[3 : count + 3]
    return raw.decode("utf-8", "ignore")
