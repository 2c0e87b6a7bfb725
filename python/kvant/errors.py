"""Typed errors: `[function] expected X, got Y`; inputs and files are left untouched."""

from __future__ import annotations

__all__ = [
    "CacheFullError",
    "Error",
    "FormatError",
    "GGUFError",
    "IsaError",
    "ModelError",
    "ShapeError",
    "StateError",
]


class Error(Exception):
    """Base of every error that kvant raises itself (memory and I/O errors stay Python's own)."""


class ShapeError(Error, ValueError):
    """An array has a shape, dtype or layout that the function cannot take."""


class FormatError(Error, ValueError):
    """A format is unknown, cannot do what was asked, or its data are invalid."""


class IsaError(Error, RuntimeError):
    """An instruction set is unknown, or this machine does not have it."""


class GGUFError(Error, ValueError):
    """A GGUF or imatrix file breaks its own rules; names the field and the byte offset."""


class ModelError(Error, ValueError):
    """A model is of an unknown architecture, or lacks a tensor or a key."""


class CacheFullError(Error, RuntimeError):
    """A cache of keys and values has reached its budget of bytes; nothing was appended."""


class StateError(Error, ValueError):
    """A file holds no sequence of such a cache, or was cut or changed."""
