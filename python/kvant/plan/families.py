"""Models of 2026 by name: what their config.json says, as far as sizes depend on it.

To add one, add an entry; `kvant.plan.configs` reads it like a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvant.errors import ModelError
from kvant.plan.configs import from_config
from kvant.plan.model import Model

__all__ = ["FAMILIES", "Family", "family"]


@dataclass(frozen=True)
class Family:
    """A model, the names it goes by, and who published its sizes."""

    names: tuple[str, ...]
    source: str
    config: Mapping[str, Any]


def _sizes(model_type: str, layers: int, width: int, inner: int, heads: int, kv: int,
           vocab: int, context: int, **more: Any) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        **more,
    }


def _gemma4(layers: int, width: int, inner: int, heads: int, kv: int, context: int,
            **more: Any) -> dict[str, Any]:  # fmt: skip
    return _sizes("gemma4_text", layers, width, inner, heads, kv, 262144, context, **more)


def _wide(kv: int) -> dict[str, Any]:
    return {"attention_k_eq_v": True, "num_global_key_value_heads": kv, "sliding_window": 1024}


def _every_fifth(layers: int) -> list[str]:
    kinds = ("full_attention", *("sliding_attention",) * 4)
    return [kinds[(index + 1) % 5] for index in range(layers)]


def _gemma3(layers: int, width: int, inner: int, heads: int, kv: int, head: int,
            window: int, context: int = 131072) -> dict[str, Any]:  # fmt: skip
    return _sizes("gemma3_text", layers, width, inner, heads, kv, 262144, context,
                  head_dim=head, sliding_window=window)  # fmt: skip


def _delta(model_type: str, layers: int, width: int, inner: int, heads: int, kv: int,
           values: int, vocab: int = 248320, **more: Any) -> dict[str, Any]:  # fmt: skip
    return _sizes(model_type, layers, width, inner, heads, kv, vocab, 262144, head_dim=256,
                  linear_key_head_dim=128, linear_value_head_dim=128, linear_num_key_heads=16,
                  linear_num_value_heads=values, **more)  # fmt: skip


def _mixture(count: int, used: int, inner: int) -> dict[str, int]:
    return {
        "num_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": inner,
        "shared_expert_intermediate_size": inner,
    }


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    return _sizes("gpt_oss", layers, 2880, 2880, 64, 8, 201088, 131072, head_dim=64,
                  sliding_window=128, num_local_experts=experts, num_experts_per_tok=4)  # fmt: skip


def _llama4(experts: int, step: int, context: int) -> dict[str, Any]:
    return _sizes("llama4_text", 48, 5120, 8192, 40, 8, 202048, context, head_dim=128,
                  intermediate_size_mlp=16384, num_local_experts=experts, num_experts_per_tok=1,
                  interleave_moe_layer_step=step, attention_chunk_size=8192)  # fmt: skip


def _latent(heads: int, vocab: int, experts: int, dense: int, context: int) -> dict[str, Any]:
    return _sizes("deepseek_v3", 61, 7168, 18432, heads, heads, vocab, context,
                  q_lora_rank=1536, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128,
                  v_head_dim=128, n_routed_experts=experts, num_experts_per_tok=8,
                  n_shared_experts=1, moe_intermediate_size=2048, first_k_dense_replace=dense,
                  topk_method="noaux_tc")  # fmt: skip


_LLAMA3 = {"rope_scaling": {"rope_type": "llama3"}}
_GEMMA = "google-deepmind/gemma, gm/nn/gemma4/_gemma4.py"
_QWEN = "transformers, configuration_qwen3_5.py and _moe.py; headers of published GGUF files"

FAMILIES: tuple[Family, ...] = (
    Family(("Gemma 4 E2B",), _GEMMA, _gemma4(
        35, 1536, 6144, 8, 1, 131072, hidden_size_per_layer_input=256, num_kv_shared_layers=20,
        use_double_wide_mlp=True, layer_types=_every_fifth(35))),
    Family(("Gemma 4 E4B",), _GEMMA, _gemma4(
        42, 2560, 10240, 8, 2, 131072, hidden_size_per_layer_input=256, num_kv_shared_layers=18)),
    Family(("Gemma 4 12B",), "config.json of google/gemma-4-12B-it", _gemma4(
        48, 3840, 15360, 16, 8, 262144, **_wide(1))),
    Family(("Gemma 4 26B-A4B",), _GEMMA, _gemma4(
        30, 2816, 2112, 16, 8, 262144, **_wide(2), enable_moe_block=True, num_experts=128,
        top_k_experts=8, moe_intermediate_size=704)),
    Family(("Gemma 4 31B",), _GEMMA, _gemma4(60, 5376, 21504, 32, 16, 262144, **_wide(4))),
    Family(("Gemma 3 1B",), "Gemma 3 report", _gemma3(26, 1152, 6912, 4, 1, 256, 512, 32768)),
    Family(("Gemma 3 4B",), "Gemma 3 report", _gemma3(34, 2560, 10240, 8, 4, 256, 1024)),
    Family(("Gemma 3 12B",), "Gemma 3 report", _gemma3(48, 3840, 15360, 16, 8, 256, 1024)),
    Family(("Gemma 3 27B",), "Gemma 3 report", _gemma3(62, 5376, 21504, 32, 16, 128, 1024)),
    Family(("Qwen3.5 0.8B",), _QWEN, _delta(
        "qwen3_5_text", 24, 1024, 3584, 8, 2, 16, tie_word_embeddings=True)),
    Family(("Qwen3.5 4B", "Qwen3.6 4B"), _QWEN, _delta(
        "qwen3_5_text", 32, 2560, 9216, 16, 4, 32, tie_word_embeddings=True)),
    Family(("Qwen3.5 9B", "Qwen3.6 9B"), _QWEN, _delta("qwen3_5_text", 32, 4096, 12288, 16, 4, 32)),
    Family(("Qwen3.5 27B", "Qwen3.6 27B"), _QWEN, _delta(
        "qwen3_5_text", 64, 5120, 17408, 24, 4, 48)),
    Family(("Qwen3.5 35B-A3B", "Qwen3.6 35B-A3B"), _QWEN, _delta(
        "qwen3_5_moe_text", 40, 2048, 0, 16, 2, 32, **_mixture(256, 8, 512))),
    Family(("Qwen3.5 122B-A10B", "Qwen3.6 122B-A10B"), _QWEN, _delta(
        "qwen3_5_moe_text", 48, 3072, 0, 32, 2, 64, **_mixture(256, 8, 1024))),
    Family(("Qwen3.5 397B-A17B",), _QWEN, _delta(
        "qwen3_5_moe_text", 60, 4096, 0, 32, 2, 64, **_mixture(512, 10, 1024))),
    Family(("Qwen3 8B",), "config.json of Qwen/Qwen3-8B", _sizes(
        "qwen3", 36, 4096, 12288, 32, 8, 151936, 40960)),
    Family(("Qwen3-30B-A3B", "Qwen3-Coder-30B-A3B"), "config.json of Qwen/Qwen3-30B-A3B", _sizes(
        "qwen3_moe", 48, 2048, 6144, 32, 4, 151936, 262144, **_mixture(128, 8, 768))),
    Family(("Qwen3-Coder-Next", "Qwen3-Next-80B-A3B"), "transformers, configuration_qwen3_next.py",
        _delta("qwen3_next", 48, 2048, 5120, 16, 2, 32, 151936, **_mixture(512, 10, 512))),
    Family(("gpt-oss 20B",), "transformers, configuration_gpt_oss.py", _gpt_oss(24, 32)),
    Family(("gpt-oss 120B",), "transformers, configuration_gpt_oss.py", _gpt_oss(36, 128)),
    Family(("Llama 3.1 8B",), "Llama 3 report", _sizes(
        "llama", 32, 4096, 14336, 32, 8, 128256, 131072, **_LLAMA3)),
    Family(("Llama 3.3 70B", "Llama 3.1 70B"), "Llama 3 report", _sizes(
        "llama", 80, 8192, 28672, 64, 8, 128256, 131072, **_LLAMA3)),
    Family(("Llama 4 Scout",), "transformers, configuration_llama4.py", _llama4(16, 1, 10485760)),
    Family(("Llama 4 Maverick",), "transformers, configuration_llama4.py",
        _llama4(128, 2, 1048576)),
    Family(("DeepSeek V3", "DeepSeek R1", "DeepSeek V3.1"),
        "transformers, configuration_deepseek_v3.py", _latent(128, 129280, 256, 3, 163840)),
    Family(("DeepSeek V3.2",), "transformers, configuration_deepseek_v32.py", {
        **_latent(128, 129280, 256, 3, 163840), "model_type": "deepseek_v32",
        "index_n_heads": 64, "index_head_dim": 128}),
    Family(("Kimi K2",), "Kimi K2 report", _latent(64, 163840, 384, 1, 131072)),
    Family(("Phi-4",), "config.json of microsoft/phi-4", _sizes(
        "phi3", 40, 5120, 17920, 40, 10, 100352, 16384)),
    Family(("Mistral Small", "Mistral Small 3.2 24B"),
        "config.json of mistralai/Mistral-Small-3.1-24B-Instruct-2503", _sizes(
        "mistral", 40, 5120, 32768, 32, 8, 131072, 131072, head_dim=128, sliding_window=None)),
)  # fmt: skip
"""The table, by maker and size."""


def family(name: str) -> Model:
    """A model out of the table; case, blanks and punctuation of the name do not matter.

    Raises
    ------
    ModelError
        There is no model of this name.

    Examples
    --------
    >>> from kvant import plan
    >>> plan.family("qwen3.6-27b").name
    'Qwen3.6 27B'
    """
    for entry in FAMILIES:
        for known in entry.names:
            if _plain(known) == _plain(name):
                return from_config(entry.config, known, entry.source)
    known = ", ".join(entry.names[0] for entry in FAMILIES)
    raise ModelError(f"[plan] expected a file or a model of {known}, got {name!r}")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
