"""Which Hugging Face tensors make which GGUF tensor, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from kvant.convert.dtypes import Bytes, convert_bytes
from kvant.convert.source import Stored
from kvant.errors import ModelError
from kvant.gguf import TensorSource
from kvant.models.architectures import optional_shapes, required_shapes
from kvant.models.config import ModelConfig

__all__ = ["file_dtype", "plan_tensors"]

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
# What other architectures call it.
_OTHERWISE = {
    "gemma3": {
        "ffn_norm": "pre_feedforward_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    "gpt-oss": {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_gate_inp": "mlp.router",
        "ffn_gate_exps": "mlp.experts.gate_up_proj",
        "ffn_up_exps": "mlp.experts.gate_up_proj",
        "ffn_down_exps": "mlp.experts.down_proj",
    },
}

Arrangement = Callable[[Bytes], Bytes]
"""Takes the elements of a tensor as [..., bytes of one] and gives them in the order of the file."""


@dataclass(frozen=True)
class _Parts:
    """What a GGUF tensor is made of: tensors of the folder, each of a shape, and how."""

    names: list[str]
    each: tuple[int, ...]
    arrange: Arrangement | None = None


def file_dtype(stored: Mapping[str, Stored]) -> str:
    """The type of the embedding, which stands for the type of the folder."""
    embedding = stored.get("model.embed_tokens.weight")
    if embedding is None:
        raise ModelError("[convert] expected the tensor 'model.embed_tokens.weight', got none")
    return embedding.dtype


def plan_tensors(
    config: ModelConfig, stored: Mapping[str, Stored], dtype: str, tied: bool | None
) -> dict[str, TensorSource]:
    """Sources of all GGUF tensors but the rope factors, in the order of the file.

    Parameters
    ----------
    config : of the GGUF file
    stored : tensors of the folder
    dtype : type of the matrices; norms, biases and routers are always f32
    tied : whether the head is the embedding; None: if the folder has no head

    Raises
    ------
    ModelError
        A tensor is missing, has another shape than config.json says, or is unknown.
    """
    tied = "lm_head.weight" not in stored if tied is None else tied
    wanted = _wanted(config, stored, tied)
    unused = set(stored) - {name for parts, _ in wanted.values() for name in parts.names}
    # Old checkpoints hold the rope frequencies, tied ones sometimes a copy of the embedding.
    unused = {name for name in unused if not name.endswith("rotary_emb.inv_freq")}
    unused -= {"lm_head.weight"} if tied else set()
    if unused:
        raise ModelError(f"[convert] expected only known tensors, got {min(unused)!r}")
    sources = {}
    for name, (parts, shape) in wanted.items():
        tensors = [stored[part] for part in parts.names]
        target = dtype if _is_matrix(name, shape) else "f32"
        pieces = partial(_pieces, tensors, target, parts.arrange)
        sources[name] = TensorSource(target, shape, pieces)
    return sources


def _wanted(
    config: ModelConfig, stored: Mapping[str, Stored], tied: bool
) -> dict[str, tuple[_Parts, tuple[int, ...]]]:
    """GGUF name -> (what it is made of, GGUF shape), after checking that it is there."""
    # A config may claim any number of parts; believe it only as far as there are tensors.
    stacked = config.architecture == "gpt-oss"
    parts_claimed = config.block_count * (1 if stacked else max(config.expert_count, 1))
    if parts_claimed > len(stored):
        raise ModelError(
            f"[convert] expected {parts_claimed} layers or experts, got {len(stored)} tensors"
        )
    required, optional = required_shapes(config), optional_shapes(config)
    order: dict[str, tuple[int, ...]] = {}
    for name, shape in required.items():
        order[name] = shape
        bias = name.removesuffix(".weight") + ".bias"
        if bias in optional and _parts(config, bias, optional[bias]).names[0] in stored:
            order[bias] = optional[bias]
        if name == "output_norm.weight" and not tied:
            order["output.weight"] = optional["output.weight"]
    wanted = {}
    for name, shape in order.items():
        parts = _parts(config, name, shape)
        for part in parts.names:
            if part not in stored:
                raise ModelError(f"[convert] expected the tensor {part!r}, got none")
            if stored[part].shape != parts.each:
                got = stored[part].shape
                raise ModelError(f"[convert] expected shape {parts.each} for {part!r}, got {got}")
        wanted[name] = (parts, shape)
    return wanted


def _parts(config: ModelConfig, name: str, shape: tuple[int, ...]) -> _Parts:
    """What a GGUF tensor is made of."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        arrange = _one_more if config.architecture == "gemma3" and stem == "output_norm" else None
        return _Parts([f"{_TOP[stem]}.{kind}"], shape, arrange)
    _, index, part = stem.split(".")
    layer = f"model.layers.{index}"
    if part == "attn_sinks":
        return _Parts([f"{layer}.self_attn.sinks"], shape)
    pattern = (_LAYER | _OTHERWISE.get(config.architecture, {}))[part]
    if config.architecture == "gpt-oss" and part.endswith("_exps"):
        return _stacked(f"{layer}.{pattern}", part, kind, shape)
    full = f"{layer}.{pattern}.{kind}"
    if "{}" in full:
        return _Parts([full.format(e) for e in range(config.expert_count)], shape[1:])
    return _Parts([full], shape, _arrangement(config, part))


def _stacked(name: str, part: str, kind: str, shape: tuple[int, ...]) -> _Parts:
    """Experts of gpt-oss: matrices [k, n], gate and up in turns along n."""
    each = shape if kind == "bias" else (shape[0], shape[2], shape[1])
    if part != "ffn_down_exps":
        each = (*each[:-1], 2 * each[-1])
    first = {"ffn_gate_exps": 0, "ffn_up_exps": 1}.get(part)

    def arrange(elements: Bytes) -> Bytes:
        columns = elements if first is None else elements[..., first::2, :]
        return columns if kind == "bias" else columns.swapaxes(1, 2)

    return _Parts([f"{name}_bias" if kind == "bias" else name], each, arrange)


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and name.endswith(".weight") and ".ffn_gate_inp." not in name


def _arrangement(config: ModelConfig, part: str) -> Arrangement | None:
    """How the elements of a tensor are changed, if they are."""
    if config.architecture == "llama" and part == "attn_q":
        return partial(_interleave, heads=config.head_count)
    if config.architecture == "llama" and part == "attn_k":
        return partial(_interleave, heads=config.head_count_kv)
    if config.architecture == "gemma3" and part.endswith("_norm"):
        return _one_more
    return None


def _interleave(elements: Bytes, heads: int) -> Bytes:
    """Rows (i, i + D/2) of each head become neighbours: llama files pair (2i, 2i + 1) in rope."""
    halves = elements.reshape(heads, 2, -1, *elements.shape[1:])
    return halves.swapaxes(1, 2).reshape(elements.shape)


def _one_more(elements: Bytes) -> Bytes:
    """Gemma multiplies by one more than the folder says; norms are f32 by now."""
    return (elements.view(np.float32) + np.float32(1)).view(np.uint8)


def _pieces(tensors: list[Stored], target: str, arrange: Arrangement | None) -> Iterator[Bytes]:
    for tensor in tensors:
        data = convert_bytes(tensor.data, tensor.dtype, target)
        if arrange is not None:
            data = np.ascontiguousarray(arrange(data.reshape(*tensor.shape, -1)))
        yield data
