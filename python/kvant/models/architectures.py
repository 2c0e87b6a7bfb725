"""The table of architectures: which function computes a layer, which tensors a file must hold."""

from __future__ import annotations

from collections.abc import Callable

from kvant.models import llama, qwen3, qwen3moe
from kvant.models.config import ModelConfig
from kvant.models.ops import Array
from kvant.models.step import Step

__all__ = ["ARCHITECTURES", "TensorShapes", "layer_of", "optional_shapes", "required_shapes"]

Layer = Callable[[Step, int, Array], Array]
TensorShapes = dict[str, tuple[int, ...]]

_TABLE: dict[str, tuple[Layer, Callable[[ModelConfig], TensorShapes]]] = {
    "llama": (llama.layer, llama.layer_shapes),
    "qwen3": (qwen3.layer, qwen3.layer_shapes),
    "qwen3moe": (qwen3moe.layer, qwen3moe.layer_shapes),
}

ARCHITECTURES = tuple(_TABLE)
"""Names as `general.architecture` has them."""


def layer_of(config: ModelConfig) -> Layer:
    """The function that computes one layer: (step, index, x [T, width]) -> [T, width]."""
    return _TABLE[config.architecture][0]


def required_shapes(config: ModelConfig) -> TensorShapes:
    """Name and shape of every tensor a model must have, in the order of the file."""
    width = config.embedding_length
    shapes: TensorShapes = {
        "token_embd.weight": (config.vocab_size, width),
        "output_norm.weight": (width,),
    }
    per_layer = _TABLE[config.architecture][1](config)
    for index in range(config.block_count):
        shapes |= {f"blk.{index}.{name}": shape for name, shape in per_layer.items()}
    return shapes


def optional_shapes(config: ModelConfig) -> TensorShapes:
    """Name and shape of tensors a model may have: its own head, rope factors, biases of products.

    Without a head the embedding serves, transposed.
    """
    biases = {
        name.removesuffix(".weight") + ".bias": shape[:1]
        for name, shape in required_shapes(config).items()
        if name.startswith("blk.") and len(shape) == 2 and not name.endswith("ffn_gate_inp.weight")
    }
    return {
        "output.weight": (config.vocab_size, config.embedding_length),
        "rope_freqs.weight": (config.key_length // 2,),
        **biases,
    }
