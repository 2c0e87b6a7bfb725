"""gpt-oss, Llama 4, DeepSeek V3 and Kimi K2: large mixtures, each with an attention of its own."""

from __future__ import annotations

from dataclasses import replace

from kvant.plan.configs.common import (
    FULL,
    SLIDING,
    Found,
    Tensors,
    check_types,
    metadata_of,
    sizes_of,
)
from kvant.plan.keys import Keys

__all__ = ["deepseek2", "deepseek32", "gpt_oss", "llama4"]


def gpt_oss(config: Keys) -> Found:
    """gpt-oss: biases everywhere, a learned sink for each head, a window in every other layer."""
    s, t = sizes_of(config), Tensors()
    check_types(config, s.layers, (SLIDING, FULL))
    experts = config.size("num_local_experts")
    used = config.size("num_experts_per_tok", most=experts)
    t.ends(s.vocabulary, s.width, s.tied)
    for index in range(s.layers):
        t.layer(index)
        t.norm("attn_norm", s.width)
        t.matrix("attn_q", s.heads * s.head, s.width, bias=True)
        t.matrix("attn_k", s.kv_heads * s.head, s.width, bias=True)
        t.matrix("attn_v", s.kv_heads * s.head, s.width, bias=True)
        t.matrix("attn_output", s.width, s.heads * s.head, bias=True)
        t.exact("attn_sinks.weight", s.heads)
        t.norm("post_attention_norm", s.width)
        t.experts(experts, s.width, s.inner, bias=True)
    return metadata_of(
        "gpt-oss",
        s,
        expert_count=experts,
        expert_used_count=used,
        attention__sliding_window=config.size("sliding_window", 128),
    ), t


def llama4(config: Keys) -> Found:
    """Llama 4: experts in every layer or every other, chunks of context in three of four."""
    s, t = sizes_of(config, head=128), Tensors()
    check_types(config, s.layers, (*("chunked_attention",) * 3, FULL))
    experts, step = config.size("num_local_experts"), config.size("interleave_moe_layer_step", 1)
    used = config.size("num_experts_per_tok", 1, most=experts)
    t.ends(s.vocabulary, s.width, s.tied)
    t.norm("rope_freqs", s.head // 2)
    for index in range(s.layers):
        t.layer(index)
        t.norm("attn_norm", s.width)
        t.matrix("attn_q", s.heads * s.head, s.width)
        t.matrix("attn_k", s.kv_heads * s.head, s.width)
        t.matrix("attn_v", s.kv_heads * s.head, s.width)
        t.matrix("attn_output", s.width, s.heads * s.head)
        t.norm("ffn_norm", s.width)
        if (index + 1) % step:
            t.network(s.width, config.size("intermediate_size_mlp"))
        else:
            t.experts(experts, s.width, s.inner)
            t.network(s.width, s.inner, "_shexp")
    return metadata_of(
        "llama4",
        s,
        expert_count=experts,
        expert_used_count=used,
        attention__chunk_size=config.size("attention_chunk_size", 8192),
    ), t


def deepseek2(config: Keys) -> Found:
    """DeepSeek V2, V3 and Kimi K2: keys and values are made from one short row for each token.

    The layer that guesses a second token is left out, as the converter does.
    """
    return _latent("deepseek2", config)


def deepseek32(config: Keys) -> Found:
    """DeepSeek V3.2: V3, and small heads that choose which tokens are looked at."""
    return _latent("deepseek32", config)


def _latent(arch: str, config: Keys) -> Found:
    s, t = sizes_of(config), Tensors()
    latent, turned = config.size("kv_lora_rank"), config.size("qk_rope_head_dim")
    plain, value = config.size("qk_nope_head_dim"), config.size("v_head_dim")
    short, dense = config.count("q_lora_rank"), config.count("first_k_dense_replace")
    experts, inner = config.size("n_routed_experts"), config.size("moe_intermediate_size")
    used = config.size("num_experts_per_tok", most=experts)
    beside = config.count("n_shared_experts")
    corrected = config.get("topk_method") == "noaux_tc"
    queries = s.heads * (plain + turned)
    choosers, choice = 0, 0
    if arch == "deepseek32":
        choosers, choice = config.size("index_n_heads"), config.size("index_head_dim")
    t.ends(s.vocabulary, s.width, s.tied)
    for index in range(s.layers):
        t.layer(index)
        t.norm("attn_norm", s.width)
        if short:
            t.matrix("attn_q_a", short, s.width)
            t.norm("attn_q_a_norm", short)
            t.matrix("attn_q_b", queries, short)
        else:
            t.matrix("attn_q", queries, s.width)
        t.matrix("attn_kv_a_mqa", latent + turned, s.width)
        t.norm("attn_kv_a_norm", latent)
        t.matrix("attn_k_b", s.heads, latent, plain)
        t.matrix("attn_v_b", s.heads, value, latent)
        t.matrix("attn_output", s.width, s.heads * value)
        if choosers:
            t.matrix("indexer.attn_q_b", choosers * choice, short)
            t.matrix("indexer.attn_k", choice, s.width)
            t.matrix("indexer.proj", choosers, s.width)
            t.norm("indexer.k_norm", choice)
            t.exact("indexer.k_norm.bias", choice)
        t.norm("ffn_norm", s.width)
        if index < dense:
            t.network(s.width, s.inner)
            continue
        t.experts(experts, s.width, inner)
        if corrected:
            t.exact("exp_probs_b.bias", experts)
        if beside:
            t.network(s.width, inner * beside, "_shexp")
    one_row = replace(s, kv_heads=1, head=latent + turned)
    more = {"attention__indexer__key_length": choice} if choosers else {}
    return metadata_of(
        arch,
        one_row,
        **more,
        expert_count=experts,
        expert_used_count=used,
        attention__kv_lora_rank=latent,
        attention__value_length=latent,
        attention__key_length_mla=plain + turned,
        attention__value_length_mla=value,
    ), t
