"""What each layer keeps of the tokens before, read from GGUF metadata.

Architectures that say nothing about their pattern of layers in the file stand in the tables here,
as they do in llama.cpp's source.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kvant.errors import ModelError
from kvant.plan.keys import MAX_LAYERS, Keys

__all__ = ["Kind", "Layer", "layers_of", "notes_of", "trunk_layers"]

Kind = Literal["full", "sliding", "chunked", "mla", "shared", "recurrent"]


@dataclass(frozen=True)
class Layer:
    """One layer's memory of a sequence.

    Attributes
    ----------
    kind
        `full` keeps every token, `sliding` and `chunked` the last `window`, `mla` one latent row a
        token, `shared` reads another layer's cache, `recurrent` has a state of fixed size.
    heads
        Heads of keys and values.
    key, value
        Elements of a head's key and value; a latent row serves as both and has `value` 0.
    window
        Tokens, of `sliding` and `chunked`, and of what `shared` reads.
    state
        f32 elements for each sequence, of `recurrent`.
    row, view
        Where one row of `row` elements can be key and value at once, the value being its first
        `view`: of `mla`, and of layers whose values are their keys before factors and rope. Else 0.
    """

    kind: Kind
    heads: int = 0
    key: int = 0
    value: int = 0
    window: int = 0
    state: int = 0
    row: int = 0
    view: int = 0


# Of so many layers the last sees everything, the others a window where there is one; 0: none does.
_PERIODS = {"llama": 0, "gemma2": 2, "gemma3": 6, "gpt-oss": 2, "llama4": 4, "cohere2": 4}
_CHUNK = 8192  # llama4, whose files may not say it
# Of keys that are values times factors, the share of elements that rope turns, as one of so many.
_TURNED = {"gemma4": 4}
# Of so many layers the last has attention, the others a recurrent state.
_RECURRENT_PERIODS = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}
# Layers with attention and a state side by side, which no key tells.
_BOTH_AT_ONCE = ("falcon-h1",)


def trunk_layers(keys: Keys) -> int:
    """Layers that every token passes: all but those that only guess tokens ahead."""
    total = keys.size("block_count", most=MAX_LAYERS)
    ahead = keys.count("nextn_predict_layers", most=MAX_LAYERS)
    if ahead >= total:
        raise keys.wrong("nextn_predict_layers", f"fewer than {total}", ahead)
    return total - ahead


def layers_of(metadata: Mapping[str, Any], tensors: Collection[str] = ()) -> tuple[Layer, ...]:
    """The layers of a model, first to last.

    Parameters
    ----------
    metadata : mapping
        GGUF keys.
    tensors : collection of str
        Names: layers with keys and without values of their own take the keys for both.

    Raises
    ------
    ModelError
        A key is missing or makes no sense, or the architecture's memory is not known.

    >>> layers_of({
    ...     "general.architecture": "llama", "llama.block_count": 1,
    ...     "llama.embedding_length": 64, "llama.attention.head_count": 4,
    ... })
    (Layer(kind='full', heads=4, key=16, value=16, window=0, state=0, row=0, view=0),)
    """
    arch = str(metadata.get("general.architecture", ""))
    if arch in _BOTH_AT_ONCE:
        raise ModelError(f"[plan] expected layers of one kind each, got {arch}")
    keys = Keys(metadata, f"{arch}.")
    total = keys.size("block_count", most=MAX_LAYERS)
    count = trunk_layers(keys)
    queries = keys.counts("attention.head_count", total)
    heads = queries
    if keys.has("attention.head_count_kv"):
        heads = keys.counts("attention.head_count_kv", total)
    size = keys.size("embedding_length") // max(1, *queries)
    key = keys.count("attention.key_length", size)
    value = keys.count("attention.value_length", size)
    window_key = keys.count("attention.key_length_swa", key)
    window_value = keys.count("attention.value_length_swa", value)
    latent = keys.has("attention.kv_lora_rank") and keys.has("attention.key_length_mla")
    # Heads that choose tokens keep a key of their own beside the latent row.
    chooser = keys.count("attention.indexer.key_length")
    own = count - keys.count("attention.shared_kv_layers", most=count)
    narrow, window = _windows(keys, arch, total)
    recurrent, state = _recurrent(keys, arch, total, heads)
    kind: Kind = "chunked" if arch == "llama4" else "sliding"
    found = []
    for index in range(count):
        if recurrent[index]:
            found.append(Layer("recurrent", state=state))
        elif index >= own:
            found.append(Layer("shared", window=window if narrow[index] else 0))
        elif narrow[index]:
            found.append(Layer(kind, heads[index], window_key, window_value, window))
        elif latent:
            view = keys.size("attention.kv_lora_rank", most=key)
            found.append(Layer("mla", heads[index], key + chooser, row=key, view=view))
        elif arch in _TURNED and _keys_serve(index, tensors):
            row = key + key // _TURNED[arch]
            found.append(Layer("full", heads[index], key, value, row=row, view=key))
        else:
            found.append(Layer("full", heads[index], key, value))
    return tuple(found)


def _keys_serve(index: int, tensors: Collection[str]) -> bool:
    key, value = (f"blk.{index}.attn_{name}.weight" for name in "kv")
    return key in tensors and value not in tensors


def notes_of(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """What `layers_of` had to leave open."""
    arch = str(metadata.get("general.architecture", ""))
    keys = Keys(metadata, f"{arch}.")
    window = keys.count("attention.sliding_window")
    if window and arch not in _PERIODS and not keys.has("attention.sliding_window_pattern"):
        return (
            f"the file has a window of {window} tokens but does not say for which layers: "
            "all are counted with every token",
        )
    return ()


def _windows(keys: Keys, arch: str, total: int) -> tuple[tuple[bool, ...], int]:
    """Which layers see a window only, and its tokens."""
    nothing = (False,) * total
    if arch == "llama4":
        window = keys.count("attention.chunk_size", _CHUNK)
    else:
        window = keys.count("attention.sliding_window")
    if not window:
        return nothing, 0
    pattern = "attention.sliding_window_pattern"
    if keys.is_list(pattern):
        return keys.flags(pattern, total), window
    if not keys.has(pattern) and arch not in _PERIODS:
        return nothing, 0
    period = keys.count(pattern, _PERIODS.get(arch, 0))
    return tuple(not period or (index + 1) % period != 0 for index in range(total)), window


def _recurrent(
    keys: Keys, arch: str, total: int, heads: tuple[int, ...]
) -> tuple[tuple[bool, ...], int]:
    """Which layers are recurrent, and the f32 elements of their state.

    The state is a matrix for each head, and the last inputs of a short convolution. Mamba and gated
    delta nets differ in what they do with it, not in its size.
    """
    if not keys.has("ssm.state_size"):
        return (False,) * total, 0
    inner, size = keys.size("ssm.inner_size"), keys.size("ssm.state_size")
    groups, kernel = keys.count("ssm.group_count"), keys.size("ssm.conv_kernel")
    state = size * inner + (kernel - 1) * (inner + 2 * groups * size)
    if keys.has("attention.recurrent_layers"):
        return keys.flags("attention.recurrent_layers", total), state
    if arch in _RECURRENT_PERIODS:
        period = keys.size("full_attention_interval", _RECURRENT_PERIODS[arch])
        return tuple((index + 1) % period != 0 for index in range(total)), state
    return tuple(count == 0 for count in heads), state
