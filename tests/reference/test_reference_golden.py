"""The reference against answers frozen in tests/golden, which ggml itself gave once."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from kvant.reference import FORMATS, decode, encode

GOLDEN = Path(__file__).parents[1] / "golden"


def load_recipe():
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = load_recipe()


def sha256(x):
    return hashlib.sha256(x.view(np.uint32).astype("<u4").tobytes()).hexdigest()


def rows_of(text, answer):
    found = np.frombuffer(base64.b64decode(text), np.uint8)
    return found.reshape(answer["rows"], answer["row_bytes"])


def test_every_format_has_a_file():
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_golden(name):
    answer = json.loads((GOLDEN / f"{name}.json").read_text())
    fmt = FORMATS[name]
    raw = recipe.data(64 * fmt.block_bytes).reshape(64, fmt.block_bytes)
    assert sha256(decode(raw, name)) == answer["bytes_decoded_sha256"]
    assert ("encoded" in answer) == fmt.can_encode
    if fmt.can_encode:
        x, weights = recipe.numbers(answer["cols"]), recipe.importance(answer["cols"])
        encoded = rows_of(answer["encoded"], answer)
        assert np.array_equal(encode(x, name), encoded)
        assert sha256(decode(encoded, name)) == answer["decoded_sha256"]
        weighted = rows_of(answer.get("encoded_with_importance", answer["encoded"]), answer)
        assert np.array_equal(encode(x, name, weights), weighted)
    assert ("encoded_with_importance" in answer) == fmt.uses_importance
