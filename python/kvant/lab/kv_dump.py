"""Queries, keys and values of a decoder's layers: as arrays, from a file, or from a model."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, ShapeError
from ..gguf.replace import replacing
from ..models import Model

__all__ = ["KVDump", "capture"]

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class KVDump:
    """What every layer attends with, over one text of T tokens.

    Attributes
    ----------
    q, k, v : sequences of ndarray
        For each layer f32 [T, heads, D], [T, kv_heads, D] and [T, kv_heads, E], with positions.
    window : sequence of int or None
        For each layer the keys that a token sees at most; empty for no windows.
    scale : sequence of float
        For each layer what scores are multiplied with; empty for D ** -0.5.
    sinks : sequence of ndarray or None
        For each layer f32 [heads], scores of keys without a value; empty for none.
    softcap : float
        Scores become softcap * tanh(score / softcap); 0 for none.

    Raises
    ------
    ShapeError
        Something does not fit, or is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((4, 1, 16), np.float32)
    >>> dump = KVDump([x], [x], [x])
    >>> dump.layers, dump.tokens, dump.scale
    (1, 4, (0.25,))
    """

    q: Sequence[F32]
    k: Sequence[F32]
    v: Sequence[F32]
    window: Sequence[int | None] = field(default=())
    scale: Sequence[float] = field(default=())
    sinks: Sequence[F32 | None] = field(default=())
    softcap: float = 0.0

    def __post_init__(self) -> None:
        layers = len(self.k)
        for name in ("q", "k", "v"):
            arrays = tuple(np.asarray(x, np.float32) for x in getattr(self, name))
            object.__setattr__(self, name, arrays)
        scale = self.scale or [x.shape[-1] ** -0.5 if x.ndim else 0.0 for x in self.k]
        object.__setattr__(self, "scale", tuple(float(x) for x in scale))
        object.__setattr__(self, "window", tuple(self.window) or (None,) * layers)
        object.__setattr__(self, "sinks", tuple(self.sinks) or (None,) * layers)
        counts = [len(x) for x in (self.q, self.v, self.window, self.scale, self.sinks)]
        if not layers or set(counts) != {layers}:
            raise ShapeError(f"[KVDump] expected all of the same layers, got {layers} and {counts}")
        for layer in range(layers):
            self._check(layer)

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.k)

    @property
    def tokens(self) -> int:
        """Tokens of the text."""
        return len(self.k[0])

    def part(self, start: int, stop: int) -> KVDump:
        """The tokens from `start` up to `stop`."""
        q, k, v = ([x[start:stop] for x in xs] for xs in (self.q, self.k, self.v))
        return KVDump(q, k, v, self.window, self.scale, self.sinks, self.softcap)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file of NumPy's .npz format."""
        arrays: dict[str, Any] = {
            "window": np.array([w or 0 for w in self.window], np.int64),
            "scale": np.array(self.scale),
            "softcap": np.array(self.softcap),
        }
        for name in ("q", "k", "v", "sinks"):
            for layer, x in enumerate(getattr(self, name)):
                if x is not None:
                    arrays[f"{name}.{layer}"] = np.asarray(x, np.float32)
        with replacing(path) as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KVDump:
        """Read what `save` wrote.

        Raises
        ------
        FormatError
            The file is none of that kind.
        ShapeError
            What it holds does not fit.
        """
        try:
            # A file that is no archive would stay open in NumPy's hands.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
                layers = range(len(found["window"]))
                q, k, v = ([found[f"{name}.{layer}"] for layer in layers] for name in "qkv")
                return cls(
                    q,
                    k,
                    v,
                    window=[int(w) or None for w in found["window"]],
                    scale=found["scale"].tolist(),
                    sinks=[found.get(f"sinks.{layer}") for layer in layers],
                    softcap=float(found["softcap"]),
                )
        except ShapeError:
            raise
        except (ValueError, AttributeError, KeyError, TypeError, EOFError) as error:
            raise FormatError(f"[load] expected a dump, got {path}: {error}") from error
        except (zipfile.BadZipFile, zlib.error) as error:
            raise FormatError(f"[load] expected a dump, got {path}: {error}") from error

    def _check(self, layer: int) -> None:
        q, k, v = self.q[layer], self.k[layer], self.v[layer]
        if not (q.ndim == k.ndim == v.ndim == 3 and q.size and k.size and v.size):
            raise ShapeError(
                "[KVDump] expected q, k and v of three axes and not empty, "
                f"got {q.shape}, {k.shape} and {v.shape} of layer {layer}"
            )
        tokens = {len(q), len(k), len(v), self.tokens}
        if len(tokens) > 1 or q.shape[2] != k.shape[2] or v.shape[1] != k.shape[1]:
            raise ShapeError(
                f"[KVDump] expected q [T, heads, D], k [T, kv_heads, D] and v [T, kv_heads, E] of "
                f"{self.tokens} tokens, got {q.shape}, {k.shape} and {v.shape} of layer {layer}"
            )
        if q.shape[1] % k.shape[1]:
            raise ShapeError(
                f"[KVDump] expected a multiple of {k.shape[1]} heads, got {q.shape[1]}"
            )
        window, sinks = self.window[layer], self.sinks[layer]
        if window is not None and window < 1:
            raise ShapeError(f"[KVDump] expected a window of at least 1, got {window}")
        if sinks is not None and np.shape(sinks) != q.shape[1:2]:
            raise ShapeError(
                f"[KVDump] expected sinks of {q.shape[1]} heads, got {np.shape(sinks)}"
            )
        numbers = (q, k, v, self.scale[layer], self.softcap, () if sinks is None else sinks)
        if not all(np.isfinite(x).all() for x in numbers):
            raise ShapeError(f"[KVDump] expected finite numbers, got others in layer {layer}")


def capture(model: Model, tokens: npt.ArrayLike) -> KVDump:
    """What a model's layers attend with while it reads tokens [T]; they fit its context.

    Raises
    ------
    ShapeError, ModelError
        As `Model.logits`.
    """
    config = model.config
    layers = config.block_count
    parts: dict[str, list[list[F32]]] = {name: [[] for _ in range(layers)] for name in "qkv"}
    scales, sinks = [0.0] * layers, [None] * layers

    def keep(layer: int, q: F32, k: F32, v: F32, scale: float, own: Any) -> None:
        for name, x in zip("qkv", (q, k, v), strict=True):
            parts[name][layer].append(x.copy())
        scales[layer], sinks[layer] = scale, own

    session = model.start()
    session.on_attend = keep
    session.feed(model.checked(tokens, "capture"))
    windows = [config.window_of(layer) for layer in range(layers)]
    q, k, v = ([np.concatenate(x) for x in parts[name]] for name in "qkv")
    return KVDump(q, k, v, windows, scales, sinks)
