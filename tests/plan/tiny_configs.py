"""One small config.json for each architecture, for what every reader must get right."""

from __future__ import annotations

from typing import Any


def sizes(model_type: str, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "num_hidden_layers": 6,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 50,
        "max_position_embeddings": 1000,
        **more,
    }


DELTA = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 32,
}
EXPERTS = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}
LATENT = {
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 5,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "topk_method": "noaux_tc",
}
GEMMA4 = {
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "sliding_window": 100,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": sizes("llama", rope_scaling={"rope_type": "llama3"}),
    "mistral": sizes("mistral", head_dim=32),
    "ministral3": sizes("ministral3", tie_word_embeddings=True),
    "mixtral": sizes("mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen2": sizes("qwen2"),
    "qwen3": sizes("qwen3"),
    "qwen3_moe": sizes("qwen3_moe", **EXPERTS),
    "olmoe": sizes("olmoe", **EXPERTS),
    "phi3": sizes("phi3", rope_scaling={"type": "longrope"}),
    "gemma2": sizes("gemma2", head_dim=16, sliding_window=100),
    "gemma3_text": sizes("gemma3_text", head_dim=16, sliding_window=100),
    "gemma4_text": sizes(
        "gemma4_text",
        **GEMMA4,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
    ),
    "gemma4_unified_text": sizes(
        "gemma4_unified_text",
        **GEMMA4,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=32,
    ),
    "qwen3_next": sizes("qwen3_next", **DELTA, **EXPERTS),
    "qwen3_5_text": sizes("qwen3_5_text", **DELTA),
    "qwen3_5_moe_text": sizes("qwen3_5_moe_text", **DELTA, **EXPERTS),
    "gpt_oss": sizes(
        "gpt_oss", head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=100
    ),
    "llama4_text": sizes(
        "llama4_text",
        head_dim=16,
        intermediate_size_mlp=128,
        num_local_experts=4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        attention_chunk_size=100,
    ),
    "deepseek_v2": sizes("deepseek_v2", **LATENT | {"q_lora_rank": None}),
    "deepseek_v3": sizes("deepseek_v3", **LATENT),
    "deepseek_v32": sizes("deepseek_v32", **LATENT, index_n_heads=2, index_head_dim=16),
    "kimi_k2": sizes("kimi_k2", **LATENT),
}
