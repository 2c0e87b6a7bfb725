"""Layers that see chunks or keep no keys, and caches for what models are like."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kvant import KVCache, KVPolicy, ModelError, ShapeError, StateError, plan
from kvant.kv.spec import NO_KEYS, LayerShape, spec_of
from support import words

RNG = np.random.default_rng(0)
K = RNG.standard_normal((600, 1, 32), dtype=np.float32)
V = RNG.standard_normal((600, 1, 32), dtype=np.float32)
Q = RNG.standard_normal((600, 2, 32), dtype=np.float32)


def same(a, b):
    return np.array_equal(words(a), words(b))


# ---- chunks ----


def test_chunks_that_are_behind_are_let_go_of():
    cache = KVCache(1, 1, 32, "q4_0", "q4_0", chunk=200, policy=KVPolicy(sink=4, tail=10))
    page = 64 * 36
    seq, whole = cache.sequence(), KVCache(1, 1, 32, "q4_0", "q4_0", chunk=200).sequence()
    whole.append(0, K, V)
    for at in range(600):
        seq.append(0, K[at : at + 1], V[at : at + 1])
        # What begins at the chunk's first token, or at that of a token taken back.
        first = max(at - 64 - 1, 0) // 200 * 200 // 64
        body = -(-(at + 1) // 64) - first
        tail = -(-(at + 1) // 64) - max(at - 74, 0) // 64
        assert cache.nbytes == body * page + (1 + tail) * 64 * 128
    for length in (599, 536, 450):
        seq.truncate(length)
    with pytest.raises(ShapeError, match="let go of tokens that would be seen again"):
        seq.truncate(399)
    seq.append(0, K[450:], V[450:])
    with pytest.raises(ShapeError, match="let go of keys that these queries see"):
        seq.attend(0, Q)
    with pytest.raises(ShapeError, match="expected causal attention in a layer with a window or"):
        seq.attend(0, Q[:1], causal=False)
    assert seq.attend(0, Q[450:]).shape == (150, 2, 32)


def test_a_chunk_is_attention_over_it_alone():
    seq = KVCache(1, 1, 32, "q8_0", "q8_0", chunk=200).sequence()
    seq.append(0, K, V)
    out = seq.attend(0, Q)
    for first in (0, 200, 400):
        # Pages of the same places, so that they merge alike: what is before is not seen.
        other = KVCache(1, 1, 32, "q8_0", "q8_0", chunk=200).sequence()
        other.append(0, np.concatenate([0 * K[:first], K[first : first + 200]]), V[: first + 200])
        assert same(other.attend(0, Q[first : first + 200]), out[first : first + 200])


def test_states_of_chunks(tmp_path):
    cache = KVCache(1, 1, 32, chunk=100)
    seq = cache.sequence()
    for at in range(0, 600, 30):
        seq.append(0, K[at : at + 30], V[at : at + 30])
    seq.save(tmp_path / "a")
    again = cache.load(tmp_path / "a")
    assert same(again.attend(0, Q[:30]), seq.attend(0, Q[:30]))
    with pytest.raises(StateError, match="they differ in layer 0, chunk"):
        KVCache(1, 1, 32, chunk=101).load(tmp_path / "a")
    with pytest.raises(ShapeError, match="a chunk of at least 1"):
        KVCache(1, 1, 32, chunk=0)


# ---- layers without keys ----


def test_layers_without_keys(tmp_path):
    cache = KVCache(4, [0, 1, 0, 1], 32, "q8_0", "q4_0", share={3: 1})
    seq = cache.sequence()
    assert [shape.kv_heads for shape in cache.shapes] == [0, 1, 0, 1]
    seq.append(1, K[:70], V[:70])
    assert (seq.length, seq.layer_length(3)) == (70, 70)
    assert same(seq.attend(3, Q[:5]), seq.attend(1, Q[:5]))
    for call in (
        lambda: seq.append(0, K, V),
        lambda: seq.attend(2, Q),
        lambda: seq.layer_length(0),
        lambda: seq.keys(2),
        lambda: seq.to_ggml(0),
    ):
        with pytest.raises(ShapeError, match=r"expected a layer with keys, got [02], which has"):
            call()
    seq.save(tmp_path / "a")
    again = cache.load(tmp_path / "a")
    assert same(again.attend(1, Q[:5]), seq.attend(1, Q[:5]))
    seq.truncate(10)
    assert seq.fork().length == 10
    for share in ({0: 2}, {1: 0}):
        with pytest.raises(ShapeError, match="to share a layer of its shape that has keys"):
            KVCache(4, [0, 1, 0, 1], 32, share=share)
    with pytest.raises(ShapeError, match="policies of layers with keys, got 0"):
        KVCache(2, [0, 1], 32, policy=KVPolicy(layers={0: ("f16", "f16")}))
    with pytest.raises(ShapeError, match="expected a layer with keys, got none"):
        KVCache(2, 0, 32)


# ---- what models are like ----


@pytest.mark.parametrize(
    ("name", "k", "v"),
    [
        ("DeepSeek V3", "q8_0", "q8_0"),
        ("Kimi K2", "q4_0", "q4_0"),
        ("Qwen3.5 0.8B", "q8_0", "q4_0"),
        ("gpt-oss 20B", "f16", "f16"),
        ("Llama 4 Scout", "q4_0", "q5_1"),
    ],
)
def test_bytes_are_those_of_the_plan(name, k, v):
    layers = plan.read(name).layers
    cache = KVCache.from_model(name, f"{k}/{v}")
    seq = cache.sequence()
    for layer in cache.owned:
        shape = cache.shapes[layer]
        rows = np.zeros((128, shape.kv_heads, shape.head_dim), np.float16)
        seq.append(layer, rows, None if shape.view else rows[..., : shape.value_dim])
    assert seq.length == 128
    assert cache.nbytes == plan.kv_bytes(layers, 128, k=k, v=v)


def test_latent_rows():
    cache = KVCache.from_model("DeepSeek V3", "lm3")
    assert set(cache.shapes) == {LayerShape(1, 576, 512, None, view=True)}
    assert cache.stats().bits == 3 + 16 / 576
    # Heads that choose tokens keep keys that are no part of attention.
    assert spec_of("DeepSeek V3.2").shapes == cache.shapes


def test_values_that_are_keys_before_factors():
    shapes = spec_of("Gemma 4 31B").shapes
    assert shapes[5] == LayerShape(4, 640, 512, None, view=True)
    assert shapes[0] == LayerShape(16, 256, 256, 1024)
    apart = spec_of("Gemma 4 31B", views=False).shapes
    assert apart[5] == LayerShape(4, 512, 512, None) and apart[0] == shapes[0]
    # Those with values of their own have no such rows.
    assert not any(shape.view for shape in spec_of("Gemma 4 E4B").shapes)
    assert KVCache.from_model("Gemma 4 31B", views=False).shapes == apart
    cache = KVCache.from_model("Gemma 4 31B", "q8_0")
    seq = cache.sequence()
    seq.append(5, np.zeros((64, 4, 640), np.float32))
    assert cache.nbytes == 64 * 4 * 640 * 34 / 32


def test_recurrent_layers_have_no_keys(tmp_path):
    shapes = spec_of("Qwen3.5 27B").shapes
    assert [shape == NO_KEYS for shape in shapes[:8]] == [True, True, True, False] * 2
    sizes = {"model_type": "qwen3_5_text", "num_hidden_layers": 3, "hidden_size": 64}
    sizes |= {"num_attention_heads": 4, "vocab_size": 50, "intermediate_size": 96}
    sizes |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
    sizes |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(ModelError, match="recurrent layers alone"):
        spec_of(tmp_path / "config.json")


def test_chunks_and_windows():
    llama4 = spec_of("Llama 4 Scout").shapes
    assert llama4[0] == LayerShape(8, 128, 128, None, chunk=8192)
    assert llama4[3] == LayerShape(8, 128, 128, None)
    assert {shape.window for shape in spec_of("Mistral Small").shapes} == {None}
