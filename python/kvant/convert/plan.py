"""Which Hugging Face tensors make which GGUF tensor, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    unused = set(stored) - {name for names, _ in wanted.values() for name in names}
    # Old checkpoints hold the rope frequencies, tied ones sometimes a copy of the embedding.
    unused = {name for name in unused if not name.endswith("rotary_emb.inv_freq")}
    unused -= {"lm_head.weight"} if tied else set()
    if unused:
        raise ModelError(f"[convert] expected only known tensors, got {min(unused)!r}")
    sources = {}
    for name, (parts, shape) in wanted.items():
        tensors = [stored[part] for part in parts]
        target = dtype if _is_matrix(name, shape) else "f32"
        arrange = _arrangement(config, name)
        sources[name] = TensorSource(target, shape, partial(_pieces, tensors, target, arrange))
    return sources


def _wanted(
    config: ModelConfig, stored: Mapping[str, Stored], tied: bool
) -> dict[str, tuple[list[str], tuple[int, ...]]]:
    """GGUF name -> (names in the folder, GGUF shape), after checking that they are there."""
    # A config may claim any number of parts; believe it only as far as there are tensors.
    parts_claimed = config.block_count * max(config.expert_count, 1)
    if parts_claimed > len(stored):
        raise ModelError(
            f"[convert] expected {parts_claimed} layers or experts, got {len(stored)} tensors"
        )
    required, optional = required_shapes(config), optional_shapes(config)
    order: dict[str, tuple[int, ...]] = {}
    for name, shape in required.items():
        order[name] = shape
        bias = name.removesuffix(".weight") + ".bias"
        if bias in optional and _names(bias, 0)[0] in stored:
            order[bias] = optional[bias]
        if name == "output_norm.weight" and not tied:
            order["output.weight"] = optional["output.weight"]
    wanted = {}
    for name, shape in order.items():
        parts = _names(name, config.expert_count)
        each = shape[1:] if len(parts) > 1 or "_exps." in name else shape
        for part in parts:
            if part not in stored:
                raise ModelError(f"[convert] expected the tensor {part!r}, got none")
            if stored[part].shape != each:
                got = stored[part].shape
                raise ModelError(f"[convert] expected shape {each} for {part!r}, got {got}")
        wanted[name] = (parts, shape)
    return wanted


def _names(name: str, experts: int) -> list[str]:
    """Hugging Face names of what a GGUF tensor is made of."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return [f"{_TOP[stem]}.{kind}"]
    _, index, part = stem.split(".")
    pattern = f"model.layers.{index}.{_LAYER[part]}.{kind}"
    return [pattern.format(e) for e in range(experts)] if "{}" in pattern else [pattern]


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and ".ffn_gate_inp." not in name


def _arrangement(config: ModelConfig, name: str) -> Callable[[Bytes], Bytes] | None:
    """How the rows of a tensor are reordered, if they are."""
    if config.architecture != "llama":
        return None
    if ".attn_q." in name:
        return partial(_interleave, heads=config.head_count)
    if ".attn_k." in name:
        return partial(_interleave, heads=config.head_count_kv)
    return None


def _interleave(rows: Bytes, heads: int) -> Bytes:
    """Rows (i, i + D/2) of each head become neighbours: llama files pair (2i, 2i + 1) in rope."""
    halves = rows.reshape(heads, 2, -1, rows.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _pieces(
    tensors: list[Stored], target: str, arrange: Callable[[Bytes], Bytes] | None
) -> Iterator[Bytes]:
    for tensor in tensors:
        data = convert_bytes(tensor.data, tensor.dtype, target)
        yield arrange(data.reshape(tensor.shape[0], -1)) if arrange else data
