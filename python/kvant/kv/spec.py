"""The layers of a model as a cache sees them."""

from __future__ import annotations

from os import PathLike
from typing import Any, NamedTuple, Protocol

from kvant.errors import ModelError

__all__ = ["CacheSpec", "LayerShape", "layer_shapes", "spec_of"]


class LayerShape(NamedTuple):
    """Heads of keys, elements of a key and of a value, and the window or None."""

    kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None


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


def spec_of(source: Any) -> CacheSpec:
    """The layers of a model, given by itself or by its description.

    Parameters
    ----------
    source
        A `kvant.models.Model` or its `config`; or whatever `kvant.plan.read` reads: the path of a
        GGUF file or of a `config.json`, or a name that it knows.

    Raises
    ------
    ModelError
        The description is of no model that is known, or a layer keeps something else than keys and
        values: a recurrent state, or one latent row for both.

    Examples
    --------
    >>> spec = spec_of("Gemma 4 E2B")
    >>> len(spec.shapes), len(spec.share), spec.shapes[0]
    (35, 20, LayerShape(kv_heads=1, head_dim=256, value_dim=256, window=512))
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
        elif layer.kind in ("full", "sliding", "chunked"):
            latest[sees_all] = number
            window = layer.window or None
            shapes.append(LayerShape(layer.heads, layer.key, layer.value, window))
        else:
            raise ModelError(
                f"[KVCache] expected keys and values in layer {number}, got {layer.kind}"
            )
    return CacheSpec(shapes, share)
