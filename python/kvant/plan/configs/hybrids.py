"""Qwen3-Next and Qwen 3.5: three gated delta nets, then one layer with gated attention."""

from __future__ import annotations

from kvant.plan.configs.common import (
    FULL,
    Found,
    Sizes,
    Tensors,
    check_types,
    metadata_of,
    sizes_of,
)
from kvant.plan.keys import MAX_LAYERS, Keys

__all__ = ["qwen3next", "qwen35", "qwen35moe"]

_LINEAR = "linear_attention"


def qwen35(config: Keys) -> Found:
    """Qwen 3.5 and 3.6, dense."""
    return _build("qwen35", config, experts=0)


def qwen35moe(config: Keys) -> Found:
    """Qwen 3.5 and 3.6 with experts."""
    return _build("qwen35moe", config, config.size("num_experts"))


def qwen3next(config: Keys) -> Found:
    """Qwen3-Next and Qwen3-Coder-Next."""
    return _build("qwen3next", config, config.size("num_experts"))


def _build(arch: str, config: Keys, experts: int) -> Found:
    s, t = sizes_of(config, head=256), Tensors()
    period = config.size("full_attention_interval", 4, most=MAX_LAYERS)
    check_types(config, s.layers, [_LINEAR] * (period - 1) + [FULL])
    size = config.size("linear_key_head_dim")
    if config.size("linear_value_head_dim") != size:
        value = config.get("linear_value_head_dim")
        raise config.wrong("linear_value_head_dim", f"{size} as for keys", value)
    keys = config.size("linear_num_key_heads") * size
    values = config.size("linear_num_value_heads")
    kernel = config.size("linear_conv_kernel_dim", 4)
    t.ends(s.vocabulary, s.width, s.tied)
    for index in range(s.layers):
        t.layer(index)
        t.norm("attn_norm", s.width)
        t.norm("post_attention_norm", s.width)
        if (index + 1) % period:
            _delta_net(t, arch, s.width, keys, values, size, kernel)
        else:
            _attention(t, s)
        if experts:
            t.experts(experts, s.width, config.size("moe_intermediate_size"))
            t.exact("ffn_gate_inp_shexp.weight", s.width)
            t.network(s.width, config.size("shared_expert_intermediate_size"), "_shexp")
        else:
            t.network(s.width, s.inner)
    more = {}
    if experts:
        used = config.size("num_experts_per_tok", most=experts)
        more = {"expert_count": experts, "expert_used_count": used}
    return metadata_of(
        arch,
        s,
        **more,
        full_attention_interval=period,
        ssm__conv_kernel=kernel,
        ssm__state_size=size,
        ssm__group_count=keys // size,
        ssm__time_step_rank=values,
        ssm__inner_size=values * size,
    ), t


def _attention(t: Tensors, s: Sizes) -> None:
    t.matrix("attn_q", 2 * s.heads * s.head, s.width)  # queries and their gates
    t.matrix("attn_k", s.kv_heads * s.head, s.width)
    t.matrix("attn_v", s.kv_heads * s.head, s.width)
    t.matrix("attn_output", s.width, s.heads * s.head)
    t.norm("attn_q_norm", s.head)
    t.norm("attn_k_norm", s.head)


def _delta_net(
    t: Tensors, arch: str, width: int, keys: int, values: int, size: int, kernel: int
) -> None:
    mixed = 2 * keys + values * size
    t.matrix("attn_qkv", mixed, width)
    t.matrix("attn_gate", values * size, width)
    t.exact("ssm_conv1d.weight", mixed, kernel)
    t.exact("ssm_dt.bias", values)
    t.exact("ssm_a", values)
    if arch == "qwen3next":
        t.matrix("ssm_ba", 2 * values, width)
    else:
        t.matrix("ssm_beta", values, width)
        t.matrix("ssm_alpha", values, width)
    t.norm("ssm_norm", size)
    t.matrix("ssm_out", width, values * size)
