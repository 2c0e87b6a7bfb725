"""Weights by name: decoded to f32 when first used, kept, and shared between variants of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np

from kvant.errors import ModelError, ShapeError
from kvant.models.ops import Array
from kvant.qtensor import QTensor

__all__ = ["Weight", "Weights"]

Weight = QTensor | np.ndarray[Any, np.dtype[Any]]


class Weights(Mapping[str, Weight]):
    """Tensors under their GGUF names, with their f32 values on demand.

    `replace` gives a variant that holds the new tensors itself and asks its parent for all others,
    so that decoded values are kept once however many variants there are.
    """

    def __init__(self, tensors: Mapping[str, Weight], parent: Weights | None = None) -> None:
        self._own = tensors
        self._parent = parent
        self._decoded: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Weight:
        if name in self._own:
            return self._own[name]
        if self._parent is None:
            raise KeyError(name)
        return self._parent[name]

    def __contains__(self, name: object) -> bool:
        return name in self._own or (self._parent is not None and name in self._parent)

    def __iter__(self) -> Iterator[str]:
        return iter(self._own if self._parent is None else self._parent)

    def __len__(self) -> int:
        return len(self._own if self._parent is None else self._parent)

    def f32(self, name: str) -> Array:
        """The values of a tensor; the array is shared and read-only."""
        if self._parent is not None and name not in self._own:
            return self._parent.f32(name)
        values = self._decoded.get(name)
        if values is None:
            values = _decode(self._own[name])
            values.setflags(write=False)
            self._decoded[name] = values
        return values

    def replace(self, tensors: Mapping[str, Weight]) -> Weights:
        """A variant with some tensors replaced by others of the same shape.

        Raises
        ------
        ModelError
            A name is not one of this model's.
        ShapeError
            A tensor has another shape than the one it replaces.
        """
        for name, tensor in tensors.items():
            if name not in self:
                raise ModelError(f"[with_weights] expected a tensor of the model, got {name!r}")
            expected, got = tuple(self[name].shape), tuple(tensor.shape)
            if expected != got:
                raise ShapeError(f"[with_weights] expected shape {expected} for {name}, got {got}")
        return Weights(dict(tensors), parent=self)


def _decode(tensor: Weight) -> Array:
    if isinstance(tensor, QTensor):
        return cast(Array, tensor.dequantize())
    # A view, so that locking the flags cannot lock the caller's array.
    values: Array = np.ascontiguousarray(tensor, dtype=np.float32).view()
    return values
