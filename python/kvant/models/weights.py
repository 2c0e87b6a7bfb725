"""Weights by name, made ready for products when first used, and shared by variants of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from kvant.errors import ModelError, ShapeError
from kvant.packed import PackedTensor
from kvant.qtensor import QTensor

__all__ = ["Array", "Linear", "Tensor", "WeightTable"]

Array = NDArray[np.float32]
Tensor = QTensor | np.ndarray[Any, np.dtype[Any]]


class Linear(NamedTuple):
    """A matrix ready to be multiplied by, its name, and its bias."""

    name: str
    matrix: QTensor | PackedTensor
    bias: Array | None


class WeightTable(Mapping[str, Tensor]):
    """Tensors under their GGUF names, and what products need of them on demand.

    `replace` gives a variant that holds the new tensors itself and asks its parent for all others,
    so that packed and decoded weights are kept once however many variants there are.

    Parameters
    ----------
    tensors : mapping of names to QTensor or ndarray
    pack : bool
        Pack matrices when they are first used, a copy in memory that multiplies faster; otherwise
        they are multiplied where they lie, as in a mapped file.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        pack: bool = True,
        parent: WeightTable | None = None,
    ) -> None:
        self._own = tensors
        self._pack = pack
        self._parent = parent
        self._making = Lock()
        self._vectors: dict[str, Array] = {}
        self._tables: dict[str, QTensor] = {}
        self._matrices: dict[str, QTensor | PackedTensor] = {}
        self._linears: dict[str, Linear] = {}
        self._groups: dict[tuple[str, tuple[str, ...]], tuple[Linear, ...]] = {}

    def __getitem__(self, name: str) -> Tensor:
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

    def vector(self, name: str) -> Array:
        """The f32 values of a norm, a bias or the like; shared and read-only."""
        values = self._vectors.get(name)
        if values is None:
            if self._parent is not None and name not in self._own:
                values = self._parent.vector(name)
            else:
                values = _values(self._own[name])
            self._vectors[name] = values
        return values

    def matrix(self, name: str) -> QTensor | PackedTensor:
        """A matrix, or a stack of them, ready to be multiplied by."""
        ready = self._matrices.get(name)
        if ready is not None:
            return ready
        # Two threads that want the same one must not make it twice.
        with self._making:
            ready = self._matrices.get(name)
            if ready is not None:
                return ready
            if self._parent is not None and name not in self._own:
                ready = self._parent.matrix(name)
            else:
                ready = _in_one_piece(self._own[name]).pack() if self._pack else self.table(name)
            self._matrices[name] = ready
            return ready

    def linear(self, name: str) -> Linear:
        """A product: the matrix `name`.weight, and `name`.bias if there is one."""
        ready = self._linears.get(name)
        if ready is None:
            bias = self.vector(f"{name}.bias") if f"{name}.bias" in self else None
            weight = f"{name}.weight"
            ready = self._linears[name] = Linear(weight, self.matrix(weight), bias)
        return ready

    def linears(self, prefix: str, *parts: str) -> tuple[Linear, ...]:
        """Products of one layer that belong together."""
        ready = self._groups.get((prefix, parts))
        if ready is None:
            ready = tuple(self.linear(f"{prefix}.{part}") for part in parts)
            self._groups[prefix, parts] = ready
        return ready

    def table(self, name: str) -> QTensor:
        """A tensor as quantized rows in one piece, to be looked up or multiplied where they lie."""
        ready = self._tables.get(name)
        if ready is None:
            if self._parent is not None and name not in self._own:
                ready = self._parent.table(name)
            else:
                ready = _in_one_piece(self._own[name])
            self._tables[name] = ready
        return ready

    def replace(self, tensors: Mapping[str, Tensor]) -> WeightTable:
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
        return WeightTable(dict(tensors), self._pack, self)


def _values(tensor: Tensor) -> Array:
    if isinstance(tensor, QTensor):
        values = cast(Array, tensor.dequantize())
    else:
        # A view, so that locking the flags cannot lock the caller's array.
        values = np.ascontiguousarray(tensor, dtype=np.float32).view()
    values.setflags(write=False)
    return values


def _in_one_piece(tensor: Tensor) -> QTensor:
    if isinstance(tensor, QTensor):
        data = tensor.data
        if data.flags.c_contiguous:
            return tensor
        return QTensor(np.ascontiguousarray(data), tensor.format, tensor.shape)
    floats = np.ascontiguousarray(tensor, dtype=np.float32)
    return QTensor.from_bytes(floats.reshape(-1).view(np.uint8), "f32", floats.shape)
