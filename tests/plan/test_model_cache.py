"""What the planner says of a cache is what the decoder allocates."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from kvant import gguf, plan
from kvant.plan.cache import model_cache_bytes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

from random_models import ARCHITECTURE_NAMES, metadata, random_model, tensors


@pytest.mark.parametrize("architecture", ARCHITECTURE_NAMES)
@pytest.mark.parametrize("count", [1, 64, 1000])
def test_cache_bytes_are_what_is_allocated(tmp_path: Path, architecture: str, count: int) -> None:
    changes = {"block_count": 7, "context_length": 8192}
    keys = metadata(architecture, **changes)
    gguf.write(tmp_path / "a.gguf", keys, tensors(keys))
    model = random_model(architecture, **changes)
    layers = plan.read(tmp_path / "a.gguf").layers
    cache = model.cache()
    session = model.start(cache)
    session.feed(np.zeros(count, np.int64))
    assert cache.nbytes == model_cache_bytes(layers, count)
