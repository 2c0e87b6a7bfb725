"""One sequence on its way through a model: its cache, and the layers that new tokens pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kvant.errors import ModelError, ShapeError
from kvant.models.cache import BATCH_TOKENS, PAGE_TOKENS, Cache
from kvant.models.config import ModelConfig
from kvant.models.routing import Ints
from kvant.models.step import Observer, Settings, Step
from kvant.models.weights import Array, WeightTable

if TYPE_CHECKING:
    from kvant.models.llama import Llama

__all__ = ["Session"]


class Session:
    """Tokens fed so far, as keys and values; made by `Model.start`.

    Attributes
    ----------
    cache : Cache
        `cache.truncate(n)` forgets all but the first n tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightTable,
        layers: Llama,
        settings: Settings,
        capacity: int | None,
        observe: Observer | None,
    ) -> None:
        self._config = config
        self._weights = weights
        self._layers = layers
        self._settings = settings
        self._observe = observe
        self.cache = Cache(
            config.block_count,
            config.head_count_kv,
            config.key_length,
            config.value_length,
            capacity or PAGE_TOKENS,
            "f32" if settings.act == "f32" else "f16",
            [config.window_of(layer) for layer in range(config.block_count)],
        )

    def feed(self, tokens: Ints) -> Array:
        """Pass new tokens through the layers; their hidden states [T, width], for `Model.head`.

        Parameters
        ----------
        tokens : int64 [T]
            As `Model.checked` gives them.

        Raises
        ------
        ShapeError
            There are no tokens.
        ModelError
            The sequence gets longer than the model's context.
        """
        if not len(tokens):
            raise ShapeError("[feed] expected at least one token, got none")
        total = self.cache.length + len(tokens)
        if total > self._config.context_length:
            raise ModelError(
                f"[feed] expected at most {self._config.context_length} tokens (context_length), "
                f"got {total}"
            )
        batches = [tokens[i : i + BATCH_TOKENS] for i in range(0, len(tokens), BATCH_TOKENS)]
        states = [self._pass(batch) for batch in batches]
        return states[0] if len(states) == 1 else np.concatenate(states)

    def _pass(self, tokens: Ints) -> Array:
        step = Step(
            self._config, self._weights, self.cache, len(tokens), self._settings, self._observe
        )
        x = self._layers.embed(step, tokens)
        for index in range(self._config.block_count):
            x = self._layers.layer(step, index, x)
        self.cache.advance(len(tokens))
        return step.norm("output_norm", x)
