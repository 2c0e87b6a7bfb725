"""Small random models: as GGUF metadata and tensors, and as Hugging Face folders."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kvant.models import Model
from kvant.models.architectures import ARCHITECTURES, required_shapes
from kvant.models.config import read_config

ARCHITECTURE_NAMES = ARCHITECTURES
VOCAB = 300
HF_NAMES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "mistral": ("MistralForCausalLM", "mistral"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "qwen3moe": ("Qwen3MoeForCausalLM", "qwen3_moe"),
    "olmoe": ("OlmoeForCausalLM", "olmoe"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
    "gpt-oss": ("GptOssForCausalLM", "gpt_oss"),
}
WITH_EXPERTS = ("qwen3moe", "olmoe", "gpt-oss")
# What a config.json of theirs has besides, or instead.
HF_CHANGES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 7},
    "qwen3moe": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 20,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    # llama.cpp takes some shapes of these two for granted.
    "qwen2": {"head_dim": 8},
    "olmoe": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
        "head_dim": 8,
        "num_key_value_heads": 4,
    },
    "gemma3": {
        "num_hidden_layers": 7,
        "sliding_window": 7,
        "query_pre_attn_scalar": 12,
        "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_local_base_freq": 100.0,
        "tie_word_embeddings": True,
    },
    "gpt-oss": {
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "sliding_window": 7,
        "attention_bias": True,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 16,
        },
    },
}
_SAMPLE = (
    "It was the best of times, it was the worst of times. 1859! \u00e9t\u00e9 na\u00efve\n" * 3
)


def metadata(architecture: str, **changes: Any) -> dict[str, Any]:
    """GGUF keys of a two-layer model; `changes` replace keys below the architecture's prefix."""
    keys: dict[str, Any] = {
        "block_count": 2,
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 12,
        "attention.value_length": 12,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 1000.0,
        "vocab_size": VOCAB,
    }
    if architecture in WITH_EXPERTS:
        keys |= {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 20}
    if architecture in ("gemma3", "gpt-oss"):
        keys["attention.sliding_window"] = 5
    keys |= {name.replace("__", "."): value for name, value in changes.items()}
    named = {f"{architecture}.{k}": v for k, v in keys.items() if v is not None}
    return {"general.architecture": architecture, **named}


def tensors(keys: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights that keep activations near one."""
    rng = np.random.default_rng(seed)
    config = read_config(keys, ARCHITECTURES)
    return {name: draw(rng, shape) for name, shape in required_shapes(config).items()}


def random_model(architecture: str, seed: int = 0, **changes: Any) -> Model:
    """A model of random weights without a tokenizer."""
    keys = metadata(architecture, **changes)
    return Model(keys, tensors(keys, seed))


def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        return np.float32(1) + np.float32(0.2) * values
    return values * np.float32(1.5 * shape[-1] ** -0.5)


@functools.cache
def byte_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer of fewer than VOCAB tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_SAMPLE], trainer)
    return tokenizer


def hf_config(architecture: str, **changes: Any) -> dict[str, Any]:
    """config.json of a random folder; a change to None removes a key."""
    name, model_type = HF_NAMES[architecture]
    config: dict[str, Any] = {
        "architectures": [name],
        "model_type": model_type,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000.0,
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    config |= HF_CHANGES.get(architecture, {})
    config |= changes
    return {key: value for key, value in config.items() if value is not None}


def hf_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under Hugging Face names."""
    rng = np.random.default_rng(seed)
    width = config["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, width)}
    for i in range(config["num_hidden_layers"]):
        layer = _hf_attention(config) | _hf_feed_forward(config)
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (width,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (VOCAB, width)
    tensors = {name: draw(rng, shape) for name, shape in shapes.items()}
    if config["model_type"] == "gemma3_text":
        # Its norms are stored less one.
        tensors = {n: t - np.float32(t.ndim == 1) for n, t in tensors.items()}
    return tensors


def _hf_attention(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    kind, width, head = config["model_type"], config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    rows = {"q": heads * head, "k": kv_heads * head, "v": kv_heads * head}
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.o_proj.weight": (width, heads * head),
        **{f"self_attn.{n}_proj.weight": (count, width) for n, count in rows.items()},
    }
    if kind in ("qwen3", "qwen3_moe", "gemma3_text"):
        shapes |= {f"self_attn.{n}_norm.weight": (head,) for n in "qk"}
    if kind == "olmoe":
        shapes |= {f"self_attn.{n}_norm.weight": (rows[n],) for n in "qk"}
    if kind == "gemma3_text":
        shapes |= {f"{n}_feedforward_layernorm.weight": (width,) for n in ("pre", "post")}
    if kind == "gpt_oss":
        shapes["self_attn.sinks"] = (heads,)
    if config.get("attention_bias") or kind == "qwen2":
        shapes |= {f"self_attn.{n}_proj.bias": (count,) for n, count in rows.items()}
    if config.get("attention_bias"):
        shapes["self_attn.o_proj.bias"] = (width,)
    return shapes


def _hf_feed_forward(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    kind, width, ffn = config["model_type"], config["hidden_size"], config["intermediate_size"]
    if kind == "gpt_oss":
        count = config["num_local_experts"]
        return {
            "mlp.router.weight": (count, width),
            "mlp.router.bias": (count,),
            "mlp.experts.gate_up_proj": (count, width, 2 * ffn),
            "mlp.experts.gate_up_proj_bias": (count, 2 * ffn),
            "mlp.experts.down_proj": (count, ffn, width),
            "mlp.experts.down_proj_bias": (count, width),
        }
    experts = config.get("num_experts")
    own = config.get("moe_intermediate_size", ffn)
    shapes: dict[str, tuple[int, ...]] = {"mlp.gate.weight": (experts, width)} if experts else {}
    for part in [f"mlp.experts.{e}." for e in range(experts)] if experts else ["mlp."]:
        shapes |= {
            f"{part}gate_proj.weight": (own, width),
            f"{part}up_proj.weight": (own, width),
            f"{part}down_proj.weight": (width, own),
        }
    return shapes


def hf_folder(folder: Path, architecture: str, *, shards: int = 1, **changes: Any) -> Path:
    """Write a random Hugging Face folder; returns it."""
    from safetensors.numpy import save_file

    config = hf_config(architecture, **changes)
    weights = hf_tensors(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = sorted(weights)
    places = {name: f"model-{i % shards + 1:05}.safetensors" for i, name in enumerate(names)}
    for place in set(places.values()):
        part = {name: weights[name] for name in names if places[name] == place}
        save_file(part, folder / place, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
