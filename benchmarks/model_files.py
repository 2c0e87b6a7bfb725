"""GGUF files of real shapes and random weights, for measuring how fast models run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import kvant
from kvant import gguf
from kvant.models.architectures import optional_shapes, required_shapes
from kvant.models.config import read_config
from kvant.recipes import TensorInfo, plan, recipe

__all__ = ["SHAPES", "Shape", "write_model"]

_ROWS = 512


@dataclass(frozen=True)
class Shape:
    """An architecture and the keys below its prefix."""

    architecture: str
    keys: dict[str, Any]

    def metadata(self) -> dict[str, Any]:
        """GGUF keys, without a tokenizer."""
        prefix = self.architecture
        keys = {f"{prefix}.{key}": _number(value) for key, value in self.keys.items()}
        return {"general.architecture": prefix, **keys, "tokenizer.ggml.model": "no_vocab"}


_COMMON = {
    "context_length": 4096,
    "vocab_size": 32000,
    "embedding_length": 2048,
    "attention.head_count": 32,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 500000.0,
}

SHAPES = {
    # As Llama 3.2 1B, with a smaller vocabulary and a head of its own.
    "llama 1B": Shape(
        "llama",
        {
            **_COMMON,
            "block_count": 16,
            "feed_forward_length": 8192,
            "attention.head_count_kv": 8,
            "rope.dimension_count": 64,
        },
    ),
    # Four layers of Qwen3-30B-A3B.
    "qwen3moe 2.6B": Shape(
        "qwen3moe",
        {
            **_COMMON,
            "block_count": 4,
            "feed_forward_length": 6144,
            "attention.head_count_kv": 4,
            "attention.key_length": 128,
            "attention.value_length": 128,
            "expert_count": 128,
            "expert_used_count": 8,
            "expert_feed_forward_length": 768,
        },
    ),
}


def write_model(path: Path, shape: Shape, recipe_name: str, seed: int = 0) -> None:
    """Write a file with the tensor types of a recipe of llama-quantize.

    Rows repeat after some hundred: what matters here are bytes and numbers that stay finite.
    """
    metadata = shape.metadata()
    config = read_config(metadata, (shape.architecture,))
    shapes = dict(required_shapes(config))
    shapes["output.weight"] = optional_shapes(config)["output.weight"]
    chosen = recipe(recipe_name)
    infos = [
        TensorInfo(name, size, "f32" if len(size) == 1 or "gate_inp" in name else "bf16")
        for name, size in shapes.items()
    ]
    formats = plan(chosen, metadata, infos)
    rng = np.random.default_rng(seed)
    pool: dict[tuple[str, int], np.ndarray] = {}

    def tensor(name: str, size: tuple[int, ...]) -> Any:
        if len(size) == 1:
            return np.ones(size, np.float32)
        key = (formats[name], size[-1])
        if key not in pool:
            values = rng.standard_normal((_ROWS, size[-1]), np.float32)
            values *= np.float32(size[-1] ** -0.5)
            pool[key] = kvant.quantize(values, formats[name]).data
        rows = int(np.prod(size[:-1]))
        start = int(rng.integers(_ROWS))
        data = np.take(pool[key], np.arange(start, start + rows), axis=0, mode="wrap")
        return kvant.QTensor.from_bytes(data.reshape(-1), formats[name], size)

    sources = {
        name: gguf.TensorSource(formats[name], size, lambda n=name, s=size: tensor(n, s))
        for name, size in shapes.items()
    }
    gguf.write(path, metadata | {"general.file_type": np.uint32(chosen.file_type or 0)}, sources)


def _number(value: Any) -> Any:
    return np.uint32(value) if isinstance(value, int) else np.float32(value)
