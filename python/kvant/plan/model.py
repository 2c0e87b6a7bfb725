"""A model as the planner sees it: its tensors, its layers, and nothing of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvant import gguf
from kvant.gguf.header import DEFAULT_ALIGNMENT
from kvant.plan.keys import Keys
from kvant.plan.layers import Layer, layers_of, notes_of, trunk_layers
from kvant.recipes import TensorInfo

__all__ = ["Model", "from_gguf"]


@dataclass(frozen=True)
class Model:
    """Tensors with their shapes and formats, metadata by GGUF key, and layers.

    Attributes
    ----------
    name, source
        What it is called, and where its numbers come from.
    metadata
        GGUF keys; a model that is no file has those that sizes depend on.
    tensors
        In the order of the file; shapes are in NumPy order.
    layers
        What each layer keeps; see `Layer`.
    alignment
        Every tensor of a file begins at a multiple of so many bytes.
    file_bytes
        Size of the GGUF file, or of all its parts; 0 if there is none.
    """

    name: str
    source: str
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    layers: tuple[Layer, ...]
    alignment: int = DEFAULT_ALIGNMENT
    file_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        """As GGUF calls it."""
        return str(self.metadata["general.architecture"])

    @property
    def keys(self) -> Keys:
        """The architecture's own keys, checked."""
        return Keys(self.metadata, f"{self.architecture}.")

    @property
    def elements(self) -> int:
        """All weights."""
        return sum(math.prod(info.shape) for info in self.tensors)

    @property
    def context(self) -> int:
        """Tokens that the model was made for; 0 if it does not say."""
        return self.keys.count("context_length")

    @property
    def experts(self) -> tuple[int, int]:
        """Experts that a token asks, and how many there are; (0, 0) without experts."""
        count = self.keys.count("expert_count")
        return self.keys.count("expert_used_count", most=count), count

    @property
    def trunk(self) -> int:
        """Layers that every token passes."""
        return trunk_layers(self.keys)


def from_gguf(file: gguf.GGUFFile) -> Model:
    """Describe an open GGUF file; its weights are not touched.

    Raises
    ------
    ModelError
        The metadata lack what sizes depend on, or make no sense.

    Examples
    --------
    >>> from kvant import gguf
    >>> keys = {"general.architecture": "llama", "llama.block_count": 1,
    ...         "llama.embedding_length": 64, "llama.attention.head_count": 4}
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a.gguf")
    >>> gguf.write(path, keys, {})
    >>> with gguf.open(path) as file:
    ...     from_gguf(file).layers[0].kind
    'full'
    """
    infos = [file.tensors.info(name) for name in file.tensors]
    metadata = file.metadata
    name = metadata.get("general.name") or (file.paths[0].stem if file.paths else "model")
    return Model(
        name=str(name),
        source=", ".join(path.name for path in file.paths[:1]) or "in memory",
        metadata=metadata,
        tensors=tuple(TensorInfo(i.name, tuple(i.shape), i.type.name) for i in infos),
        layers=layers_of(metadata, {info.name for info in infos}),
        alignment=file.alignment,
        file_bytes=sum(path.stat().st_size for path in file.paths),
        notes=notes_of(metadata),
    )
