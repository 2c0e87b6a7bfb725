"""One sequence on its way through a model: its cache, and the layers that new tokens pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kvant.errors import ModelError, ShapeError
from kvant.kv import KVSequence
from kvant.models.config import ModelConfig
from kvant.models.replay import Replay
from kvant.models.routing import Ints
from kvant.models.step import AttendObserver, Observer, Settings, Step
from kvant.models.weights import Array, WeightTable

if TYPE_CHECKING:
    from kvant.models.llama import Llama

__all__ = ["BATCH_TOKENS", "Session"]

BATCH_TOKENS = 512
"""Tokens that pass the layers at a time: enough for full speed, and what they need stays small."""


class Session:
    """Tokens fed so far, as keys and values; made by `Model.start`.

    Attributes
    ----------
    sequence : KVSequence
        Their keys and values; `sequence.truncate(n)` forgets all but the first n tokens.
    on_attend : callable or None
        Called with (layer, q, k, v, scale, sinks) before a layer attends over new tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightTable,
        layers: Llama,
        settings: Settings,
        sequence: KVSequence,
        observe: Observer | None,
    ) -> None:
        self._config = config
        self._weights = weights
        self._layers = layers
        self._settings = settings
        self._observe = observe
        self.on_attend: AttendObserver | None = None
        # Weights are made when they are first used; only later calls are worth noting.
        self._used = False
        self._replay: Replay | None = None
        self.sequence = sequence

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
        total = self.sequence.length + len(tokens)
        if total > self._config.context_length:
            raise ModelError(
                f"[feed] expected at most {self._config.context_length} tokens (context_length), "
                f"got {total}"
            )
        before = self.sequence.length
        try:
            return self._feed(tokens)
        except BaseException:
            # Layers that the step had passed hold its tokens. Where windows have moved on, the
            # batches before it stay: all layers are of one length again.
            try:
                self.sequence.truncate(before)
            except ShapeError:
                self.sequence.truncate(self.sequence.length)
            raise

    def _feed(self, tokens: Ints) -> Array:
        if len(tokens) == 1 and self._can_replay and tokens.dtype.kind in "iu":
            return self._next(int(tokens[0]))
        batches = [tokens[i : i + BATCH_TOKENS] for i in range(0, len(tokens), BATCH_TOKENS)]
        states = [self._pass(batch) for batch in batches]
        return states[0] if len(states) == 1 else np.concatenate(states)

    def _pass(self, tokens: Ints) -> Array:
        step = self._step(len(tokens), self._observe)
        x = self._layers.hidden(step, tokens)
        self._used = True
        return x

    @property
    def _can_replay(self) -> bool:
        watched = self._observe is not None or self.on_attend is not None
        return self._used and not watched and self._layers.replays

    def _next(self, token: int) -> Array:
        replay = self._replay
        if replay is None or replay.sequence is not self.sequence:
            replay = Replay(self._layers, self._step(1), self.sequence)
        x = replay.run(token)
        # Kept once it was recorded to its end.
        self._replay = replay
        return x

    def _step(self, tokens: int, observe: Observer | None = None) -> Step:
        step = Step(self._config, self._weights, self.sequence, tokens, self._settings, observe)
        step.on_attend = self.on_attend
        return step
