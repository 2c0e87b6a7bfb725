"""The layers of a model as a cache sees them."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from kvant.errors import ModelError

if TYPE_CHECKING:
    from kvant.plan.layers import Layer

__all__ = ["NO_KEYS", "CacheSpec", "LayerShape", "layer_shapes", "spec_of"]


class LayerShape(NamedTuple):
    """Heads of keys, elements of a key and of a value, and which keys a token sees.

    Attributes
    ----------
    kv_heads
        0 where the layer has no keys.
    window, chunk
        So many keys at most, and only those of its own chunk of so many; None for all.
    view
        Whether values are the first elements of keys.
    """

    kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None
    view: bool = False
    chunk: int | None = None

    @property
    def stored(self) -> tuple[int, ...]:
        """Elements of a key and, where they are stored, of a value."""
        return (self.head_dim,) if self.view else (self.head_dim, self.value_dim)

    @property
    def sees_all(self) -> bool:
        """Whether no key is ever let go of."""
        return self.window is None and self.chunk is None


NO_KEYS = LayerShape(0, 0, 0, None)
"""Of a layer that keeps something else."""


class CacheSpec(NamedTuple):
    """Shapes of all layers, and which of them read another's keys: number -> owner."""

    shapes: list[LayerShape]
    share: dict[int, int]


class _Config(Protocol):
    @property
    def block_count(self) -> int: ...
    @property
    def head_count_kv(self) -> int: ...
    @property
    def key_length(self) -> int: ...
    @property
    def value_length(self) -> int: ...
    def window_of(self, layer: int) -> int | None: ...


def layer_shapes(config: _Config) -> list[LayerShape]:
    """Of a decoder's configuration (`kvant.models.ModelConfig`)."""
    # Sizes out of a file are NumPy's unsigned numbers, which wrap.
    heads, key, value = int(config.head_count_kv), int(config.key_length), int(config.value_length)
    windows = (config.window_of(layer) for layer in range(config.block_count))
    return [LayerShape(heads, key, value, None if w is None else int(w)) for w in windows]


def spec_of(source: Any, views: bool = True) -> CacheSpec:
    """The layers of a model, given by itself or by its description.

    Parameters
    ----------
    source
        A `kvant.models.Model` or its `config`; or whatever `kvant.plan.read` reads: the path of a
        GGUF file or of a `config.json`, or a name that it knows.
    views
        Whether layers whose values are their keys before factors and rope have one row for both;
        latent rows always are.

    Raises
    ------
    ModelError
        The description is of no model that is known, or none of its layers has keys.

    Examples
    --------
    >>> spec = spec_of("Gemma 4 E2B")
    >>> len(spec.shapes), len(spec.share), spec.shapes[0][:4]
    (35, 20, (1, 256, 256, 512))
    >>> spec_of("DeepSeek V3").shapes[0]
    LayerShape(kv_heads=1, head_dim=576, value_dim=512, window=None, view=True, chunk=None)
    """
    config = getattr(source, "config", source)
    if hasattr(config, "window_of"):
        return CacheSpec(layer_shapes(config), {})
    if not isinstance(config, (str, PathLike)):
        raise ModelError(f"[KVCache] expected a model or what describes it, got {type(source)}")
    from kvant import plan

    shapes: list[LayerShape] = []
    share: dict[int, int] = {}
    latest: dict[bool, int] = {}
    for number, layer in enumerate(plan.read(config).layers):
        sees_all = not layer.window
        if layer.kind == "shared" and sees_all in latest:
            share[number] = latest[sees_all]
            shapes.append(shapes[latest[sees_all]])
        elif layer.kind in ("full", "sliding", "chunked", "mla"):
            latest[sees_all] = number
            shapes.append(_shape(layer, views))
        elif layer.kind == "recurrent":
            shapes.append(NO_KEYS)
        else:
            raise ModelError(
                f"[KVCache] expected a layer before {number} whose keys it shares, got none"
            )
    if all(shape == NO_KEYS for shape in shapes):
        raise ModelError("[KVCache] expected a model with keys, got recurrent layers alone")
    return CacheSpec(shapes, share)


def _shape(layer: Layer, views: bool) -> LayerShape:
    if layer.row and (views or layer.kind == "mla"):
        return LayerShape(layer.heads, layer.row, layer.view, None, view=True)
    # Of a chunk a token sees what came before it, of a window always as much.
    window = layer.window if layer.kind == "sliding" else None
    chunk = layer.window if layer.kind == "chunked" else None
    return LayerShape(layer.heads, layer.key, layer.value, window, chunk=chunk)
