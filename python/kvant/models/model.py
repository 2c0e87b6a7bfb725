"""The decoder: tokens in, logits out, over weights that any mapping of tensors can provide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import ModelError, ShapeError
from kvant.models import sampling
from kvant.models.architectures import ARCHITECTURES, layer_of, optional_shapes, required_shapes
from kvant.models.config import ModelConfig, read_config
from kvant.models.ops import Array, Ints
from kvant.models.step import KeyValues, Observer, Step
from kvant.models.tokenizer import Tokenizer, read_tokenizer
from kvant.models.weights import Weight, Weights

__all__ = ["Model"]


class Model:
    """A decoder of architecture llama, qwen3 or qwen3moe, computed in f32.

    Parameters
    ----------
    metadata : mapping of GGUF keys
        What the model is, and its tokenizer.
    tensors : mapping of GGUF tensor names to QTensor or ndarray
        Its weights, in NumPy axis order. They are decoded to f32 when first needed and kept.

    Attributes
    ----------
    config : ModelConfig
    tensors : mapping
        The weights as they were given, before decoding.

    Raises
    ------
    ModelError
        The architecture is unknown, or a key or a tensor is missing.
    ShapeError
        A tensor has not the shape that the metadata say.
    """

    def __init__(
        self,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, Weight],
    ) -> None:
        self._metadata = metadata
        self.config = read_config(metadata, ARCHITECTURES)
        self._weights = tensors if isinstance(tensors, Weights) else Weights(tensors)
        _check_tensors(self.config, self._weights)
        self._layer = layer_of(self.config)
        self._head = "output" if "output.weight" in self._weights else "token_embd"

    @property
    def tensors(self) -> Mapping[str, Weight]:
        """The weights as they were given, under their GGUF names."""
        return self._weights

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the metadata describe; ModelError if they describe none."""
        return read_tokenizer(self._metadata)

    def with_weights(self, tensors: Mapping[str, Weight]) -> Model:
        """The same model with some tensors replaced; everything else is shared with this one.

        Parameters
        ----------
        tensors : mapping of GGUF names to QTensor or ndarray of the same shapes

        Raises
        ------
        ModelError
            A name is not one of this model's.
        ShapeError
            A tensor has another shape than the one it replaces.
        """
        model = Model(self._metadata, self._weights.replace(tensors))
        if "tokenizer" in self.__dict__:
            model.tokenizer = self.tokenizer
        return model

    def logits(self, tokens: npt.ArrayLike, *, observe: Observer | None = None) -> Array:
        """Scores of the next token after each token of a sequence.

        Parameters
        ----------
        tokens : integers [T]
            At least one, at most `config.context_length`.
        observe : callable, optional
            Called as `observe(name, x, expert)` before each product with a weight: its tensor name,
            the rows f32 [n, k] that multiply it, and the expert's id where it has experts.

        Returns
        -------
        f32 [T, vocab]

        Raises
        ------
        ShapeError
            `tokens` is not a row of integers.
        ModelError
            A token is not in the vocabulary, or there are too many.
        """
        step, x = self._forward(self._checked(tokens, "logits"), None, observe)
        return step.linear(self._head, x)

    def generate(
        self,
        tokens: npt.ArrayLike,
        n: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[int]:
        """Continue a sequence; the new tokens only. Arguments are those of `stream`."""
        return list(self.stream(tokens, n, temperature=temperature, top_p=top_p, seed=seed))

    def stream(
        self,
        tokens: npt.ArrayLike,
        n: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """Continue a sequence, one token at a time, keeping keys and values of what was seen.

        Parameters
        ----------
        tokens : integers [T]
        n : int
            Most tokens to make. The end-of-text token ends it earlier and is not given out.
        temperature : float
            0 takes the most likely token; larger draws more freely.
        top_p : float
            In (0, 1]: draw from the most likely tokens that together have this probability.
        seed : int
            Of the draws; the same seed gives the same tokens.

        Raises
        ------
        ShapeError, ModelError
            As `logits`; also when T + n exceeds the context, or a setting is out of range.
        """
        new = self._checked(tokens, "generate")
        context = self.config.context_length
        if n < 0 or len(new) + n > context:
            raise ModelError(
                f"[generate] expected at most {context} tokens in all (context_length), "
                f"got {len(new)} + {n}"
            )
        if not 0 <= temperature < float("inf"):
            raise ModelError(f"[generate] expected temperature >= 0, got {temperature}")
        if not 0 < top_p <= 1:
            raise ModelError(f"[generate] expected 0 < top_p <= 1, got {top_p}")
        return self._continue(new, n, temperature, top_p, np.random.default_rng(seed))

    def _continue(
        self, new: Ints, n: int, temperature: float, top_p: float, generator: np.random.Generator
    ) -> Iterator[int]:
        eos = self._metadata.get("tokenizer.ggml.eos_token_id")
        past = KeyValues(self.config)
        for _ in range(n):
            step, x = self._forward(new, past, None)
            token = sampling.pick(step.linear(self._head, x[-1:])[0], temperature, top_p, generator)
            if token == eos:
                return
            yield token
            new = np.array([token])

    def _forward(
        self, tokens: Ints, past: KeyValues | None, observe: Observer | None
    ) -> tuple[Step, Array]:
        """The last hidden state [T, width] of new tokens, ready for the head."""
        step = Step(self.config, self._weights, len(tokens), past, observe)
        x = self._weights.f32("token_embd.weight")[tokens]
        for index in range(self.config.block_count):
            x = self._layer(step, index, x)
        if past:
            past.length += len(tokens)
        return step, step.norm("output_norm", x)

    def _checked(self, tokens: npt.ArrayLike, who: str) -> Ints:
        array = np.asarray(tokens)
        if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
            raise ShapeError(
                f"[{who}] expected a row of one or more integers, "
                f"got {array.dtype} {list(array.shape)}"
            )
        if len(array) > self.config.context_length:
            raise ModelError(
                f"[{who}] expected at most {self.config.context_length} tokens (context_length), "
                f"got {len(array)}"
            )
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= self.config.vocab_size:
            bad = low if low < 0 else high
            raise ModelError(f"[{who}] expected tokens below {self.config.vocab_size}, got {bad}")
        return array.astype(np.int64)


def _check_tensors(config: ModelConfig, weights: Weights) -> None:
    """Find a missing or misshapen tensor before anything is computed."""
    # A file may claim any number of layers; believe it only as far as there are tensors.
    if config.block_count > len(weights):
        raise ModelError(
            f"[load] expected tensors of {config.block_count} layers, got {len(weights)} in all"
        )
    required = required_shapes(config)
    for name, shape in (required | optional_shapes(config)).items():
        if name not in weights:
            if name in required:
                raise ModelError(f"[load] expected the tensor {name!r}, got none")
        elif tuple(weights[name].shape) != shape:
            got = tuple(weights[name].shape)
            raise ShapeError(f"[load] expected shape {shape} for {name}, got {got}")
