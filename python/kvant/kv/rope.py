"""How positions are in keys, for those who move keys to other positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvant.errors import ShapeError
from kvant.ops import rope

if TYPE_CHECKING:
    from kvant.kv.cache import KVCache

__all__ = ["KVRope", "Ropes", "ropes_of"]


@dataclass(frozen=True)
class KVRope:
    """Rotary positions; the arguments are those of `kvant.rope`.

    Factors that queries and keys are multiplied by besides (YaRN's) are none of it: a key that is
    turned keeps its length.

    Attributes
    ----------
    theta : float
        Base of the frequencies.
    style : {"half", "interleaved"}
        Which elements are a pair.
    rotary_dim : int or None
        Elements of a key that are turned; all by default.
    freq_factors : f32 [rotary_dim / 2] or None
        What frequencies are divided by.
    scale : float
        What positions are divided by.

    Examples
    --------
    >>> import numpy as np
    >>> how = KVRope(theta=1e4)
    >>> x = np.ones((2, 1, 32), np.float32)
    >>> back = how.turn(how.turn(x, [5, 6]), [-5, -6])
    >>> bool(np.allclose(back, x, atol=1e-6))
    True
    """

    theta: float = 10000.0
    style: str = "half"
    rotary_dim: int | None = None
    freq_factors: ArrayLike | None = None
    scale: float = 1.0

    def turn(self, x: NDArray[np.float32], positions: ArrayLike) -> NDArray[np.float32]:
        """Vectors f32 [T, heads, dim] turned by a position each, whole numbers [T] of any sign."""
        places = np.asarray(positions, np.int64)
        return rope(
            x,
            places,
            theta=self.theta,
            style=self.style,
            rotary_dim=self.rotary_dim,
            freq_factors=self.freq_factors,
            scale=self.scale,
        )

    def native(self, by: int, dim: int) -> tuple[Any, ...]:
        """What the library is given: by, theta, scale, factors, rotary, interleaved."""
        # One turn checks all arguments.
        self.turn(np.zeros((1, 1, dim), np.float32), [by])
        factors = self.freq_factors
        return (
            by,
            self.theta,
            self.scale,
            None if factors is None else np.require(factors, np.float32, ["C", "ALIGNED"]),
            dim if self.rotary_dim is None else self.rotary_dim,
            self.style == "interleaved",
        )


Ropes: TypeAlias = KVRope | Sequence[KVRope | None] | None
"""One for all layers, one or none for each, or none."""


def ropes_of(function: str, cache: KVCache, given: Ropes) -> list[KVRope | None]:
    """One or none for each layer."""
    if given is None or isinstance(given, KVRope):
        return [given] * cache.layers
    if len(given) != cache.layers:
        raise ShapeError(f"[{function}] expected rope of {cache.layers} layers, got {len(given)}")
    return list(given)
