"""Typed look-up in what a file claims: GGUF metadata or a Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvant.errors import ModelError

__all__ = ["MAX_LAYERS", "Keys"]

MAX_LAYERS = 4096
_LIMIT = 1 << 31


class Keys:
    """Values by key, each checked when it is asked for.

    Parameters
    ----------
    values : mapping
    prefix : what stands before every key, such as "llama."
    place : the file, for messages

    >>> Keys({"llama.block_count": 2}, "llama.").size("block_count")
    2
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "", place: str = "GGUF") -> None:
        self._values = values
        self._prefix = prefix
        self._place = place

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(self._prefix + key) is not None

    def names(self, key: str) -> bool:
        """Whether the key is there, be it null."""
        return self._prefix + key in self._values

    def is_list(self, key: str) -> bool:
        """Whether the value is a list."""
        value = self.get(key)
        return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)

    def get(self, key: str, default: Any = None) -> Any:
        """The raw value, or `default` where it is absent or null."""
        value = self._values.get(self._prefix + key)
        return default if value is None else value

    def size(self, key: str, default: int | None = None, most: int = _LIMIT - 1) -> int:
        """A whole number from 1 to `most`."""
        return self._number(key, default, 1, most)

    def count(self, key: str, default: int = 0, most: int = _LIMIT - 1) -> int:
        """A whole number from 0 to `most`."""
        return self._number(key, default, 0, most)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool | np.bool_):
            raise self.wrong(key, "true or false", value)
        return bool(value)

    def counts(self, key: str, length: int, default: int = 0) -> tuple[int, ...]:
        """A number for each layer: one for all, or a list of them."""
        if not self.is_list(key):
            return (self._whole(key, self.get(key, default), 0, _LIMIT - 1),) * length
        return tuple(self._whole(key, item, 0, _LIMIT - 1) for item in self._listed(key, length))

    def flags(self, key: str, length: int) -> tuple[bool, ...]:
        """A list of true and false, one for each layer."""
        return tuple(bool(item) for item in self._listed(key, length))

    def words(self, key: str, length: int, known: Sequence[str]) -> tuple[str, ...]:
        """A list of known words, one for each layer."""
        found = tuple(self._listed(key, length))
        for word in found:
            if word not in known:
                raise self.wrong(key, " or ".join(known), word)
        return found

    def wrong(self, key: str, expected: str, value: Any) -> ModelError:
        """The error of a value that makes no sense."""
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        name = self._prefix + key
        return ModelError(f"[plan] expected {expected} for {name} in {self._place}, got {shown}")

    def _number(self, key: str, default: int | None, least: int, most: int) -> int:
        value = self.get(key, default)
        if value is None:
            name = self._prefix + key
            raise ModelError(f"[plan] expected the key {name} in {self._place}, got none")
        return self._whole(key, value, least, most)

    def _whole(self, key: str, value: Any, least: int, most: int) -> int:
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}", value)
        return int(value)

    def _listed(self, key: str, length: int) -> Any:
        value = self.get(key)
        if not self.is_list(key) or len(value) != length:
            raise self.wrong(key, f"a list of {length}", value)
        return value
