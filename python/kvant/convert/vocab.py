"""`tokenizer.json` as the GGUF keys of a tokenizer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from kvant.convert.source import read_json
from kvant.errors import ModelError
from kvant.models.bpe import PATTERNS
from kvant.models.tokenizer import TokenType

__all__ = ["tokenizer_metadata"]

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def tokenizer_metadata(
    folder: Path, config: dict[str, Any], vocab_size: int, add_bos: bool | None
) -> dict[str, Any]:
    """Keys of the tokenizer in `folder`.

    Parameters
    ----------
    folder : with tokenizer.json, and tokenizer_config.json if there is one
    config : config.json
    vocab_size : rows of the embedding; ids without a token are filled up
    add_bos : whether texts begin with BOS; None takes what the folder says, if it says
    """
    source = read_json(folder / "tokenizer.json")
    settings = read_json(folder / "tokenizer_config.json", required=False)
    model = source.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise ModelError(f"[convert] expected a BPE model in tokenizer.json, got {kind}")
    added = source.get("added_tokens")
    tokens, types = _tokens(model, added if isinstance(added, list) else [], vocab_size)
    merges = _merges(model)
    ids = {token: i for i, token in enumerate(tokens)}
    keys: dict[str, Any] = {}
    if model.get("byte_fallback"):
        keys["tokenizer.ggml.model"] = "llama"
        keys["tokenizer.ggml.pre"] = "default"
        keys["tokenizer.ggml.tokens"] = tokens
        keys["tokenizer.ggml.scores"] = _scores(tokens, types, merges)
        keys["tokenizer.ggml.token_type"] = np.array(types, dtype=np.int32)
        keys["tokenizer.ggml.add_space_prefix"] = _has_space_prefix(source)
    else:
        keys["tokenizer.ggml.model"] = "gpt2"
        keys["tokenizer.ggml.pre"] = _word_pattern(source.get("pre_tokenizer"))
        keys["tokenizer.ggml.tokens"] = tokens
        keys["tokenizer.ggml.token_type"] = np.array(types, dtype=np.int32)
        keys["tokenizer.ggml.merges"] = [" ".join(pair) for pair in merges]
    for role in ("bos", "eos", "padding", "unknown"):
        found = _special_id(role, config, settings, model, ids)
        if found is not None:
            keys[f"tokenizer.ggml.{role}_token_id"] = np.uint32(found)
    bos = keys.get("tokenizer.ggml.bos_token_id")
    first = add_bos if add_bos is not None else _adds_bos(source, settings, tokens, bos)
    if first is not None:
        keys["tokenizer.ggml.add_bos_token"] = first
    if isinstance(settings.get("chat_template"), str):
        keys["tokenizer.chat_template"] = settings["chat_template"]
    return keys


def _tokens(
    model: dict[str, Any], added: list[Any], vocab_size: int
) -> tuple[list[str], list[int]]:
    """Token strings and their types in order of id."""
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise ModelError("[convert] expected a vocab object in tokenizer.json, got none")
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [TokenType.UNUSED] * vocab_size
    fallback = bool(model.get("byte_fallback"))

    def put(token: Any, index: Any, kind: int) -> None:
        if not isinstance(token, str) or not isinstance(index, int):
            raise ModelError(f"[convert] expected tokens with ids, got {token!r}: {index!r}")
        if not 0 <= index < vocab_size:
            raise ModelError(f"[convert] expected token ids below {vocab_size}, got {index}")
        tokens[index], types[index] = token, kind

    for token, index in vocab.items():
        is_byte = fallback and _BYTE.fullmatch(token)
        is_unknown = fallback and token == model.get("unk_token")
        special = TokenType.UNKNOWN if is_unknown else TokenType.NORMAL
        put(token, index, TokenType.BYTE if is_byte else special)
    for entry in added:
        if not isinstance(entry, dict):
            raise ModelError(f"[convert] expected added tokens as objects, got {entry!r}")
        token = entry.get("content")
        if fallback and token == model.get("unk_token"):
            continue
        kind = TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED
        put(token, entry.get("id"), kind)
    return tokens, types


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs in order of rank; written as "a b" by older versions and as ["a", "b"] by newer."""
    merges = model.get("merges")
    pairs = []
    for merge in merges if isinstance(merges, list) else [None]:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(isinstance(p, str) and p and " " not in p for p in parts)
        ):
            raise ModelError(f"[convert] expected merges of two parts, got {merge!r}")
        pairs.append((parts[0], parts[1]))
    return pairs


def _scores(tokens: list[str], types: list[int], merges: list[tuple[str, str]]) -> Any:
    """The earlier a merge makes a token, the higher its score: merging by score then agrees."""
    rank: dict[str, int] = {}
    for i, pair in enumerate(merges):
        rank.setdefault("".join(pair), i)
    last = len(merges)
    scores = [
        -float(rank.get(token, last)) if kind == TokenType.NORMAL else 0.0
        for token, kind in zip(tokens, types, strict=True)
    ]
    return np.array(scores, dtype=np.float32)


def _parts(node: Any, key: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as a flat list: itself, or what its sequence holds."""
    if not isinstance(node, dict):
        return []
    inner = node.get(key)
    if node.get("type") == "Sequence" and isinstance(inner, list):
        return [part for item in inner for part in _parts(item, key)]
    return [node]


def _has_space_prefix(source: dict[str, Any]) -> bool:
    prepends = any(
        part.get("type") == "Prepend" for part in _parts(source.get("normalizer"), "normalizers")
    )
    return prepends or any(
        part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never"
        for part in _parts(source.get("pre_tokenizer"), "pretokenizers")
    )


def _word_pattern(pre_tokenizer: Any) -> str:
    """The GGUF name of the word pattern; ModelError if it has none that we know."""
    parts = _parts(pre_tokenizer, "pretokenizers")
    levels = [part for part in parts if part.get("type") == "ByteLevel"]
    patterns = []
    for part in parts:
        pattern = part.get("pattern")
        if part.get("type") == "Split" and isinstance(pattern, dict):
            patterns.append(pattern.get("Regex"))
    whole = len(levels) == 1 and len(parts) == 1 + len(patterns)
    if whole and not levels[0].get("add_prefix_space", True):
        if levels[0].get("use_regex", True) and not patterns:
            return "gpt-2"
        if not levels[0].get("use_regex", True):
            for name, known in PATTERNS.items():
                if list(known) == patterns:
                    return name
    raise ModelError(
        f"[convert] expected the word pattern of {', '.join(PATTERNS)} in tokenizer.json, "
        f"got {patterns or [part.get('type') for part in parts]}"
    )


def _special_id(
    role: str,
    config: dict[str, Any],
    settings: dict[str, Any],
    model: dict[str, Any],
    ids: dict[str, int],
) -> int | None:
    """Id of a special token: by name from the tokenizer's settings, else by id from config.json."""
    key = {"padding": "pad", "unknown": "unk"}.get(role, role)
    named = settings.get(f"{key}_token")
    if isinstance(named, dict):
        named = named.get("content")
    if named is None and role == "unknown":
        named = model.get("unk_token")
    if isinstance(named, str) and named in ids:
        return ids[named]
    value = config.get(f"{key}_token_id")
    if isinstance(value, list) and value:
        value = value[0]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < len(ids):
        raise ModelError(f"[convert] expected {key}_token_id below {len(ids)}, got {value!r}")
    return value if value >= 0 else None


def _adds_bos(
    source: dict[str, Any], settings: dict[str, Any], tokens: list[str], bos: Any
) -> bool | None:
    """Whether the folder puts BOS in front: by its template, else by its settings, else unknown."""
    for part in _parts(source.get("post_processor"), "processors"):
        if part.get("type") == "TemplateProcessing":
            return bos is not None and _starts_with(part.get("single"), tokens[int(bos)])
    value = settings.get("add_bos_token")
    return value if isinstance(value, bool) else None


def _starts_with(template: Any, token: str) -> bool:
    """Whether the first item of a template is a special token of that name."""
    first = template[0] if isinstance(template, list) and template else None
    special = first.get("SpecialToken") if isinstance(first, dict) else None
    return isinstance(special, dict) and special.get("id") == token
