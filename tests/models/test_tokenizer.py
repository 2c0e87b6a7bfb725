"""Tokenizers built from GGUF metadata, against their originals and against plain algorithms."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import byte_tokenizer
from tokenizers import Regex, Tokenizer, pre_tokenizers

from kvant import gguf
from kvant.errors import ModelError
from kvant.models import bpe
from kvant.models.spm import SPACE
from kvant.models.tokenizer import TokenType, read_tokenizer
from support import shared_path


def byte_metadata(pre: str = "gpt-2") -> dict[str, Any]:
    model = json.loads(byte_tokenizer().to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 1),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    }


def spm_metadata() -> dict[str, Any]:
    words = [
        "\u2581",
        "a",
        "b",
        "n",
        "\u00e9",
        "an",
        "ana",
        "na",
        "\u2581b",
        "ban",
        "\u2581ba",
        "ab",
    ]
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *words]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259
        + [-float(i) for i in (9, 9, 9, 9, 9, 3, 1, 2, 4, 0, 5, 6)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


BYTE_LEVEL = read_tokenizer(byte_metadata())
BY_SCORE = read_tokenizer(spm_metadata())


@given(st.text())
def test_byte_level_agrees_with_its_original_and_decodes_back(text: str) -> None:
    ids = BYTE_LEVEL.encode(text)
    assert ids == byte_tokenizer().encode(text).ids
    assert BYTE_LEVEL.decode(ids) == text.replace("<|end|>", "")


@pytest.mark.parametrize("pre", [*bpe.PATTERNS, "llama3", "deepseek-r1-qwen"])
@given(st.text(alphabet=st.sampled_from("ab Z'sRE19.,!?\n\t \u00e9\u4e2d"), max_size=30))
def test_every_word_pattern_loses_nothing(pre: str, text: str) -> None:
    tokenizer = read_tokenizer(byte_metadata(pre))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["It", "'s", " 12345", ",", " DON", "'", "T", " ", " go", "!!", "\n\n", " x"]),
        (
            "qwen2",
            [
                "It",
                "'s",
                " ",
                "1",
                "2",
                "3",
                "4",
                "5",
                ",",
                " DON",
                "'T",
                " ",
                " go",
                "!!\n\n",
                " x",
            ],
        ),
        (
            "llama-bpe",
            ["It", "'s", " ", "123", "45", ",", " DON", "'T", " ", " go", "!!\n\n", " x"],
        ),
        (
            "default",
            [
                "It",
                "'",
                "s",
                " ",
                "123",
                "45",
                ",",
                " DON",
                "'",
                "T",
                " ",
                " go",
                "!!",
                "\n\n",
                " x",
            ],
        ),
    ],
)
def test_words_are_cut_as_the_name_says(pre: str, words: list[str]) -> None:
    cuts = [pre_tokenizers.Split(Regex(p), "isolated") for p in bpe.PATTERNS[pre]]
    got = pre_tokenizers.Sequence(cuts).pre_tokenize_str("It's 12345, DON'T  go!!\n\n x")
    assert [word for word, _ in got] == words


def test_control_tokens_count_as_such_and_are_not_shown() -> None:
    ids = BYTE_LEVEL.encode("a<|end|>b", bos=True)
    assert ids[0] == ids[2] == BYTE_LEVEL.bos_id == BYTE_LEVEL.eos_id == 0
    assert BYTE_LEVEL.decode(ids) == "ab"
    assert not BYTE_LEVEL.add_bos
    assert BYTE_LEVEL.vocab_size == len(byte_metadata()["tokenizer.ggml.tokens"])


def test_llama_takes_a_whole_word_that_no_merge_makes() -> None:
    for pre, whole in (("llama-bpe", True), ("gpt-2", False)):
        keys = byte_metadata(pre)
        index = len(keys["tokenizer.ggml.tokens"])
        keys["tokenizer.ggml.tokens"] = [*keys["tokenizer.ggml.tokens"], "zebra"]
        keys["tokenizer.ggml.token_type"] = [*keys["tokenizer.ggml.token_type"], TokenType.NORMAL]
        assert (read_tokenizer(keys).encode("zebra") == [index]) is whole


def test_user_tokens_are_kept_whole_and_shown() -> None:
    keys = byte_metadata()
    index = len(keys["tokenizer.ggml.tokens"])
    keys["tokenizer.ggml.tokens"] = [*keys["tokenizer.ggml.tokens"], "<think>"]
    keys["tokenizer.ggml.token_type"] = [*keys["tokenizer.ggml.token_type"], TokenType.USER_DEFINED]
    tokenizer = read_tokenizer(keys)
    assert tokenizer.encode("a<think>")[1:] == [index]
    assert tokenizer.decode([index]) == "<think>"


@given(st.text(alphabet="ban \u00e9\u4e2d"))
def test_merging_by_score_agrees_with_the_plain_algorithm(text: str) -> None:
    assert BY_SCORE.encode(text) == _join_best_first(spm_metadata(), text)
    assert BY_SCORE.decode(BY_SCORE.encode(text)) == text


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert BY_SCORE.decode([3 + 0xFF, 260]) == "\ufffda"
    keys = spm_metadata() | {"tokenizer.ggml.add_space_prefix": False}
    assert read_tokenizer(keys).encode("ban") == [268]
    assert BY_SCORE.encode("ban", bos=True) == [1, 259, 268]
    assert BY_SCORE.add_bos


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "of gpt2 or llama, got bert"),
        ({"tokenizer.ggml.model": None}, "'tokenizer.ggml.tokens' in the file"),
        ({"tokenizer.ggml.pre": "viking"}, "got viking"),
        ({"tokenizer.ggml.token_type": [1]}, "token types, got 1"),
        ({"tokenizer.ggml.merges": None}, "array 'tokenizer.ggml.merges'"),
        ({"tokenizer.ggml.tokens": 7}, "array 'tokenizer.ggml.tokens'"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "array 'tokenizer.ggml.tokens'"),
        ({"tokenizer.ggml.eos_token_id": "0"}, "eos_token_id below"),
        ({"tokenizer.ggml.merges": ["ab"]}, "two parts in a merge, got 'ab'"),
        ({"tokenizer.ggml.merges": ["a \u4e2d"]}, "merges of known tokens"),
        ({"tokenizer.ggml.bos_token_id": 4000}, "bos_token_id below"),
        ({"tokenizer.ggml.model": "llama"}, "token scores, got 0"),
    ],
)
def test_a_broken_tokenizer_is_refused(changes: dict[str, Any], message: str) -> None:
    keys = byte_metadata() | changes
    keys = {name: value for name, value in keys.items() if value is not None}
    with pytest.raises(ModelError, match=r"\[tokenizer\] expected .*" + message):
        read_tokenizer(keys)


@pytest.mark.parametrize("keys", [byte_metadata(), spm_metadata()])
def test_repeated_tokens_are_refused(keys: dict[str, Any]) -> None:
    keys["tokenizer.ggml.tokens"] = [*keys["tokenizer.ggml.tokens"][:-1], "a"]
    with pytest.raises(ModelError, match="distinct tokens"):
        read_tokenizer(keys)


@pytest.mark.parametrize("model", ["tiny-moe", "novels-dense", "novels-moe"])
def test_shared_models_agree_with_their_tokenizer_json(model: str) -> None:
    folder = shared_path(f"models/{model}")
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with gguf.open(folder / "model.gguf") as file:
        tokenizer = read_tokenizer(file.metadata)
    text = shared_path("data/text/wikitext2_valid.txt").read_text(encoding="utf-8")[:100_000]
    ids = tokenizer.encode(text)
    assert ids == original.encode(text).ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("gpt-2", "Hello world, it's 2026!", [15496, 995, 11, 340, 338, 1160, 2075, 0]),
        (
            "llama-spm",
            "Hello world, it's 2026!",
            [15043, 3186, 29892, 372, 29915, 29879, 29871, 29906, 29900, 29906, 29953, 29991],
        ),
    ],
)
def test_vocabularies_in_the_wild(name: str, text: str, ids: list[int]) -> None:
    with gguf.open(shared_path(f"data/gguf_vocab/ggml-vocab-{name}.gguf")) as file:
        tokenizer = read_tokenizer(file.metadata)
    assert tokenizer.encode(text) == ids
    sample = "Na\u00efve caf\u00e9 \U0001f999\u4e2d\u6587\n\n  two spaces"
    assert tokenizer.decode(tokenizer.encode(sample)) == sample


def _join_best_first(keys: dict[str, Any], text: str) -> list[int]:
    """What SentencePiece does: join the best-scored neighbours, the leftmost first, until none."""
    tokens, scores = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"]
    index = {token: i for i, token in enumerate(tokens)}
    symbols = list((" " + text).replace(" ", SPACE)) if text else []
    while True:
        joins = [
            (-scores[index[a + b]], i)
            for i, (a, b) in enumerate(pairwise(symbols))
            if a + b in index
        ]
        if not joins:
            break
        at = min(joins)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    ids = []
    for symbol in symbols:
        raw = symbol.encode()
        ids += [index[symbol]] if symbol in index else [index[f"<0x{b:02X}>"] for b in raw]
    return ids
