"""Bytes of weights, exactly: in memory, and those that one token reads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvant.errors import ModelError
from kvant.gguf.header import padded
from kvant.gguf.types import tensor_type_named
from kvant.plan.model import Model
from kvant.recipes import TensorInfo, file_order, plan

__all__ = ["AS_IS", "Part", "Weights", "tensor_bytes", "weights"]

AS_IS = "as it is"
"""Instead of a recipe: the formats that the file has."""

# The first pattern in a tensor's name tells what it belongs to.
_PARTS = (
    ("per_layer_token_embd.", "per-layer embedding"),
    ("token_embd.", "embedding"),
    ("attn_", "attention"),
    ("ssm_", "attention"),
    ("_exps.", "experts"),
    ("ffn_", "feed-forward"),
    ("output.", "output"),
)
_REST = "other"
_NAMES = (*dict.fromkeys(part for _, part in _PARTS), _REST)
_TABLES = ("embedding", "per-layer embedding")


class Part(NamedTuple):
    """Bytes in memory, and how many of them a token reads."""

    bytes: int
    read: int


@dataclass(frozen=True)
class Weights:
    """Weights under one recipe.

    Attributes
    ----------
    type
        Name of the recipe or format.
    parts
        Embedding, attention, experts, ...; every tensor with its padding in the file.
    formats
        Bytes by format, without padding.
    elements
        All weights.
    """

    type: str
    parts: Mapping[str, Part]
    formats: Mapping[str, int]
    elements: int

    @property
    def bytes(self) -> int:
        """The data section of a GGUF file, which is what stands in memory."""
        return sum(part.bytes for part in self.parts.values())

    @property
    def read(self) -> int:
        """Bytes that one token reads: of experts those that it asks, of tables one row."""
        return sum(part.read for part in self.parts.values())

    @property
    def bits_per_weight(self) -> float:
        """Without padding."""
        return 8 * sum(self.formats.values()) / self.elements if self.elements else 0.0


def tensor_bytes(format: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor, without padding.

    >>> tensor_bytes("q4_k", (10, 512))
    2880
    """
    kind = tensor_type_named(format)
    if kind is None or shape[-1] % kind.block:
        raise ModelError(f"[plan] expected whole blocks of a known format, got {format} {shape}")
    return kind.nbytes(math.prod(shape))


def weights(
    model: Model,
    type: str = AS_IS,
    *,
    imatrix: bool = False,
    overrides: Sequence[tuple[str, str]] = (),
) -> Weights:
    """The bytes of a model's weights under a recipe.

    Parameters
    ----------
    model : Model
    type : str
        A recipe (`Q4_K_M`), a format (`q4_k`), or `AS_IS`.
    imatrix : bool
        Whether an importance matrix will be used: some recipes choose other formats then.
    overrides : sequence of (regex, format)
        The first pattern found in a tensor's name sets its format.

    Raises
    ------
    FormatError
        There is no such recipe.

    Examples
    --------
    >>> from kvant import plan
    >>> w = plan.weights(plan.read("Llama 3.1 8B"), "Q4_K_M")
    >>> f"{w.bytes / 2**30:.2f} GiB, {w.bits_per_weight:.2f} bits"
    '4.58 GiB, 4.89 bits'
    """
    chosen = (
        {info.name: info.format for info in model.tensors}
        if type == AS_IS
        else plan(type, model.metadata, model.tensors, has_imatrix=imatrix, overrides=overrides)
    )
    has_output = "output.weight" in chosen
    held: Counter[str] = Counter()
    read: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    for info in model.tensors:
        size = tensor_bytes(chosen[info.name], info.shape)
        part = _part_of(info.name)
        held[part] += padded(size, model.alignment)
        read[part] += _read(model, info, size, part, has_output)
        formats[chosen[info.name]] += size
    parts = {name: Part(held[name], read[name]) for name in _NAMES if held[name]}
    return Weights(type, parts, dict(formats), model.elements)


def _part_of(name: str) -> str:
    return next((part for pattern, part in _PARTS if pattern in name), _REST)


def _read(model: Model, info: TensorInfo, size: int, part: str, has_output: bool) -> int:
    """Bytes of a tensor that one token reads."""
    if file_order(info.name)[0] >= model.trunk:
        return 0
    if part in _TABLES and (has_output or part != "embedding"):
        return size // info.shape[0] if info.shape[0] else 0
    used, experts = model.experts
    return size * used // experts if part == "experts" and experts else size
