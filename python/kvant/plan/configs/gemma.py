"""Gemma 2 to 4: windows; in Gemma 4 two sizes of heads, shared caches, per-layer embeddings."""

from __future__ import annotations

from dataclasses import replace

from kvant.plan.configs.common import (
    FULL,
    SLIDING,
    Found,
    Sizes,
    Tensors,
    check_types,
    metadata_of,
    sizes_of,
)
from kvant.plan.keys import Keys

__all__ = ["gemma2", "gemma3", "gemma4"]

_VOCABULARY = 262144  # the converter drops rows of the embedding that are no tokens
_PERIOD = 6


def gemma2(config: Keys) -> Found:
    """Gemma 2: a window in every other layer, scores and logits capped."""
    s, t = sizes_of(config, tied=True, head=256), Tensors()
    check_types(config, s.layers, (SLIDING, FULL))
    t.ends(s.vocabulary, s.width, s.tied)
    for index in range(s.layers):
        t.layer(index)
        t.norm("attn_norm", s.width)
        _attention(t, s, norms=False)
        t.norm("ffn_norm", s.width)
        t.network(s.width, s.inner)
        t.norm("post_ffw_norm", s.width)
    return metadata_of(
        "gemma2", s, attention__sliding_window=config.size("sliding_window", 4096)
    ), t


def gemma3(config: Keys) -> Found:
    """Gemma 3."""
    s, t = _sizes(config), Tensors()
    check_types(config, s.layers, [SLIDING] * (_PERIOD - 1) + [FULL])
    t.ends(s.vocabulary, s.width, s.tied)
    for index in range(s.layers):
        t.layer(index)
        t.norm("attn_norm", s.width)
        _attention(t, s)
        t.norm("ffn_norm", s.width)
        t.network(s.width, s.inner)
        t.norm("post_ffw_norm", s.width)
    return metadata_of("gemma3", s, attention__sliding_window=config.size("sliding_window")), t


def gemma4(config: Keys) -> Found:
    """Gemma 4, dense and with experts beside the dense network.

    Layers with full attention have wide heads and, where `attention_k_eq_v` says so, no values of
    their own. The last `num_kv_shared_layers` have neither keys nor values.
    """
    s, t = _sizes(config), Tensors()
    narrow = _narrow(config, s.layers)
    wide_head = config.size("global_head_dim", 512)
    k_eq_v = config.flag("attention_k_eq_v")
    wide_heads = config.size("num_global_key_value_heads", s.kv_heads) if k_eq_v else s.kv_heads
    wide = replace(s, head=wide_head, kv_heads=wide_heads)
    shared = config.count("num_kv_shared_layers", most=s.layers)
    inners = [s.inner] * (s.layers - shared)
    inners += [s.inner * (2 if config.flag("use_double_wide_mlp") else 1)] * shared
    extra = config.count("hidden_size_per_layer_input")
    experts = config.size("num_experts") if config.flag("enable_moe_block") else 0

    t.ends(s.vocabulary, s.width, s.tied)
    t.norm("rope_freqs", wide_head // 2)
    if extra:
        t.matrix("per_layer_token_embd", s.vocabulary, s.layers * extra)
        t.matrix("per_layer_model_proj", s.layers * extra, s.width)
        t.norm("per_layer_proj_norm", extra)
    for index in range(s.layers):
        t.layer(index)
        t.norm("attn_norm", s.width)
        _attention(
            t,
            s if narrow[index] else wide,
            keys=index < s.layers - shared,
            values=narrow[index] or not k_eq_v,
        )
        t.norm("layer_output_scale", 1)
        t.norm("ffn_norm", s.width)
        t.network(s.width, inners[index])
        t.norm("post_ffw_norm", s.width)
        if experts:
            _experts(t, experts, s.width, config.size("moe_intermediate_size"))
        if extra:
            t.matrix("inp_gate", extra, s.width)
            t.matrix("proj", s.width, extra)
            t.norm("post_norm", s.width)
    more = {}
    if experts:
        used = config.size("top_k_experts", most=experts)
        more = {"expert_count": experts, "expert_used_count": used}
    return metadata_of(
        "gemma4",
        wide,
        **more,
        feed_forward_length=inners,
        attention__head_count_kv=[s.kv_heads if n else wide_heads for n in narrow],
        attention__key_length_swa=s.head,
        attention__value_length_swa=s.head,
        attention__sliding_window=config.size("sliding_window", 512),
        attention__sliding_window_pattern=list(narrow),
        attention__shared_kv_layers=shared,
    ), t


def _sizes(config: Keys) -> Sizes:
    s = sizes_of(config, tied=True, head=256)
    return replace(s, vocabulary=min(s.vocabulary, _VOCABULARY))


def _narrow(config: Keys, layers: int) -> tuple[bool, ...]:
    """Which layers see a window only; the last never does."""
    if config.has("layer_types"):
        kinds = config.words("layer_types", layers, (SLIDING, FULL))
        found = [kind == SLIDING for kind in kinds]
    else:
        found = [(index + 1) % _PERIOD != 0 for index in range(layers)]
    return (*found[:-1], False)


def _attention(
    t: Tensors, s: Sizes, *, keys: bool = True, values: bool = True, norms: bool = True
) -> None:
    t.matrix("attn_q", s.heads * s.head, s.width)
    if norms:
        t.norm("attn_q_norm", s.head)
    if keys:
        t.matrix("attn_k", s.kv_heads * s.head, s.width)
    if keys and norms:
        t.norm("attn_k_norm", s.head)
    if keys and values:
        t.matrix("attn_v", s.kv_heads * s.head, s.width)
    t.matrix("attn_output", s.width, s.heads * s.head)
    t.norm("post_attention_norm", s.width)


def _experts(t: Tensors, count: int, width: int, inner: int) -> None:
    t.exact("ffn_gate_inp.weight", count, width)
    t.exact("ffn_gate_inp.scale", width)
    t.norm("pre_ffw_norm_2", width)
    t.norm("post_ffw_norm_1", width)
    t.norm("post_ffw_norm_2", width)
    t.matrix("ffn_gate_up_exps", count, 2 * inner, width)
    t.matrix("ffn_down_exps", count, width, inner)
    t.exact("ffn_down_exps.scale", count)
