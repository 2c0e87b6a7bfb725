"""A decoder of one's own: qwen3moe in fifty lines of kvant's public functions.

python examples/own_decoder.py [model.gguf] [text]
"""

import sys
from pathlib import Path

import numpy as np

import kvant
from kvant import gguf, models

path = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "models/tiny-moe/model.gguf"
text = sys.argv[2] if len(sys.argv) > 2 else "It was a cold morning, and"

file = gguf.open(path)
key = {name.split(".", 1)[1]: value for name, value in file.metadata.items() if "." in name}
layers, top = key["block_count"], key["expert_used_count"]
heads, kv_heads = key["attention.head_count"], key["attention.head_count_kv"]
dim, eps = key["attention.key_length"], key["attention.layer_norm_rms_epsilon"]
# Matrices are packed once, 16 rows interleaved; norms are plain arrays.
w = {
    name.removesuffix(".weight"): t.pack() if len(t.shape) > 1 else t.dequantize()
    for name, t in file.tensors.items()
}
embedding = file.tensors["token_embd.weight"]
# k="q8_0", v="iq4_nl" would do with less than half of the memory.
seq = kvant.KVCache(layers, kv_heads, dim, k="f16", v="f16").sequence()


def layer(i, x, positions):
    """One layer: x [T, width] -> [T, width]."""
    p = f"blk.{i}."
    h = kvant.rms_norm(x, w[p + "attn_norm"], eps)
    q, k, v = kvant.matmul_many(h, [w[p + "attn_q"], w[p + "attn_k"], w[p + "attn_v"]])
    q = kvant.rms_norm(q.reshape(len(x), heads, dim), w[p + "attn_q_norm"], eps)
    k = kvant.rms_norm(k.reshape(len(x), kv_heads, dim), w[p + "attn_k_norm"], eps)
    q = kvant.rope(q, positions, theta=key["rope.freq_base"], out=q)
    k = kvant.rope(k, positions, theta=key["rope.freq_base"], out=k)
    seq.append(i, k, v.reshape(len(x), kv_heads, dim))
    mixed = seq.attend(i, q)
    x = x + kvant.matmul(mixed.reshape(len(x), -1), w[p + "attn_output"])

    h = kvant.rms_norm(x, w[p + "ffn_norm"], eps)
    ids, share = kvant.route(kvant.matmul(h, w[p + "ffn_gate_inp"]), top)
    experts = [w[p + f"ffn_{part}_exps"] for part in ("gate", "up", "down")]
    return x + kvant.moe_ffn(h, *experts, ids, share)


def next_token(tokens):
    """Pass new tokens through all layers; the likeliest token after them."""
    positions = np.arange(seq.length, seq.length + len(tokens))
    x = kvant.embedding(embedding, tokens)
    for i in range(layers):
        x = layer(i, x, positions)
    x = kvant.rms_norm(x[-1], w["output_norm"], eps)
    return int(np.argmax(kvant.matmul(x, w.get("output", w["token_embd"]))))


tokenizer = models.load(file).tokenizer
tokens = tokenizer.encode(text, bos=tokenizer.add_bos)
made = [next_token(tokens)]
while len(made) < 40:
    made.append(next_token(made[-1:]))
print(text + tokenizer.decode(made))
