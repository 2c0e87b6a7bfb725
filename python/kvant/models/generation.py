"""A text continued token by token, with the figures that tell how fast."""

from __future__ import annotations

import time
from collections.abc import Iterator
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import ModelError
from kvant.models.model import Model
from kvant.models.profile import Profile
from kvant.models.sampling import Sampler
from kvant.models.session import Session
from kvant.models.traffic import cache_bytes_per_token, weight_bytes_per_token
from kvant.models.weights import Array

__all__ = ["Generation"]

_CONTEXT = 8


class Generation:
    """One prompt and what follows it.

    Parameters
    ----------
    model : Model
    ids : integers [T]
        The prompt.
    tokens : int
        Most tokens to make.
    temperature, top_p, seed
        As for `Model.stream`.
    ignore_eos : bool
        Go on where the model would end the text.
    profile : bool
        Time every native call of the decoded tokens.
    state : path, optional
        A sequence that `save` wrote: the prompt goes on behind it.

    Attributes
    ----------
    profile : Profile or None

    Raises
    ------
    ModelError
        Prompt and tokens exceed the context, or a setting is out of range.
    ShapeError
        The prompt is empty.
    StateError
        The file holds no sequence of this model and its cache.
    """

    def __init__(
        self,
        model: Model,
        ids: npt.ArrayLike,
        tokens: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        ignore_eos: bool = False,
        profile: bool = False,
        state: str | PathLike[str] | None = None,
    ) -> None:
        self._model = model
        self._prompt = model.checked(ids, "generate")
        cache = model.cache()
        sequence = cache.sequence() if state is None else cache.load(state)
        self._session = model.start(sequence)
        self._fed = [] if sequence.tokens is None else sequence.tokens.tolist()
        context, count = model.config.context_length, sequence.length + len(self._prompt)
        if tokens < 0 or count + tokens > context:
            raise ModelError(
                f"[generate] expected at most {context} tokens in all (context_length), "
                f"got {count} + {tokens}"
            )
        self._tokens = tokens
        self._sampler = Sampler(temperature, top_p, seed)
        self._eos = None if ignore_eos else model.eos_id
        self.profile = Profile() if profile else None
        self.made: list[int] = []
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self.decoded = 0

    def ids(self) -> Iterator[int]:
        """The new tokens, one by one. Time that the caller takes between them does not count."""
        model, clock = self._model, time.perf_counter
        session = self._session
        began = clock()
        logits = model.head(session.feed(self._prompt)[-1])
        self._fed += self._prompt.tolist()
        self.prefill_seconds = clock() - began
        for index in range(self._tokens):
            token = self._sampler.pick(logits)
            if token == self._eos:
                return
            self.made.append(token)
            yield token
            if index + 1 < self._tokens:
                logits = self._next(session, token)
                self._fed.append(token)

    def _next(self, session: Session, token: int) -> Array:
        began = time.perf_counter()
        if self.profile is None:
            logits = self._model.head(session.feed(np.array([token]))[0])
        else:
            with self.profile:
                logits = self._model.head(session.feed(np.array([token]))[0])
        self.decode_seconds += time.perf_counter() - began
        self.decoded += 1
        return logits

    def save(self, path: str | PathLike[str]) -> None:
        """Write the sequence as it is now, to go on with it another time."""
        sequence = self._session.sequence
        sequence.save(path, self._fed if len(self._fed) == sequence.length else None)

    def pieces(self) -> Iterator[str]:
        """The new text as it comes; half a character waits for its other half."""
        decode = self._model.tokenizer.decode
        # A few tokens of context are enough for a tokenizer to put spaces where they belong.
        before = [int(i) for i in self._prompt[-_CONTEXT:]]
        waiting: list[int] = []
        for token in self.ids():
            waiting.append(token)
            piece = decode(before + waiting)[len(decode(before)) :]
            if not piece.endswith("\ufffd"):
                before, waiting = (before + waiting)[-_CONTEXT:], []
                yield piece
        if waiting:
            yield decode(before + waiting)[len(decode(before)) :]

    def figures(self, bandwidth: float) -> dict[str, Any]:
        """Speeds and bytes; `bandwidth` is what the machine reads, in bytes per second."""
        model = self._model
        middle = self._session.sequence.length - self.decoded // 2
        cache = cache_bytes_per_token(self._session.sequence.cache, middle)
        nbytes = weight_bytes_per_token(model) + cache
        rate = self.decoded / self.decode_seconds if self.decode_seconds else 0.0
        figures: dict[str, Any] = {
            "prompt_tokens": len(self._prompt),
            "prefill_tokens_per_second": len(self._prompt) / max(self.prefill_seconds, 1e-9),
            "decoded_tokens": self.decoded,
            "decode_tokens_per_second": rate,
            "bytes_per_token": nbytes,
            "cache_bytes_per_token": cache,
            "decode_bytes_per_second": nbytes * rate,
            "bandwidth_bytes_per_second": bandwidth,
            "share_of_bandwidth": nbytes * rate / bandwidth if bandwidth else 0.0,
        }
        if self.profile is not None:
            figures["profile"] = self._profile_lines(self.profile)
        return figures

    def _profile_lines(self, profile: Profile) -> list[dict[str, Any]]:
        tokens, total = max(self.decoded, 1), max(profile.total, 1e-12)
        by_time = sorted(profile.seconds.items(), key=lambda item: -item[1])
        lines: list[tuple[str, float | None, float]] = [
            (name, profile.calls[name] / tokens, seconds) for name, seconds in by_time
        ]
        lines.append(("Python", None, profile.total - profile.native))
        return [
            {
                "call": name,
                "calls": calls,
                "microseconds": 1e6 * seconds / tokens,
                "share": seconds / total,
            }
            for name, calls, seconds in lines
        ]
