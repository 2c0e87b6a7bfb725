"""Llama's older tokenizer (SentencePiece BPE) expressed as ordinary BPE.

SentencePiece repeatedly joins the neighbours whose union is the token of highest score. So a list
of merges, ordered by the score of the token they make, does the same. Idea of deriving merges from
scores: the slow-tokenizer converter of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvant.errors import ModelError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["SPACE", "build"]

SPACE = "\u2581"
"""Stands for a space inside tokens."""


def build(
    pieces: Sequence[str],
    scores: Sequence[float],
    normal: Sequence[bool],
    space_prefix: bool,
    unknown: int,
) -> tokenizers.Tokenizer:
    """A tokenizer that merges by score and spells unknown characters as bytes.

    Parameters
    ----------
    pieces : token strings in order of id, spaces written as U+2581
    scores : higher is joined earlier
    normal : whether a token may come out of merging (control and byte tokens may not)
    space_prefix : put a space in front of a text
    unknown : id of the token for what cannot be spelled
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocab = {piece: i for i, piece in enumerate(pieces)}
    if len(vocab) != len(pieces):
        raise ModelError("[tokenizer] expected distinct tokens, got a repeated one")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(vocab, scores, normal),
            unk_token=pieces[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps = [normalizers.Prepend(SPACE)] if space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if space_prefix:
        back.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(back)
    return tokenizer


def _merges(
    vocab: dict[str, int], scores: Sequence[float], normal: Sequence[bool]
) -> list[tuple[str, str]]:
    """Every way to make a token from two others, best score first, then lowest id."""
    usable = {piece: i for piece, i in vocab.items() if normal[i]}
    made = sorted(usable.items(), key=lambda item: (-scores[item[1]], item[1]))
    return [
        (piece[:cut], piece[cut:])
        for piece, _ in made
        for cut in range(1, len(piece))
        if piece[:cut] in usable and piece[cut:] in usable
    ]
