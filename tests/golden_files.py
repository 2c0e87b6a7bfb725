"""The frozen answers of tests/golden, read once and ready to compare."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvant.reference import FORMATS

FOLDER = Path(__file__).resolve().parent / "golden"
ANSWERS = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def _load_recipe() -> Any:
    spec = importlib.util.spec_from_file_location("golden_recipe", FOLDER / "recipe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_recipe = _load_recipe()


@dataclass(frozen=True)
class Golden:
    """Inputs and answers of one format; `encoded` is None where the format is decode only."""

    numbers: NDArray[np.float32]
    importance: NDArray[np.float32]
    raw: NDArray[np.uint8]
    encoded: NDArray[np.uint8] | None
    weighted: NDArray[np.uint8] | None
    decoded_sha256: str
    bytes_decoded_sha256: str

    def matches_decoded(self, x: NDArray[np.float32]) -> bool:
        """Whether x is what `encoded` decodes to."""
        return _sha256(x) == self.decoded_sha256

    def matches_decoded_bytes(self, x: NDArray[np.float32]) -> bool:
        """Whether x is what `raw` decodes to."""
        return _sha256(x) == self.bytes_decoded_sha256


def _sha256(x: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(x).view("<u4").tobytes()).hexdigest()


@cache
def golden(name: str) -> Golden:
    """The answers for one format."""
    answer = json.loads((FOLDER / f"{name}.json").read_text())
    cols = answer.get("cols", 256)

    def rows(key: str) -> NDArray[np.uint8] | None:
        text = answer.get(key, answer.get("encoded"))
        if text is None:
            return None
        found = np.frombuffer(base64.b64decode(text), np.uint8)
        return found.reshape(answer["rows"], answer["row_bytes"])

    raw = _recipe.data(64 * FORMATS[name].block_bytes).reshape(64, -1)
    return Golden(
        numbers=_recipe.numbers(cols),
        importance=_recipe.importance(cols),
        raw=raw,
        encoded=rows("encoded"),
        weighted=rows("encoded_with_importance"),
        decoded_sha256=answer.get("decoded_sha256", ""),
        bytes_decoded_sha256=answer["bytes_decoded_sha256"],
    )
