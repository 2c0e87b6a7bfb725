"""A random model of two layers, small but with rows of 256 so that every format fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kvant import gguf
from kvant.qtensor import QTensor

WIDTH = 256
CONTEXT = 64
VOCAB = 258


def alphabet() -> list[str]:
    """A token that begins and ends texts, the 256 bytes in the letters of GPT-2, and one merge."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain}
    letters |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return ["<|end|>", *(letters[byte] for byte in range(256)), "th"]


def metadata(experts: int) -> dict[str, Any]:
    arch = "qwen3moe" if experts else "llama"
    keys: dict[str, Any] = {
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "block_count": 2,
        "feed_forward_length": WIDTH,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "rope.freq_base": np.float32(1e4),
        "vocab_size": VOCAB,
    }
    if experts:
        keys |= {
            "expert_count": experts,
            "expert_used_count": 2,
            "expert_feed_forward_length": WIDTH,
        }
    tokens = alphabet()
    return {
        "general.architecture": arch,
        "general.name": "tiny",
        "general.file_type": 1,
        **{f"{arch}.{key}": value for key, value in keys.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([3] + [1] * (VOCAB - 1), np.int32),
        "tokenizer.ggml.merges": ["t h"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


def shapes(experts: int) -> dict[str, tuple[int, ...]]:
    """Tensors in an order of their own, not llama.cpp's."""
    kv = WIDTH // 2
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCAB, WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    if experts:
        found["output.weight"] = (VOCAB, WIDTH)
    for layer in (1, 0):
        part = {
            "attn_norm": (WIDTH,),
            "ffn_norm": (WIDTH,),
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (kv, WIDTH),
            "attn_v": (kv, WIDTH),
            "attn_output": (WIDTH, WIDTH),
        }
        stack = (experts,) if experts else ()
        end = "_exps" if experts else ""
        part |= {f"ffn_{kind}{end}": (*stack, WIDTH, WIDTH) for kind in ("gate", "up", "down")}
        if experts:
            part |= {"attn_q_norm": (64,), "attn_k_norm": (64,), "ffn_gate_inp": (experts, WIDTH)}
        found |= {f"blk.{layer}.{name}.weight": shape for name, shape in part.items()}
    return found


def values(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    w = rng.standard_normal(shape, dtype=np.float32)
    return 1 + w / 8 if len(shape) == 1 else w * np.float32(1.5 / 16)


def write_model(path: Path, experts: int, seed: int = 0) -> Path:
    """Write the model; norms and routers in f32, all else in f16."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes(experts).items():
        w = values(shape, rng)
        if len(shape) == 1 or "gate_inp" in name:
            tensors[name] = QTensor.from_bytes(w.tobytes(), "f32", shape)
        else:
            tensors[name] = QTensor.from_bytes(w.astype(np.float16).tobytes(), "f16", shape)
    gguf.write(path, metadata(experts), tensors)
    return path
