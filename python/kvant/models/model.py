"""The decoder: tokens in, logits out, over weights that any mapping of tensors can provide."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import ModelError, ShapeError
from kvant.kv import KVCache, KVRope, KVSequence
from kvant.kv.presets import preset_of
from kvant.kv.spec import layer_shapes
from kvant.models.architectures import (
    ARCHITECTURES,
    architecture_of,
    optional_shapes,
    required_shapes,
)
from kvant.models.config import ModelConfig, read_config
from kvant.models.routing import Ints
from kvant.models.session import Session
from kvant.models.step import Observer, Settings
from kvant.models.tokenizer import Tokenizer, read_tokenizer
from kvant.models.weights import Array, Tensor, WeightTable
from kvant.products import act_number, matmul
from kvant.qtensor import QTensor

__all__ = ["Model"]

_ENDS = 256  # elements of a tensor's beginning and end


class Model:
    """A decoder, of one of the architectures in `kvant.models.ARCHITECTURES`.

    Parameters
    ----------
    metadata : mapping of GGUF keys
        What the model is, and its tokenizer.
    tensors : mapping of GGUF tensor names to QTensor or ndarray
        Its weights, in NumPy axis order.
    act : {"q8", "f32"}
        Activations of products, as for `kvant.matmul`: eight bits, or as they are, which is slow
        and for validation.
    pack : bool
        Pack weights when they are first used: a copy in memory that multiplies faster. Without it
        they are multiplied where they lie, as in a mapped file.
    threads : int, optional
        At most this many; the set number by default. The logits do not depend on it.
    kv : str, optional
        How keys and values are stored, as for `KVCache.from_model`; f16 by default, or f32 where
        activations are.

    Attributes
    ----------
    config : ModelConfig

    Raises
    ------
    ModelError
        The architecture is unknown, or a key or a tensor is missing.
    ShapeError
        A tensor has not the shape that the metadata say, or `act` is unknown.
    """

    def __init__(
        self,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        *,
        act: str = "q8",
        pack: bool = True,
        threads: int | None = None,
        kv: str | None = None,
    ) -> None:
        act_number("load", act)
        if kv is not None:
            preset_of(kv)
        self._metadata = metadata
        self.config = read_config(metadata, ARCHITECTURES)
        self._weights = tensors if isinstance(tensors, WeightTable) else WeightTable(tensors, pack)
        _check_tensors(self.config, self._weights)
        self._settings = Settings(act, threads, kv)
        self._eos_id = _eos_id(metadata)
        self._layers = architecture_of(self.config)(self.config, self._weights)
        self._head = "output.weight" if self.has_own_head else "token_embd.weight"

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The weights as they were given, under their GGUF names."""
        return self._weights

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the metadata describe; ModelError if they describe none."""
        return read_tokenizer(self._metadata)

    @property
    def has_own_head(self) -> bool:
        """Whether the head has weights of its own; otherwise the embedding serves, transposed."""
        return "output.weight" in self._weights

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, if the metadata name one."""
        return self._eos_id

    def with_weights(self, tensors: Mapping[str, Tensor]) -> Model:
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
        settings = self._settings
        model = Model(
            self._metadata,
            self._weights.replace(tensors),
            act=settings.act,
            threads=settings.threads,
            kv=settings.kv,
        )
        if "tokenizer" in self.__dict__:
            model.tokenizer = self.tokenizer
        return model

    def prepare(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Pack all matrices now, which otherwise happens when each is first used.

        Parameters
        ----------
        progress : callable, optional
            Called with what is being done, how many are done, and how many there are.
        """
        names = [n for n in self._weights if self._is_product(n)]
        for done, name in enumerate(names, 1):
            self._weights.matrix(name)
            if progress is not None:
                progress(f"packing {name}", done, len(names))

    def _is_product(self, name: str) -> bool:
        if name == "token_embd.weight":
            return self._head == name
        return name.endswith(".weight") and len(self._weights[name].shape) > 1

    def start(
        self, kv: KVCache | KVSequence | str | None = None, *, observe: Observer | None = None
    ) -> Session:
        """A sequence to feed tokens to.

        Parameters
        ----------
        kv : KVCache, KVSequence or str, optional
            Where its keys and values are kept: a new sequence of a cache, one that goes on, or a
            new cache as `cache` makes it.
        observe : callable, optional
            As for `logits`.
        """
        if isinstance(kv, KVSequence):
            sequence = kv
        else:
            cache = kv if isinstance(kv, KVCache) else self.cache(kv)
            sequence = cache.sequence()
        if sequence.cache.shapes != layer_shapes(self.config):
            raise ShapeError("[start] expected a cache of this model's layers and heads")
        return Session(self.config, self._weights, self._layers, self._settings, sequence, observe)

    def cache(self, kv: str | None = None) -> KVCache:
        """A cache for sequences of this model, of a preset or of codecs; its own by default."""
        plain = "f32" if self._settings.act == "f32" else "f16"
        return KVCache.from_model(self, kv or self._settings.kv or plain)

    @property
    def kv_rope(self) -> list[KVRope]:
        """How positions are in the keys of each layer, for `KVSequence.remove` and `shift`."""
        ropes = [self._layers.rope_of(layer) for layer in range(self.config.block_count)]
        return [
            KVRope(how.theta, how.style, freq_factors=how.factors, scale=how.scale) for how in ropes
        ]

    @cached_property
    def fingerprint(self) -> str:
        """What tells this model from others: a digest of its sizes and the ends of its weights."""
        digest = hashlib.blake2b(repr(self.config).encode(), digest_size=16)
        for name in sorted(self._weights):
            tensor = self._weights[name]
            data = tensor.data if isinstance(tensor, QTensor) else np.asarray(tensor)
            flat = data.reshape(-1)
            digest.update(f"{name} {tensor.shape}".encode())
            digest.update(flat[:_ENDS].tobytes() + flat[-_ENDS:].tobytes())
        return digest.hexdigest()

    def hidden(self, tokens: npt.ArrayLike, *, observe: Observer | None = None) -> Array:
        """What the head is given after each token: normed states of the last layer, [T, width].

        Arguments are those of `logits`; `head` makes logits of it.
        """
        ids = self.checked(tokens, "logits")
        return self.start(observe=observe).feed(ids)

    def head(self, hidden: Array, *, observe: Observer | None = None) -> Array:
        """Logits [..., vocab] of hidden states f32 [..., width]."""
        if observe is not None:
            observe(self._head, hidden, None)
        settings = self._settings
        w = self._weights.matrix(self._head)
        return matmul(hidden, w, act=settings.act, threads=settings.threads)

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
        return self.head(self.hidden(tokens, observe=observe), observe=observe)

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
        from kvant.models.generation import Generation

        how = Generation(self, tokens, n, temperature=temperature, top_p=top_p, seed=seed)
        return how.ids()

    def checked(self, tokens: npt.ArrayLike, function: str) -> Ints:
        """Tokens as int64, once it is known that the model can take them."""
        array = np.asarray(tokens)
        if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
            raise ShapeError(
                f"[{function}] expected a row of one or more integers, "
                f"got {array.dtype} {list(array.shape)}"
            )
        if len(array) > self.config.context_length:
            raise ModelError(
                f"[{function}] expected at most {self.config.context_length} tokens "
                f"(context_length), got {len(array)}"
            )
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= self.config.vocab_size:
            bad = low if low < 0 else high
            raise ModelError(
                f"[{function}] expected tokens below {self.config.vocab_size}, got {bad}"
            )
        return array.astype(np.int64)


def _check_tensors(config: ModelConfig, weights: WeightTable) -> None:
    """Find a missing or misshapen tensor before anything is computed."""
    # A file may claim any number of layers; believe it only as far as there are tensors.
    if config.block_count > len(weights):
        raise ModelError(
            f"[load] expected tensors of {config.block_count} layers, got {len(weights)} in all"
        )
    required = required_shapes(config)
    known = required | optional_shapes(config)
    unknown = set(weights) - set(known)
    if unknown:
        raise ModelError(f"[load] expected only tensors that are used, got {min(unknown)!r}")
    if config.rope_original_context and "rope_freqs.weight" in weights:
        raise ModelError("[load] expected rope factors or YaRN, got both")
    for name, shape in known.items():
        if name not in weights:
            if name in required:
                raise ModelError(f"[load] expected the tensor {name!r}, got none")
        elif tuple(weights[name].shape) != shape:
            got = tuple(weights[name].shape)
            raise ShapeError(f"[load] expected shape {shape} for {name}, got {got}")


def _eos_id(metadata: Mapping[str, Any]) -> int | None:
    value = metadata.get("tokenizer.ggml.eos_token_id")
    if value is not None and not isinstance(value, int | np.integer):
        raise ModelError(f"[load] expected a whole number for eos_token_id, got {value!r}")
    return None if value is None else int(value)
