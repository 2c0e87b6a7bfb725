"""Plain decoders: attention and a feed-forward network or experts in every layer.

Llama, Mistral, Mixtral, Qwen 2 and 3, OLMoE, Phi 3 and 4.
"""

from __future__ import annotations

from kvant.plan.configs.common import Found, Sizes, Tensors, metadata_of, sizes_of
from kvant.plan.keys import Keys

__all__ = ["llama", "mistral", "olmoe", "phi3", "qwen2", "qwen3", "qwen3moe"]


def llama(config: Keys) -> Found:
    """Llama, and with experts Mixtral."""
    s, t = sizes_of(config), Tensors()
    experts = config.count("num_local_experts")
    t.ends(s.vocabulary, s.width, s.tied)
    if _is_scaled(config):
        t.norm("rope_freqs", s.head // 2)
    for index in range(s.layers):
        t.layer(index)
        _attention(t, s)
        _feed_forward(t, s, experts, s.inner)
    return _metadata("llama", config, s, experts), t


def mistral(config: Keys) -> Found:
    """Mistral: llama with a window in every layer, unless the file says null."""
    metadata, t = llama(config)
    if config.has("sliding_window") or not config.names("sliding_window"):
        metadata["llama.attention.sliding_window"] = config.size("sliding_window", 4096)
    return metadata, t


def qwen2(config: Keys) -> Found:
    """Qwen 2 and 2.5: queries, keys and values have biases."""
    s, t = sizes_of(config), Tensors()
    t.ends(s.vocabulary, s.width, s.tied)
    for index in range(s.layers):
        t.layer(index)
        _attention(t, s, bias=True)
        _feed_forward(t, s)
    return metadata_of("qwen2", s), t


def qwen3(config: Keys) -> Found:
    """Qwen 3: a norm for each head's queries and keys."""
    s, t = sizes_of(config, head=128), Tensors()
    t.ends(s.vocabulary, s.width, s.tied)
    for index in range(s.layers):
        t.layer(index)
        _attention(t, s, norms=(s.head, s.head))
        _feed_forward(t, s)
    return metadata_of("qwen3", s), t


def qwen3moe(config: Keys) -> Found:
    """Qwen 3 with experts in every layer."""
    s, t = sizes_of(config, head=128), Tensors()
    experts = config.size("num_experts" if config.has("num_experts") else "num_local_experts")
    t.ends(s.vocabulary, s.width, s.tied)
    for index in range(s.layers):
        t.layer(index)
        _attention(t, s, norms=(s.head, s.head))
        _feed_forward(t, s, experts, config.size("moe_intermediate_size"))
    return _metadata("qwen3moe", config, s, experts), t


def olmoe(config: Keys) -> Found:
    """OLMoE: norms over all heads at once."""
    s, t = sizes_of(config), Tensors()
    experts = config.size("num_experts")
    t.ends(s.vocabulary, s.width, s.tied)
    for index in range(s.layers):
        t.layer(index)
        _attention(t, s, norms=(s.heads * s.head, s.kv_heads * s.head))
        _feed_forward(t, s, experts, s.inner)
    return _metadata("olmoe", config, s, experts), t


def phi3(config: Keys) -> Found:
    """Phi 3 and 4: queries, keys and values are one product, gate and up another."""
    s, t = sizes_of(config), Tensors()
    t.ends(s.vocabulary, s.width, s.tied)
    if _is_scaled(config):
        t.norm("rope_factors_long", s.head // 2)
        t.norm("rope_factors_short", s.head // 2)
    for index in range(s.layers):
        t.layer(index)
        t.norm("attn_norm", s.width)
        t.matrix("attn_qkv", (s.heads + 2 * s.kv_heads) * s.head, s.width)
        t.matrix("attn_output", s.width, s.heads * s.head)
        t.norm("ffn_norm", s.width)
        t.matrix("ffn_up", 2 * s.inner, s.width)
        t.matrix("ffn_down", s.width, s.inner)
    return metadata_of("phi3", s), t


def _attention(
    t: Tensors, s: Sizes, *, bias: bool = False, norms: tuple[int, int] | None = None
) -> None:
    t.norm("attn_norm", s.width)
    t.matrix("attn_q", s.heads * s.head, s.width, bias=bias)
    t.matrix("attn_k", s.kv_heads * s.head, s.width, bias=bias)
    t.matrix("attn_v", s.kv_heads * s.head, s.width, bias=bias)
    t.matrix("attn_output", s.width, s.heads * s.head)
    if norms:
        t.norm("attn_q_norm", norms[0])
        t.norm("attn_k_norm", norms[1])


def _feed_forward(t: Tensors, s: Sizes, experts: int = 0, inner: int = 0) -> None:
    t.norm("ffn_norm", s.width)
    if experts:
        t.experts(experts, s.width, inner)
    else:
        t.network(s.width, s.inner)


def _metadata(arch: str, config: Keys, s: Sizes, experts: int) -> dict[str, object]:
    if not experts:
        return metadata_of(arch, s)
    used = config.size("num_experts_per_tok", most=experts)
    return metadata_of(arch, s, expert_count=experts, expert_used_count=used)


def _is_scaled(config: Keys) -> bool:
    """Whether the file holds a factor for each frequency of rope."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key)
        kind = rope.get("rope_type") or rope.get("type") if isinstance(rope, dict) else None
        if kind in ("llama3", "longrope"):
            return True
    return False
