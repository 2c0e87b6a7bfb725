"""Text to token ids and back, from what a GGUF file says about its tokenizer.

The work is done by the `tokenizers` package; this room only describes the tokenizer to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from kvant.errors import ModelError
from kvant.models import bpe, spm

if TYPE_CHECKING:
    import tokenizers

__all__ = ["TokenType", "Tokenizer", "read_tokenizer"]


class TokenType:
    """Values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Tokenizer:
    """Encode and decode text for one model.

    Attributes
    ----------
    bos_id, eos_id : int or None
        Tokens that begin and end a text, where the model has them.
    add_bos : bool
        Whether the file asks for `bos_id` in front of every text.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        bos_id: int | None,
        eos_id: int | None,
        add_bos: bool,
    ) -> None:
        self._backend = backend
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.add_bos = add_bos

    @property
    def vocab_size(self) -> int:
        """Number of token ids, control tokens included."""
        return int(self._backend.get_vocab_size())

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Token ids of a text; control tokens that are spelled out in it count as such.

        Parameters
        ----------
        text : str
        bos : bool
            Put `bos_id` in front, if there is one. Off by default, so that pieces of a text can be
            joined; `bos=tokenizer.add_bos` does what the file asks for.
        """
        ids = list(self._backend.encode(text, add_special_tokens=False).ids)
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without control tokens; bytes that are no UTF-8 become U+FFFD."""
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=True))


def read_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that GGUF metadata describe.

    Parameters
    ----------
    metadata : mapping of GGUF keys

    Raises
    ------
    ModelError
        The metadata hold no tokenizer, one of an unknown kind, or a broken one.
    ImportError
        The package `tokenizers` is not installed.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None or "tokenizer.ggml.tokens" not in metadata:
        raise ModelError("[tokenizer] expected 'tokenizer.ggml.tokens' in the file, got none")
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"[tokenizer] expected a tokenizer of gpt2 or llama, got {kind}")
    pieces = [str(piece) for piece in _items(metadata, "tokens")]
    unmarked = [TokenType.NORMAL] * len(pieces)
    types = [int(t) for t in _items(metadata, "token_type", unmarked)]
    if len(types) != len(pieces):
        raise ModelError(f"[tokenizer] expected {len(pieces)} token types, got {len(types)}")
    if kind == "gpt2":
        pre = str(metadata.get("tokenizer.ggml.pre", "default"))
        backend = bpe.build(pieces, _merges(metadata), pre)
        add_bos = pre in bpe.BOS_BY_DEFAULT
    else:
        normal = [t in (TokenType.NORMAL, TokenType.USER_DEFINED) for t in types]
        prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        unknown = _token_id(metadata, "unknown_token_id", len(pieces))
        backend = spm.build(pieces, _scores(metadata, len(pieces)), normal, prefix, unknown or 0)
        add_bos = True
    _add_control_tokens(backend, pieces, types)
    return Tokenizer(
        backend,
        _token_id(metadata, "bos_token_id", len(pieces)),
        _token_id(metadata, "eos_token_id", len(pieces)),
        bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos)),
    )


def _items(metadata: Mapping[str, Any], key: str, default: Any = None) -> Sequence[Any]:
    """An array of the tokenizer; ModelError if there is none or its items are of the wrong kind."""
    values = metadata.get(f"tokenizer.ggml.{key}", default)
    kinds = (str,) if key in ("tokens", "merges") else (int, float, np.number)
    if (
        isinstance(values, str)
        or not isinstance(values, Sequence | np.ndarray)
        or not all(isinstance(v, kinds) for v in values)
    ):
        raise ModelError(
            f"[tokenizer] expected an array 'tokenizer.ggml.{key}', got none or another"
        )
    return cast(Sequence[Any], values)


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = []
    for merge in _items(metadata, "merges"):
        left, _, right = str(merge).partition(" ")
        if not left or not right:
            raise ModelError(f"[tokenizer] expected two parts in a merge, got {merge!r}")
        merges.append((left, right))
    return merges


def _scores(metadata: Mapping[str, Any], count: int) -> list[float]:
    scores = [float(s) for s in _items(metadata, "scores", ())]
    if len(scores) != count:
        raise ModelError(f"[tokenizer] expected {count} token scores, got {len(scores)}")
    return scores


def _token_id(metadata: Mapping[str, Any], key: str, count: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        return None
    if not isinstance(value, int | np.integer) or not 0 <= value < count:
        raise ModelError(f"[tokenizer] expected {key} below {count}, got {value}")
    return int(value)


def _add_control_tokens(
    backend: tokenizers.Tokenizer, pieces: Sequence[str], types: Sequence[int]
) -> None:
    """Mark tokens that stand for themselves in a text and are never split."""
    from tokenizers import AddedToken

    named = list(zip(pieces, types, strict=True))
    control = [p for p, t in named if t == TokenType.CONTROL]
    user = [p for p, t in named if t == TokenType.USER_DEFINED]
    backend.add_special_tokens([AddedToken(p, special=True, normalized=False) for p in control])
    backend.add_tokens([AddedToken(p, special=False, normalized=False) for p in user])
