"""Byte-level BPE: how a text is cut into words before merging, by the names that GGUF uses.

The patterns are those of the tokenizers of GPT-2, Llama 3 and Qwen 2, as their makers published
them; "default" is what llama.cpp applies when a file does not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvant.errors import ModelError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["BOS_BY_DEFAULT", "PATTERNS", "build"]

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

PATTERNS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
"""Patterns by `tokenizer.ggml.pre`; each cuts what the ones before it left, and keeps the rest."""

BOS_BY_DEFAULT = frozenset({"llama-bpe"})
"""Tokenizers that put BOS in front when the file does not say."""

# Names that llama.cpp treats as one of the above.
_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}


def build(
    pieces: Sequence[str], merges: Sequence[tuple[str, str]], pre: str
) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer.

    Parameters
    ----------
    pieces : token strings in order of id, in the byte alphabet of GPT-2
    merges : pairs in order of rank
    pre : name of the word pattern, a key of `PATTERNS`
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = _ALIASES.get(pre, pre)
    if name not in PATTERNS:
        known = ", ".join(PATTERNS)
        raise ModelError(f"[tokenizer] expected 'tokenizer.ggml.pre' of {known}, got {pre}")
    vocab = {piece: i for i, piece in enumerate(pieces)}
    if len(vocab) != len(pieces):
        raise ModelError("[tokenizer] expected distinct tokens, got a repeated one")
    for pair in merges:
        if any(part not in vocab for part in (*pair, "".join(pair))):
            raise ModelError(f"[tokenizer] expected merges of known tokens, got {' '.join(pair)!r}")
    # Llama 3 takes a whole word that is a token without asking the merges.
    model = models.BPE(vocab=vocab, merges=list(merges), ignore_merges=name == "llama-bpe")
    tokenizer = Tokenizer(model)
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS[name]]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
