"""Statistics of keys and queries that make keys easier to code: means and sizes of channels.

Softmax does not see a vector that is taken off all keys, nor a factor that keys are divided by and
queries multiplied with. Both are taken behind the rotary positions and before any rotation.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvant.errors import FormatError, ShapeError
from kvant.kv.codecs import Table

__all__ = ["KVCalibration", "calibrate"]

# Between the largest factor and the mean one; channels that are constant or never asked for get it.
_RATIO = np.log(64.0)
_NAMES = ("center", "equalize")
_NOT_OURS = (ValueError, AttributeError, TypeError, EOFError)

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class KVCalibration:
    """Statistics that centering and equalizing keys need, f32 [layers][kv_heads, head_dim] each.

    Attributes
    ----------
    center : sequence of ndarray
        Means of the keys.
    equalize : sequence of ndarray
        Factors above 0 that keys are divided by and queries multiplied with.
    """

    center: Sequence[Table]
    equalize: Sequence[Table]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file of NumPy's .npz format, the same bytes for the same statistics."""
        from kvant.gguf.replace import replacing

        tables = {
            f"{name}.{layer}": np.asarray(table, np.float32)
            for name in _NAMES
            for layer, table in enumerate(getattr(self, name))
        }
        with replacing(path) as file:
            np.savez(file, **tables)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KVCalibration:
        """Read what `save` wrote.

        Raises
        ------
        FormatError
            The file is none of that kind, or a number in it is not finite or a factor not above 0.
        """
        tables: dict[str, list[Table]] = {name: [] for name in _NAMES}
        try:
            # A file that is no archive would stay open in NumPy's hands.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
                for name in _NAMES:
                    while (key := f"{name}.{len(tables[name])}") in found:
                        tables[name].append(found[key])
        except (*_NOT_OURS, zipfile.BadZipFile, zlib.error) as error:
            raise FormatError(f"[load] expected a calibration, got {path}: {error}") from error
        center, equalize = tables.values()
        if not center or [t.shape for t in center] != [t.shape for t in equalize]:
            raise FormatError(
                "[load] expected as many tables of means as of factors, in the same shapes, "
                f"got {len(center)} and {len(equalize)}"
            )
        for table in (*center, *equalize):
            if table.dtype != np.float32 or table.ndim != 2 or not np.isfinite(table).all():
                raise FormatError(
                    "[load] expected tables of finite f32 [kv_heads, head_dim], "
                    f"got {table.dtype} {table.shape}"
                )
        if min(table.min() for table in equalize) <= 0:
            raise FormatError("[load] expected factors above 0, got others")
        return cls(center, equalize)


def calibrate(keys: Sequence[ArrayLike], queries: Sequence[ArrayLike]) -> KVCalibration:
    """Means of keys, and factors that spread the error of coded keys as queries want it.

    A few hundred tokens of usual text are enough. The factor of a channel is the root of
    rms(key - mean) / rms(query), over the geometric mean of all of a head: of all factors it has
    the least error of products where the error of a key is spread evenly, as a rotation does it.

    Parameters
    ----------
    keys : sequence of array_like
        For each layer [T, kv_heads, head_dim], as they are cached: with their positions.
    queries : sequence of array_like
        For each layer [T', heads, head_dim]; heads of one group count together.

    Raises
    ------
    ShapeError
        A shape does not fit, there is nothing to take a mean of, or a number is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> keys = np.float32([[[1, 64]], [[3, 0]]])
    >>> queries = np.float32([[[1, 2]], [[-1, 2]]])
    >>> found = calibrate([keys], [queries])
    >>> found.center[0].tolist(), found.equalize[0].round(4).tolist()
    ([[2.0, 32.0]], [[0.5, 2.0]])
    """
    if len(keys) != len(queries) or not len(keys):
        raise ShapeError(
            f"[calibrate] expected keys and queries of the same layers, got {len(keys)} and "
            f"{len(queries)}"
        )
    center, equalize = [], []
    for layer, pair in enumerate(zip(keys, queries, strict=True)):
        k, q = (np.asarray(x, np.float64) for x in pair)
        if (
            k.ndim != 3
            or q.ndim != 3
            or not (k.size and q.size)
            or q.shape[2] != k.shape[2]
            or q.shape[1] % k.shape[1]
        ):
            raise ShapeError(
                "[calibrate] expected keys [T, kv_heads, D] and queries [T, heads, D], heads a "
                f"multiple of kv_heads, got {k.shape} and {q.shape} of layer {layer}"
            )
        if not (np.isfinite(k).all() and np.isfinite(q).all()):
            raise ShapeError(f"[calibrate] expected finite numbers, got others in layer {layer}")
        mean = k.mean(0)
        grouped = q.reshape(len(q), k.shape[1], -1, k.shape[2])
        factors = _factors(_rms(k - mean, 0), _rms(grouped, (0, 2)))
        center.append(mean.astype(np.float32))
        equalize.append(factors.astype(np.float32))
    return KVCalibration(center, equalize)


def _rms(x: F64, axes: int | tuple[int, ...]) -> F64:
    found: F64 = np.sqrt(np.mean(x * x, axis=axes))
    return found


def _factors(k: F64, q: F64) -> F64:
    """Factors [kv_heads, head_dim], of geometric mean 1 for each head."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = 0.5 * (np.log(k) - np.log(q))
    # Both zero: such a channel is as good as any.
    logs[np.isnan(logs)] = 0.0
    usual = np.isfinite(logs)
    mean = np.where(usual, logs, 0.0).sum(1, keepdims=True) / np.maximum(
        usual.sum(1, keepdims=True), 1
    )
    logs = np.clip(logs - mean, -_RATIO, _RATIO)
    factors: F64 = np.exp(logs - logs.mean(1, keepdims=True))
    return factors
