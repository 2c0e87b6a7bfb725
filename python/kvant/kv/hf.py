"""Caches for models of `transformers`: `past_key_values=` whose keys and values lie in a `KVCache`.

torch and transformers are looked for when a cache is made, not when this module is imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from kvant.errors import ModelError
from kvant.kv.cache import KVCache
from kvant.kv.hf_attention import NAME, Pending, package, register, to_numpy, to_torch
from kvant.kv.hf_rows import Rows
from kvant.kv.presets import preset_of

__all__ = ["TransformersCache", "register"]

_WINDOWED = "sliding_attention"


class TransformersCache:
    """Keys and values of a batch, for `past_key_values=` of a decoder of `transformers`.

    Each row of the batch is a `KVSequence`. Where the model was loaded with
    `attn_implementation="kvant"` (after `register`), attention runs over the compressed pages where
    they lie; with any other, all keys and values of a layer are decoded when it needs them, and
    forgotten again. No gradient flows through either.

    It is a `transformers.Cache`. Beams and copies (`copy.deepcopy`) share pages.

    Parameters
    ----------
    cache
        Where keys and values lie; it has the layers and windows of the model.
    config
        The model's own (`model.config`), which says what attends; without it all is decoded.
    exact
        As for `KVSequence.attend`.

    Attributes
    ----------
    rows : list of KVSequence
        The batch; empty before the first tokens.

    Raises
    ------
    ImportError
        torch or transformers (5 or newer) is not installed.
    """

    def __new__(cls, *_: Any, **__: Any) -> TransformersCache:
        made: TransformersCache = object.__new__(_bound(cls))
        return made

    def __init__(self, cache: KVCache, config: Any = None, *, exact: bool = False) -> None:
        package("transformers").Cache.__init__(self, layers=[])
        self.cache = cache
        self.config = None if config is None else _text_config(config)
        self.exact = exact
        self._rows = Rows(cache)
        self._pending: dict[int, Pending] = {}
        self.layers = [_Layer(self, number) for number in range(cache.layers)]

    @classmethod
    def from_config(
        cls,
        config: Any,
        preset: str = "balanced",
        *,
        budget: int | None = None,
        exact: bool = False,
    ) -> TransformersCache:
        """A cache for the layers of a model.

        Parameters
        ----------
        config
            The model's own: `model.config`.
        preset, budget
            As for `KVCache.from_model`.
        exact
            As for the class.

        Raises
        ------
        ImportError
            torch or transformers is not installed.
        ModelError
            A layer keeps something else than keys and values of its own.
        FormatError
            There is no such preset or codec.
        """
        text, chosen = _text_config(config), preset_of(preset)
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        store = KVCache(
            int(text.num_hidden_layers),
            int(heads),
            int(dim),
            chosen.k,
            chosen.v,
            policy=chosen.policy,
            window=_windows(text),
            budget=budget,
        )
        return cls(store, config, exact=exact)

    @property
    def rows(self) -> list[Any]:
        """The sequences of the batch."""
        return self._rows.sequences

    @property
    def batch_size(self) -> int:
        """Rows of the batch; -1 before the first tokens."""
        return len(self.rows) or -1

    def update(
        self, key_states: Any, value_states: Any, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Any, Any]:
        """Add keys and values [batch, kv_heads, T, dim] to a layer; what attention is to take.

        Raises
        ------
        ShapeError, CacheFullError
            As for `KVSequence.append`; the cache is then as it was before the model was called.
        ModelError
            The model's attention left out what it was given last time.
        """
        self._settled(layer_idx)
        self._rows.start(len(key_states))
        if self.config is not None and self.config._attn_implementation == NAME:
            pending = Pending(self._rows, layer_idx, key_states, value_states, self.exact)
            self._pending[layer_idx] = pending
            return pending.mark()
        past = self._rows.lengths[layer_idx]
        self._rows.append(layer_idx, to_numpy(key_states), to_numpy(value_states))
        k, v = self._rows.decode(layer_idx, self._first(layer_idx, past))
        return to_torch(k, key_states), to_torch(v, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of a layer, those that a mask leaves out included."""
        return self._rows.lengths[self.cache.owners[layer_idx]]

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Keys that `update` will give with so many new ones, and the position of the first."""
        past = self.get_seq_length(layer_idx)
        first = self._first(layer_idx, past)
        return past - first + query_length, first

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Of windows their size, else -1 for no bound."""
        if layer_idx is None:
            return max(self.get_max_length(number) for number in range(self.cache.layers))
        return self.cache.shapes[layer_idx].window or -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget so many last tokens, given as a negative number.

        The last 64 can always be taken back; more where no window has let go of what would be seen
        again. A positive number is the length to cut to, as older transformers have it.

        Raises
        ------
        ShapeError
            There are not so many, or a window has let go of some.
        """
        self._pending.clear()
        longest = max(self._rows.lengths)
        if tokens_to_remove <= 0:
            self._rows.crop(longest + tokens_to_remove)
        else:
            self._rows.crop(min(tokens_to_remove, longest))

    def reset(self) -> None:
        """Forget all tokens, and how many rows there were."""
        self._pending.clear()
        self._rows = Rows(self.cache)

    def fork(self) -> TransformersCache:
        """A cache with the same tokens, sharing all pages until one of the two writes."""
        twin = TransformersCache(self.cache, self.config, exact=self.exact)
        twin._rows = self._rows.selected(range(len(self.rows)))
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> TransformersCache:
        return self.fork()

    def reorder_cache(self, beam_idx: Any) -> None:
        """Take for each row the one that a beam goes on from; rows taken twice share pages."""
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row so many times in a row."""
        self._select([row for row in range(len(self.rows)) for _ in range(repeats)])

    def batch_select_indices(self, indices: Any) -> None:
        """Keep only these rows, given by numbers or by a mask."""
        if indices.dtype == package("torch").bool:
            indices = indices.nonzero().flatten()
        self._select(indices.tolist())

    def _select(self, indices: Iterable[int]) -> None:
        if self.rows:
            self._rows = self._rows.selected(indices)

    def _settled(self, layer: int) -> None:
        pending = self._pending.pop(layer, None)
        if pending is not None and not pending.done:
            raise ModelError(
                f'[TransformersCache] expected layer {layer} to attend through "{NAME}", as the '
                "model's config says; it did not (if another error came before, call crop or reset)"
            )

    def _first(self, layer: int, past: int) -> int:
        window = self.cache.shapes[layer].window
        return 0 if window is None else max(past - window + 1, 0)


class _Layer:
    """One layer as `transformers` asks for it in `Cache.layers`."""

    is_compileable = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, cache: TransformersCache, number: int) -> None:
        self._cache, self._number = cache, number
        self.is_sliding = cache.cache.shapes[number].window is not None

    @property
    def is_initialized(self) -> bool:
        return bool(self._cache.rows)

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        return self._cache.update(key_states, value_states, self._number)

    def get_seq_length(self) -> int:
        return self._cache.get_seq_length(self._number)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.get_mask_sizes(query_length, self._number)

    def get_max_length(self) -> int:
        return self._cache.get_max_length(self._number)


_bound_classes: dict[type, Any] = {}


def _bound(cls: type) -> Any:
    """The class that is a `transformers.Cache`, too: transformers asks for one."""
    base = package("transformers").Cache
    if issubclass(cls, base):
        return cls
    if cls not in _bound_classes:
        _bound_classes[cls] = type(cls.__name__, (cls, base), {})
    return _bound_classes[cls]


def _text_config(config: Any) -> Any:
    package("transformers")
    return config.get_text_config(decoder=True)


def _windows(config: Any) -> list[int | None]:
    """Of each layer, by the rules that transformers makes its own caches by."""
    module = import_module("transformers.cache_utils")
    kinds, options = module.get_layer_types_and_kwargs(config)
    if getattr(config, "kv_lora_rank", None):
        raise ModelError("[TransformersCache] expected heads of keys, got one latent row for all")
    for number, kind in enumerate(kinds):
        if kind not in ("full_attention", _WINDOWED):
            raise ModelError(
                f"[TransformersCache] expected layer {number} to have full or sliding attention "
                f"over keys of its own, got {kind}"
            )
    return [option.get("sliding_window") for option in options]
