"""A decoder's step for one token, recorded once and then made as one native call.

Between a token's native calls the weights that stream through the caches evict the interpreter, so
that Python costs ten times of what it does in a loop of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kvant import _core
from kvant.errors import CacheFullError
from kvant.kv import KVSequence
from kvant.models.step import Step
from kvant.models.weights import Array

if TYPE_CHECKING:
    from kvant.models.llama import Llama

__all__ = ["Replay"]


class Replay:
    """All layers for the next token of a sequence.

    The first run takes the layers as they are written, and every native call is noted with the
    arrays it reads and writes. For a later token the number and its position are overwritten,
    and the same calls made again.

    Attributes
    ----------
    sequence : KVSequence
        Whose keys and values the calls append and read.
    """

    def __init__(self, layers: Llama, step: Step, sequence: KVSequence) -> None:
        self._layers = layers
        self._step = step
        self.sequence = sequence
        self._program = _core.Program()
        self._token = np.zeros(1, np.int64)
        self._hidden: Array | None = None

    def run(self, token: int) -> Array:
        """Hidden state [1, width] of one token."""
        self._token[0] = token
        self._step.positions[0] = self.sequence.length
        if self._hidden is None:
            with self._program:
                self._hidden = self._layers.hidden(self._step, self._token)
        else:
            self._replay()
        return self._hidden.copy()

    def _replay(self) -> None:
        before = self.sequence.length
        while True:
            try:
                return _core.replay(self._program)
            except CacheFullError:
                # Layers that have their token give it back before prefixes make room.
                self.sequence.truncate(before)
                if not self.sequence.cache.prefixes.drop_oldest():
                    raise
