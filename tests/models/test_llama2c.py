"""Checkpoints of llama2.c."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from random_models import random_model
from scoring import perplexity

from kvant.errors import ModelError
from kvant.models import Model, load_llama2c
from support import shared_path

_KINDS = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm")
_FEED_FORWARD = ("ffn_gate", "ffn_down", "ffn_up")


def checkpoint(model: Model, head: np.ndarray | None = None) -> bytes:
    """The bytes that llama2.c would store for a llama model with heads of width / count."""
    c = model.config
    sizes = (c.embedding_length, c.feed_forward_length, c.block_count, c.head_count)
    vocab = c.vocab_size if head is None else -c.vocab_size
    parts = [model.tensors["token_embd.weight"]]
    for kind in _KINDS + _FEED_FORWARD:
        parts += [model.tensors[f"blk.{i}.{kind}.weight"] for i in range(c.block_count)]
    parts += [model.tensors["output_norm.weight"], np.ones((c.context_length, c.key_length))]
    parts += [] if head is None else [head]
    header = struct.pack("<7i", *sizes, c.head_count_kv, vocab, c.context_length)
    return header + b"".join(np.asarray(p, dtype="<f4").tobytes() for p in parts)


@pytest.fixture
def model() -> Model:
    return random_model(
        "llama", attention__key_length=8, attention__value_length=8, rope__freq_base=10000.0
    )


def test_a_checkpoint_gives_the_model_it_was_made_of(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(checkpoint(model))
    read = load_llama2c(path)
    np.testing.assert_array_equal(read.logits([5, 6, 7]), model.logits([5, 6, 7]))
    with pytest.raises(ModelError, match=r"\[tokenizer\]"):
        _ = read.tokenizer


def test_a_negative_vocab_means_an_own_head(tmp_path: Path, model: Model) -> None:
    head = np.asarray(model.tensors["token_embd.weight"])[::-1]
    path = tmp_path / "model.bin"
    path.write_bytes(checkpoint(model, head))
    got = load_llama2c(path).logits([5, 6])
    np.testing.assert_allclose(got[:, ::-1], model.logits([5, 6]), atol=1e-5)


@pytest.mark.parametrize("keep", [0, 27, 28, 5000])
def test_a_short_checkpoint_is_refused(tmp_path: Path, model: Model, keep: int) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(checkpoint(model)[:keep])
    with pytest.raises(ModelError, match=r"\[load_llama2c\] expected"):
        load_llama2c(path)


@pytest.mark.parametrize("place", range(7))
def test_sizes_that_make_no_sense_are_refused(tmp_path: Path, model: Model, place: int) -> None:
    blob = bytearray(checkpoint(model))
    for size in (0, -3, 2**31 - 1):
        struct.pack_into("<i", blob, 4 * place, size)
        if place == 6 and size > 0:
            continue  # any context is possible where nothing of the file depends on it
        if place == 5 and size == -3:
            continue  # a negative vocab has a meaning
        (tmp_path / "model.bin").write_bytes(blob)
        with pytest.raises(ModelError, match=r"\[load_llama2c\] expected"):
            load_llama2c(tmp_path / "model.bin")


def test_a_broken_tokenizer_file_is_refused(tmp_path: Path, model: Model) -> None:
    path, words = tmp_path / "model.bin", tmp_path / "tok.bin"
    path.write_bytes(checkpoint(model))
    for data in (b"", b"\0" * 40, struct.pack("<ifi", 3, 0.0, -5), struct.pack("<ifi", 3, 0.0, 99)):
        words.write_bytes(data)
        with pytest.raises(ModelError, match=r"\[load_llama2c\] expected"):
            load_llama2c(path, words)


def test_the_trained_checkpoint_knows_its_stories() -> None:
    folder = shared_path("data/stories260K")
    model = load_llama2c(folder / "stories260K.bin", folder / "tok512.bin")
    text = shared_path("data/text/tinystories.txt").read_text(encoding="utf-8")
    start = text.index("Once upon a time")
    ids = model.tokenizer.encode(text[start : start + 20_000])
    # Windows cut stories in the middle, so this is above what the model reaches from a beginning.
    assert perplexity(model, ids, window=256, bos=1) == pytest.approx(STORIES, rel=2e-4)
    begun = model.tokenizer.decode(model.generate([1], 30))
    assert begun.startswith("Once upon a time, there was a little girl named Lily.")


STORIES = 4.000975
