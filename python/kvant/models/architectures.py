"""The table of architectures: which class computes the layers, which tensors a file must hold."""

from __future__ import annotations

from kvant.models.config import ModelConfig
from kvant.models.gemma3 import Gemma3
from kvant.models.gpt_oss import GptOss
from kvant.models.llama import Llama, Shapes
from kvant.models.olmoe import Olmoe
from kvant.models.qwen2 import Qwen2
from kvant.models.qwen3 import Qwen3
from kvant.models.qwen3moe import Qwen3Moe

__all__ = ["ARCHITECTURES", "architecture_of", "optional_shapes", "required_shapes"]

_TABLE: dict[str, type[Llama]] = {
    "llama": Llama,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "qwen3moe": Qwen3Moe,
    "olmoe": Olmoe,
    "gemma3": Gemma3,
    "gpt-oss": GptOss,
}

ARCHITECTURES = tuple(_TABLE)
"""Names as `general.architecture` has them."""


def architecture_of(config: ModelConfig) -> type[Llama]:
    """The class that computes the layers."""
    return _TABLE[config.architecture]


def required_shapes(config: ModelConfig) -> Shapes:
    """Name and shape of every tensor a model must have, in the order of the file."""
    width = config.embedding_length
    shapes: Shapes = {
        "token_embd.weight": (config.vocab_size, width),
        "output_norm.weight": (width,),
    }
    per_layer = architecture_of(config).layer_shapes(config)
    for index in range(config.block_count):
        shapes |= {f"blk.{index}.{name}": shape for name, shape in per_layer.items()}
    return shapes


def optional_shapes(config: ModelConfig) -> Shapes:
    """Name and shape of tensors a model may have: its own head, rope factors, biases of products.

    Without a head the embedding serves, transposed.
    """
    required = required_shapes(config)
    biases = {
        name.removesuffix(".weight") + ".bias": shape[:1]
        for name, shape in required.items()
        if name.startswith("blk.")
        and len(shape) == 2
        and name.endswith(".weight")
        and not name.endswith("ffn_gate_inp.weight")
    }
    return {
        "output.weight": (config.vocab_size, config.embedding_length),
        "rope_freqs.weight": (config.key_length // 2,),
        **{name: shape for name, shape in biases.items() if name not in required},
    }
