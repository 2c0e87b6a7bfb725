"""Files and configs that make no sense end in an error that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_configs import CONFIGS

from kvant import plan
from kvant.errors import Error, ModelError

LLAMA = CONFIGS["llama"]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(-1, 1 << 40), st.text(max_size=3)), max_size=7),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(st.sampled_from(sorted(CONFIGS)), st.data())
def test_any_value_of_any_key_is_an_error_or_a_model(kind: str, data: st.DataObject) -> None:
    config = dict(CONFIGS[kind])
    key = data.draw(st.sampled_from([*config, "layer_types", "head_dim", "text_config"]))
    config[key] = data.draw(ODD)
    if key in ("num_hidden_layers", "num_experts") and isinstance(config[key], int):
        config[key] = min(config[key], 64) if config[key] < 5000 else config[key]
    try:
        model = plan.from_config(config)
    except ModelError as error:
        assert str(error).startswith("[plan] expected ")
    else:
        assert plan.weights(model, "BF16").bytes > 0
        assert plan.kv_bytes(model.layers, 10) >= 0


@given(st.sampled_from(sorted(CONFIGS)), st.data())
def test_any_metadata_is_an_error_or_layers(kind: str, data: st.DataObject) -> None:
    metadata = dict(plan.from_config(CONFIGS[kind]).metadata)
    key = data.draw(st.sampled_from([*metadata, f"{metadata['general.architecture']}.ssm.group"]))
    metadata[key] = data.draw(ODD)
    try:
        layers = plan.layers_of(metadata)
    except ModelError as error:
        assert str(error).startswith("[plan] expected ")
    else:
        assert plan.kv_bytes(layers, 1 << 20) >= 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "expected a model_type"),
        ({"model_type": None}, "expected a model_type"),
        ({"hidden_size": 0}, "hidden_size in config.json, got 0"),
        ({"hidden_size": "64"}, "got '64'"),
        ({"vocab_size": None}, "expected the key vocab_size"),
        ({"num_hidden_layers": 10**6}, "from 1 to 4096"),
        ({"hidden_size": 2**31 - 1, "vocab_size": 2**31 - 1}, "2\\^60"),
        ({"tie_word_embeddings": 1}, "true or false"),
    ],
)
def test_messages(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        plan.from_config(LLAMA | change)


def test_orders_of_layers_that_a_file_cannot_hold_are_refused() -> None:
    for kind in ("gpt_oss", "qwen3_5_text", "gemma3_text", "llama4_text"):
        with pytest.raises(ModelError, match="layer_types"):
            plan.from_config(CONFIGS[kind] | {"layer_types": ["full_attention"] * 6})


def test_text_models_inside_others() -> None:
    inner = {k: v for k, v in CONFIGS["gemma4_text"].items() if k != "model_type"}
    outer = {"model_type": "gemma4", "text_config": {**inner, "model_type": "gemma4_text"},
             "vision_config": {}}  # fmt: skip
    assert plan.from_config(outer).tensors == plan.from_config(CONFIGS["gemma4_text"]).tensors
    tied = {"text_config": LLAMA, "tie_word_embeddings": True}
    assert "output.weight" not in {t.name for t in plan.from_config(tied).tensors}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": "llama"}', "\0"])
def test_files_of_nonsense(text: str, tmp_path: Path) -> None:
    for name in ("config.json", "model.gguf"):
        (tmp_path / name).write_text(text)
        with pytest.raises(Error):
            plan.read(tmp_path / name)


def test_ways_to_name_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    by_folder, by_file = plan.read(tmp_path), plan.read(tmp_path / "config.json")
    assert by_folder == by_file
    assert by_file.name == tmp_path.name
    with pytest.raises(ModelError, match="expected a file or a model of Gemma 4 E2B"):
        plan.read("GPT-5")
    for entry in plan.FAMILIES:
        for name in entry.names:
            assert plan.read(name.replace(" ", "-").upper()).name == name
