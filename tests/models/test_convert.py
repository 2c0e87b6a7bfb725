"""Hugging Face folders to GGUF."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import (
    ARCHITECTURE_NAMES,
    WITH_EXPERTS,
    byte_tokenizer,
    hf_config,
    hf_folder,
    hf_tensors,
)

from kvant import gguf, models
from kvant.convert import convert
from kvant.convert.dtypes import convert_bytes
from kvant.errors import Error, FormatError, ModelError
from support import shared_path


@pytest.mark.parametrize("name", ["tiny-moe", "novels-dense"])
def test_trained_folders_give_the_shipped_file_byte_for_byte(tmp_path: Path, name: str) -> None:
    folder = shared_path(f"models/{name}")
    # The folder has no tokenizer_config.json, so it cannot say that texts begin with BOS.
    convert(folder, tmp_path / "model.gguf", add_bos=True)
    assert (tmp_path / "model.gguf").read_bytes() == (folder / "model.gguf").read_bytes()


@pytest.mark.parametrize("architecture", ARCHITECTURE_NAMES)
def test_metadata_and_types(tmp_path: Path, architecture: str) -> None:
    folder = hf_folder(tmp_path / "somebody", architecture)
    convert(folder, tmp_path / "a.gguf", "f16")
    with gguf.open(tmp_path / "a.gguf") as file:
        keys = dict(file.metadata)
        types = {name: getattr(t, "format", "f32") for name, t in file.tensors.items()}
        shapes = {name: tuple(t.shape) for name, t in file.tensors.items()}
    expected = {
        "context_length": np.uint32(64),
        "embedding_length": np.uint32(32),
        "block_count": np.uint32(2),
        "feed_forward_length": np.uint32(48),
        "attention.head_count": np.uint32(4),
        "attention.head_count_kv": np.uint32(2),
        "attention.key_length": np.uint32(12),
        "attention.value_length": np.uint32(12),
        "attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "rope.freq_base": np.float32(1000),
        "vocab_size": np.uint32(300),
    }
    if architecture == "llama":
        expected["rope.dimension_count"] = np.uint32(12)
    if architecture in WITH_EXPERTS:
        width = 20 if architecture == "qwen3moe" else 48
        expected |= {"expert_count": np.uint32(6), "expert_used_count": np.uint32(2)}
        expected |= {"expert_feed_forward_length": np.uint32(width)}
        assert shapes["blk.1.ffn_down_exps.weight"] == (6, 32, width)
    if architecture in ("qwen2", "olmoe"):
        expected |= {f"attention.{part}_length": np.uint32(8) for part in ("key", "value")}
    if architecture == "olmoe":
        expected["attention.head_count_kv"] = np.uint32(4)
    if architecture in ("gemma3", "gpt-oss"):
        expected["attention.sliding_window"] = np.uint32(7)
    if architecture == "gemma3":
        expected |= {"block_count": np.uint32(7), "rope.freq_base_swa": np.float32(100)}
    if architecture == "gpt-oss":
        expected |= {"rope.scaling.type": "yarn", "rope.scaling.factor": np.float32(4)}
        expected["rope.scaling.original_context_length"] = np.uint32(16)
    found = {
        k.removeprefix(f"{architecture}."): v for k, v in keys.items() if architecture + "." in k
    }
    assert found == expected
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in expected.items()}
    assert keys["general.architecture"] == architecture
    assert keys["general.name"] == "somebody"
    assert keys["general.file_type"] == 1
    assert keys["tokenizer.ggml.pre"] == "gpt-2"
    assert len(keys["tokenizer.ggml.tokens"]) == 300
    for name, kind in types.items():
        small = name.endswith(".bias") or len(shapes[name]) == 1 or "ffn_gate_inp" in name
        assert kind == ("f32" if small else "f16"), name


@pytest.mark.parametrize("architecture", ARCHITECTURE_NAMES)
def test_the_tokenizer_survives(tmp_path: Path, architecture: str) -> None:
    convert(hf_folder(tmp_path / "hf", architecture), tmp_path / "a.gguf")
    tokenizer = models.load(tmp_path / "a.gguf").tokenizer
    text = "It was the worst <|end|> of na\u00efve times, 1859!"
    assert tokenizer.encode(text) == byte_tokenizer().encode(text).ids
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (0, 0, False)


def test_tokenizer_settings_are_read(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "hf", "llama", bos_token_id=None, eos_token_id=[0, 5])
    settings = {
        "bos_token": {"content": "<|end|>"},
        "add_bos_token": True,
        "pad_token": "<|end|>",
        "chat_template": "{{ messages }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(folder, tmp_path / "a.gguf", name="other")
    with gguf.open(tmp_path / "a.gguf") as file:
        keys = dict(file.metadata)
    assert keys["general.name"] == "other"
    assert keys["tokenizer.ggml.bos_token_id"] == 0
    assert keys["tokenizer.ggml.eos_token_id"] == 0
    assert keys["tokenizer.ggml.padding_token_id"] == 0
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.chat_template"] == "{{ messages }}"


def test_a_tokenizer_with_byte_fallback_becomes_one_by_score(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "hf", "llama")
    words = ["\u2581", "t", "h", "e", "\u2581t", "he", "\u2581the"]
    tokens = ["<unk>", "<s>", *(f"<0x{b:02X}>" for b in range(256)), *words]
    source = {
        "added_tokens": [
            {"id": 0, "content": "<unk>", "special": True},
            {"id": 1, "content": "<s>", "special": True},
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
        },
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "unk_token": "<unk>",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [["\u2581", "t"], ["h", "e"], ["\u2581t", "he"]],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(source))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    convert(folder, tmp_path / "a.gguf")
    tokenizer = models.load(tmp_path / "a.gguf").tokenizer
    assert tokenizer.add_bos
    ids = tokenizer.encode("the th\u00e9", bos=True)
    assert ids == [1, 264, 262, 260, 2 + 0xC3, 2 + 0xA9]
    assert tokenizer.decode(ids) == "the th\u00e9"


@pytest.mark.parametrize("target", ["f32", "f16", "bf16"])
@given(st.lists(st.floats(width=32, allow_nan=False, max_value=6e4, min_value=-6e4), min_size=1))
def test_dtypes_round_to_nearest(target: str, numbers: list[float]) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="it rounds to bf16 independently")
    dtypes = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
    values = np.array(numbers, dtype=np.float32)
    got = convert_bytes(values.view(np.uint8), "f32", target)
    np.testing.assert_array_equal(got, values.astype(dtypes[target]).view(np.uint8))
    back = convert_bytes(got, target, "f32").view(np.float32)
    np.testing.assert_array_equal(back, values.astype(dtypes[target]).astype(np.float32))


def test_ties_go_to_the_even_bf16() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF817FFF], dtype="<u4")
    got = convert_bytes(bits.view(np.uint8), "f32", "bf16").view("<u2")
    assert got.tolist() == [0x3F80, 0x3F82, 0x3F81, 0xBF81]


@pytest.mark.parametrize("target", ["f16", "bf16"])
def test_infinities_and_nan_stay_and_overflow_is_refused(target: str) -> None:
    values = np.array([np.inf, -np.inf, np.nan], dtype=np.float32)
    values[2:].view(np.uint32)[0] = 0x7F800001  # a NaN whose kept bits are all zero
    back = convert_bytes(convert_bytes(values.view(np.uint8), "f32", target), target, "f32")
    np.testing.assert_array_equal(back.view(np.float32), values)
    large = np.array([np.finfo(np.float32).max], dtype=np.float32).view(np.uint8)
    with pytest.raises(ModelError, match=f"expected values within {target}"):
        convert_bytes(large, "f32", target)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("llama", {"architectures": ["MambaForCausalLM"]}, "got MambaForCausalLM"),
        ("llama", {"architectures": None}, "got None"),
        ("llama", {"hidden_size": None}, "hidden_size in config.json, got none"),
        ("llama", {"hidden_size": "32"}, "whole number for hidden_size"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers from 1"),
        ("llama", {"num_hidden_layers": 3}, "'model.layers.2.input_layernorm.weight', got none"),
        ("llama", {"num_hidden_layers": 1}, "known tensors, got 'model.layers.1.input_layernorm"),
        ("llama", {"num_hidden_layers": 2**40}, "from 1 to 2"),
        ("llama", {"num_hidden_layers": 2**31 - 1}, "expected 2147483647 layers"),
        ("qwen3moe", {"num_experts": 2**31 - 1}, "expected 4294967294 layers or experts"),
        ("llama", {"vocab_size": 2**31 - 1}, "for 'model.embed_tokens.weight'"),
        ("llama", {"head_dim": 16}, "expected shape \\(64, 32\\) for 'model.layers.0.self_attn.q"),
        ("llama", {"num_key_value_heads": 3}, "multiple of 3"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = silu"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config = None"),
        ("llama", {"rms_norm_eps": "small"}, "positive number for rms_norm_eps"),
        ("llama", {"rope_scaling": {"type": "dynamic"}}, "got dynamic"),
        ("llama", {"rope_scaling": {"type": "yarn", "beta_fast": 64}}, "beta_fast = 32"),
        ("gemma3", {"sliding_window_pattern": 4}, "sliding_window_pattern = 6"),
        ("gpt-oss", {"layer_types": ["full_attention"] * 2}, "every layer 2 of 2"),
        ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob = False"),
        ("gemma3", {"num_hidden_layers": 2**31 - 1}, "tensors|layers"),
        ("gpt-oss", {"num_hidden_layers": 2**31 - 1}, "every layer 2 of 2"),
        ("gpt-oss", {"swiglu_limit": 5.0}, "swiglu_limit = 7"),
        ("gemma3", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar = 12"),
        ("llama", {"rope_scaling": 4}, "object for the rope settings"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "positive number for factor"),
        ("llama", {"tie_word_embeddings": "yes"}, "true or false"),
        ("llama", {"vocab_size": 299}, "for 'model.embed_tokens.weight'"),
        ("llama", {"bos_token_id": 300}, "bos_token_id below 300"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window = False"),
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob = True"),
        ("qwen3moe", {"norm_topk_prob": None}, "norm_topk_prob = True"),
        ("qwen3moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen3moe", {"num_experts": 7}, "mlp.gate.weight'"),
        ("qwen3moe", {"num_experts_per_tok": 9}, "expert_used_count <= 6"),
    ],
)
def test_a_config_that_cannot_be_converted_is_refused(
    tmp_path: Path, architecture: str, changes: dict[str, Any], message: str
) -> None:
    folder = hf_folder(tmp_path / "hf", architecture)
    config = hf_config(architecture, **changes)
    (folder / "config.json").write_text(json.dumps(config))
    _refuses(folder, message)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "expected the file config.json"),
        ("config.json", "{", "expected JSON in config.json"),
        ("config.json", "[" * 100_000, "expected JSON in config.json"),
        ("config.json", "[1]", "expected an object in config.json, got list"),
        ("tokenizer.json", None, "expected the file tokenizer.json"),
        ("tokenizer.json", "{}", "a BPE model in tokenizer.json, got None"),
        ("tokenizer.json", '{"model": {"type": "Unigram"}}', "got Unigram"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}', "expected a vocab"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": -1}}}', "ids below 300"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": "b"}}}', "tokens with ids"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 1}}}', "merges of two"),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {"a": 1}, "merges": ["a b c"]}}',
            "merges of two parts, got 'a b c'",
        ),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {"a": 1}, "merges": []}}',
            "word pattern of gpt-2",
        ),
        ("model.safetensors", None, "expected model.safetensors or model.safetensors.index.json"),
        ("model.safetensors", "", "safetensors in model.safetensors"),
        ("model.safetensors", "\xff" * 64, "safetensors in model.safetensors"),
    ],
)
def test_a_missing_or_broken_file_is_named(
    tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    folder = hf_folder(tmp_path / "hf", "llama")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content, encoding="latin-1")
    _refuses(folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": "../model.safetensors"}, "shard '../model.safetensors'"),
        ({"model.norm.weight": "absent.safetensors"}, "shard 'absent.safetensors'"),
        ({"model.norm.weight": 3}, "weight_map of names"),
        ({"model.extra": "model-00001.safetensors"}, "'model.extra' in model-00001"),
    ],
)
def test_a_broken_index_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = hf_folder(tmp_path / "hf", "llama", shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] |= change
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _refuses(folder, message)


def test_every_missing_tensor_is_named(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = hf_folder(tmp_path / "hf", "qwen3moe")
    weights = hf_tensors(hf_config("qwen3moe"))
    for name in [*list(weights)[::5], "lm_head.weight"]:
        rest = {n: w for n, w in weights.items() if n != name}
        save_file(rest, folder / "model.safetensors")
        _refuses(folder, f"expected the tensor '{name}', got none")


def test_other_element_types_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = hf_folder(tmp_path / "hf", "llama")
    weights = hf_tensors(hf_config("llama"))
    weights["model.norm.weight"] = weights["model.norm.weight"].astype(np.float64)
    save_file(weights, folder / "model.safetensors")
    _refuses(folder, "expected F32, F16, BF16 for 'model.norm.weight', got F64")


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="dtype of f32, f16, bf16, got q4_0"):
        convert(tmp_path, tmp_path / "a.gguf", "q4_0")


def test_a_head_that_is_tied_is_not_written(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "hf", "qwen3")
    for tied, written in ((True, False), (False, True), (None, True)):
        config = hf_config("qwen3", tie_word_embeddings=tied)
        (folder / "config.json").write_text(json.dumps(config))
        convert(folder, tmp_path / "a.gguf")
        with gguf.open(tmp_path / "a.gguf") as file:
            assert ("output.weight" in file.tensors) is written


@pytest.mark.parametrize("architecture", ARCHITECTURE_NAMES)
def test_llama_cpp_loads_the_file(tmp_path: Path, architecture: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp reads what was written")
    convert(hf_folder(tmp_path / "hf", architecture), tmp_path / "a.gguf", "f32")
    peer = llama_cpp.Llama(str(tmp_path / "a.gguf"), n_ctx=64, logits_all=True, verbose=False)
    tokens = [1, 250, 9, 40]
    peer.eval(tokens)
    expected = np.array([peer.scores[i] for i in range(len(tokens))])
    got = models.load(tmp_path / "a.gguf").logits(tokens)
    peer.close()
    # llama.cpp rounds keys and values to f16.
    np.testing.assert_allclose(got, expected, atol=0.05)


def _refuses(folder: Path, message: str) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(ModelError, match=r"\[(convert|load)\] expected") as caught:
        convert(folder, folder / "out.gguf")
    assert re.search(message, str(caught.value)), str(caught.value)
    assert sorted(folder.iterdir()) == before


@given(data=st.data())
def test_one_strange_value_anywhere_gives_a_file_or_a_typed_error(
    tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "hf"
    if not folder.exists():
        hf_folder(folder, "qwen3moe")
        (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|end|>"}))
    name = data.draw(st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json"]))
    before = (folder / name).read_text()
    try:
        (folder / name).write_text(json.dumps(_with_one_change(json.loads(before), data)))
        with contextlib.suppress(Error):
            convert(folder, tmp_path / "out.gguf")
            model = models.load(tmp_path / "out.gguf")
            model.tokenizer.encode("times")
    finally:
        (folder / name).write_text(before)


def _with_one_change(root: Any, data: st.DataObject) -> Any:
    strange = st.sampled_from([None, True, -1, 0, 2**70, 1.5, "", "x", [], [0], {}, {"type": "x"}])
    node = root
    while True:
        keys = sorted(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        inner = node[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            node[key] = data.draw(strange)
            return root
        node = inner
