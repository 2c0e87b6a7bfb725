"""Read the `.bin` checkpoints of llama2.c (version 0) as a llama model.

Layout: seven int32 (width, ffn, layers, heads, kv heads, vocab, context), then f32 arrays: the
embedding, then each kind of weight for all layers. A negative vocab means that the head is stored
separately. The tokenizer file: int32 longest piece, then per token f32 score, int32 length, bytes.
"""

from __future__ import annotations

import struct
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from kvant.errors import ModelError
from kvant.models.model import Model
from kvant.models.spm import SPACE
from kvant.models.tokenizer import TokenType
from kvant.models.weights import Array

__all__ = ["load_llama2c"]

_HEADER = struct.Struct("<7i")
_PIECE = struct.Struct("<fi")


def load_llama2c(path: str | PathLike[str], tokenizer: str | PathLike[str] | None = None) -> Model:
    """Load a llama2.c checkpoint.

    Parameters
    ----------
    path : checkpoint
    tokenizer : tokenizer file, optional
        Without it the model has no `tokenizer`.

    Raises
    ------
    ModelError
        A file is shorter than its header says, or its numbers make no sense.
    """
    blob = Path(path).read_bytes()
    start = _HEADER.size
    if len(blob) < start:
        raise ModelError(f"[load_llama2c] expected a header of {start} bytes, got {len(blob)}")
    width, ffn, layers, heads, kv_heads, vocab, context = _HEADER.unpack_from(blob)
    sizes = (width, ffn, layers, heads, kv_heads, abs(vocab), context)
    if min(sizes) < 1 or width % heads or heads % kv_heads:
        raise ModelError(f"[load_llama2c] expected positive sizes that divide, got {sizes}")
    values = np.frombuffer(blob, dtype="<f4", offset=start, count=(len(blob) - start) // 4)
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.context_length": context,
        "llama.embedding_length": width,
        "llama.feed_forward_length": ffn,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": abs(vocab),
    }
    if tokenizer is not None:
        metadata |= _tokenizer_metadata(Path(tokenizer).read_bytes(), abs(vocab))
    return Model(metadata, _tensors(values, sizes, own_head=vocab < 0))


def _tensors(values: Array, sizes: tuple[int, ...], own_head: bool) -> dict[str, Array]:
    width, ffn, layers, heads, kv_heads, vocab, context = sizes
    kv_width = width // heads * kv_heads
    per_layer = [
        ("attn_norm", (width,)),
        ("attn_q", (width, width)),
        ("attn_k", (kv_width, width)),
        ("attn_v", (kv_width, width)),
        ("attn_output", (width, width)),
        ("ffn_norm", (width,)),
        ("ffn_gate", (ffn, width)),
        ("ffn_down", (width, ffn)),
        ("ffn_up", (ffn, width)),
    ]
    at = 0

    def take(shape: tuple[int, ...]) -> Array:
        nonlocal at
        count = int(np.prod(shape))
        if at + count > len(values):
            raise ModelError(f"[load_llama2c] expected {at + count} values, got {len(values)}")
        at += count
        return values[at - count : at].reshape(shape)

    tensors = {"token_embd.weight": take((vocab, width))}
    for name, shape in per_layer:
        for layer, part in enumerate(take((layers, *shape))):
            tensors[f"blk.{layer}.{name}.weight"] = part
    tensors["output_norm.weight"] = take((width,))
    if own_head:
        take((context, width // heads))  # rotary tables that nothing reads any more
        tensors["output.weight"] = take((vocab, width))
    return tensors


def _tokenizer_metadata(data: bytes, vocab: int) -> dict[str, Any]:
    pieces: list[str] = []
    scores: list[float] = []
    at = 4
    for index in range(vocab):
        if at + _PIECE.size > len(data):
            raise ModelError(f"[load_llama2c] expected {vocab} tokens, got {index}")
        score, length = _PIECE.unpack_from(data, at)
        at += _PIECE.size
        if not 0 <= length <= len(data) - at:
            raise ModelError(f"[load_llama2c] expected a token inside the file, got {length} bytes")
        pieces.append(data[at : at + length].decode("utf-8", "replace").replace(" ", SPACE))
        scores.append(score)
        at += length
    # Ids are fixed by llama2.c: unknown, begin, end, then the 256 bytes.
    types = [TokenType.UNKNOWN] + 2 * [TokenType.CONTROL] + 256 * [TokenType.BYTE]
    types = (types + vocab * [TokenType.NORMAL])[:vocab]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
