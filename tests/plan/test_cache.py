"""Caches and states: exact sums over layers, and llama.cpp's rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant import plan
from kvant.errors import FormatError, ModelError

LAYERS = st.lists(
    st.one_of(
        st.builds(plan.Layer, st.just("full"), st.integers(1, 4), st.just(64), st.just(32)),
        st.builds(
            plan.Layer,
            st.sampled_from(["sliding", "chunked"]),
            st.integers(1, 4),
            st.just(32),
            st.just(32),
            st.integers(1, 300),
        ),
        st.builds(plan.Layer, st.just("mla"), st.just(1), st.just(96)),
        st.just(plan.Layer("shared")),
        st.builds(plan.Layer, st.just("recurrent"), state=st.integers(0, 1000)),
    ),
    max_size=8,
)
FORMATS = st.sampled_from([("f32", 4.0), ("bf16", 2.0), ("q8_0", 34 / 32), ("q4_0", 18 / 32)])


@given(LAYERS, st.integers(0, 2000), st.integers(1, 4), FORMATS, FORMATS)
def test_bytes_are_those_of_every_row(layers, capacity, sequences, k, v) -> None:
    total = 0.0
    for layer in layers:
        if layer.kind not in ("shared", "recurrent"):
            room = min(capacity, layer.window) if layer.window else capacity
            total += sequences * room * layer.heads * (layer.key * k[1] + layer.value * v[1])
    assert plan.kv_bytes(layers, capacity, sequences, k[0], v[0]) == total
    states = sum(layer.state for layer in layers)
    assert plan.state_bytes(layers, sequences) == 4 * sequences * states


@given(LAYERS, st.integers(0, 2000), st.integers(1, 600))
def test_rounding_adds_less_than_a_batch_and_256(layers, capacity, batch) -> None:
    for layer in layers:
        exact, rounded = plan.cells(layer, capacity), plan.cells(layer, capacity, batch)
        assert rounded % 256 == 0 and exact <= rounded < exact + batch + 256


def test_llama_cpp_rounds_windows_up_by_a_batch() -> None:
    layer = plan.Layer("sliding", 8, 64, 64, window=128)
    assert plan.cells(layer, 32768, 512) == 768
    assert plan.cells(plan.Layer("full", 8, 64, 64), 32769, 512) == 33024


def test_a_row_must_be_whole_blocks() -> None:
    layers = [plan.Layer("full", 8, 64, 64)]
    with pytest.raises(FormatError, match=r"\[plan\] expected heads of a multiple of 256"):
        plan.kv_bytes(layers, 10, k="q4_k")
    with pytest.raises(FormatError, match="expected a format"):
        plan.kv_bytes(layers, 10, v="none")


def layers(arch: str, **keys: object) -> tuple[plan.Layer, ...]:
    base = {"block_count": 4, "embedding_length": 64, "attention.head_count": 4}
    more = {key.replace("__", "."): value for key, value in keys.items()}
    return plan.layers_of(
        {"general.architecture": arch, **{f"{arch}.{k}": v for k, v in (base | more).items()}}
    )


def kinds(found: tuple[plan.Layer, ...]) -> str:
    return " ".join(layer.kind for layer in found)


def test_patterns_of_layers() -> None:
    window = {"attention__sliding_window": 100}
    assert kinds(layers("gpt-oss", **window)) == "sliding full sliding full"
    assert kinds(layers("gemma2", **window)) == "sliding full sliding full"
    flags = [True, False, False, True]
    pattern = {"attention__sliding_window_pattern": flags}
    assert kinds(layers("other", **window, **pattern)) == "sliding full full sliding"
    period = {"attention__sliding_window_pattern": np.uint32(3)}
    assert kinds(layers("other", **window, **period)) == "sliding sliding full sliding"
    assert kinds(layers("llama4")) == "chunked chunked chunked full"
    assert kinds(layers("gemma4", attention__shared_kv_layers=3)) == "full shared shared shared"
    ssm = {"ssm__state_size": 16, "ssm__inner_size": 64, "ssm__conv_kernel": 4}
    delta = layers("qwen35", **ssm, ssm__group_count=2)
    assert kinds(delta) == "recurrent recurrent recurrent full"
    named = layers("qwen35", **ssm, attention__recurrent_layers=[False, True, True, False])
    assert kinds(named) == "full recurrent recurrent full"
    assert delta[0].state == 16 * 64 + 3 * (64 + 2 * 2 * 16)
    mamba = layers("granitehybrid", **ssm, attention__head_count_kv=[0, 2, 0, 2])
    assert kinds(mamba) == "recurrent full recurrent full"


def test_a_latent_row_is_key_and_value_at_once() -> None:
    keys = {"attention__kv_lora_rank": 32, "attention__key_length": 40,
            "attention__head_count_kv": 1}  # fmt: skip
    new = layers("deepseek2", **keys, attention__key_length_mla=24)
    assert new[0] == plan.Layer("mla", 1, 40, row=40, view=32)
    chooser = layers(
        "deepseek2", **keys, attention__key_length_mla=24, attention__indexer__key_length=16
    )
    assert chooser[0] == plan.Layer("mla", 1, 56, row=40, view=32)
    # Files from before the short rows were cached have keys and values of every head.
    assert kinds(layers("deepseek2", **keys)) == "full full full full"


def test_values_that_are_keys_before_factors() -> None:
    keys = {"general.architecture": "gemma4", "gemma4.block_count": 2,
            "gemma4.embedding_length": 64, "gemma4.attention.head_count": 4}  # fmt: skip
    both = {f"blk.{i}.attn_{name}.weight" for i in range(2) for name in "kv"}
    own, equal = plan.layers_of(keys, both - {"blk.1.attn_v.weight"})
    assert (own.row, equal.row, equal.view) == (0, 20, 16)
    assert (equal.key, equal.value) == (own.key, own.value) == (16, 16)


def test_windows_of_mistral_and_gemma2() -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
             "intermediate_size": 96, "vocab_size": 50}  # fmt: skip
    mistral = {"model_type": "mistral", **sizes}
    # transformers' default, where the file does not say; null is no window.
    for said, window in (({}, 4096), ({"sliding_window": 100}, 100)):
        found = plan.from_config({**mistral, **said}).layers
        assert [(layer.kind, layer.window) for layer in found] == [("sliding", window)] * 4
    assert kinds(plan.from_config({**mistral, "sliding_window": None}).layers) == " ".join(
        ["full"] * 4
    )
    gemma2 = plan.from_config({"model_type": "gemma2", **sizes, "head_dim": 32})
    assert kinds(gemma2.layers) == "sliding full sliding full"
    assert gemma2.layers[0] == plan.Layer("sliding", 4, 32, 32, 4096)
    assert not any("norm" in info.name and "q_" in info.name for info in gemma2.tensors)


def test_a_window_without_a_pattern_is_counted_in_full_and_said() -> None:
    keys = {"general.architecture": "x", "x.block_count": 1, "x.embedding_length": 64,
            "x.attention.head_count": 4, "x.attention.sliding_window": 10}  # fmt: skip
    assert kinds(plan.layers_of(keys)) == "full"
    model = plan.Model("x", "", keys, (), plan.layers_of(keys), notes=plan.layers.notes_of(keys))
    assert "10 tokens" in plan.make(model, ["Q8_0"]).notes[0]


def test_what_has_both_kinds_in_one_layer_is_refused() -> None:
    with pytest.raises(ModelError, match="falcon-h1"):
        layers("falcon-h1")
