"""Weights: to the byte what files have."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_configs import CONFIGS
from tiny_model import write_model

from kvant import gguf, plan
from kvant.gguf.types import tensor_type_named
from kvant.qtensor import QTensor
from kvant.quantize_file import quantize_file
from kvant.recipes import TensorInfo

RECIPES = ("F32", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_L", "Q2_K", "nvfp4")
KEYS = {"general.architecture": "llama", "llama.block_count": 3, "llama.embedding_length": 64,
        "llama.attention.head_count": 4}  # fmt: skip


def data_bytes(path: Path) -> int:
    """The data section of a file, which ends with the file."""
    with gguf.open(path) as file:
        first = min(file.tensors.info(name).start for name in file.tensors)
    return path.stat().st_size - first


def model_of(path: Path) -> plan.Model:
    with gguf.open(path) as file:
        return plan.from_gguf(file)


def write(path: Path, metadata: object, infos: object, alignment: int = 32) -> Path:
    tensors = {}
    for name, shape, format in infos:  # type: ignore[attr-defined]
        kind = tensor_type_named(format)
        assert kind is not None
        data = np.zeros(kind.nbytes(math.prod(shape)), np.uint8)
        tensors[name] = QTensor.from_bytes(data, format, shape)
    gguf.write(path, metadata, tensors, alignment=alignment)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module", params=[0, 4, 8], ids=["dense", "experts", "eight"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    return write_model(folder / "source.gguf", experts=request.param)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_the_bytes_of_the_file_it_makes(
    source: Path, recipe: str, tmp_path: Path
) -> None:
    made = tmp_path / "made.gguf"
    summary = quantize_file(source, made, recipe)
    planned = plan.weights(model_of(source), recipe)
    assert planned.bytes == data_bytes(made) == plan.weights(model_of(made)).bytes
    assert sum(planned.formats.values()) == summary.bytes
    assert planned.bits_per_weight == summary.bits_per_weight
    assert model_of(made).file_bytes == made.stat().st_size


def test_overrides_and_imatrix_are_those_of_recipes(source: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    overrides = [("ffn_down", "q5_1"), ("attn_k", "q8_0")]
    quantize_file(source, made, "Q4_K_S", overrides=overrides)
    planned = plan.weights(model_of(source), "Q4_K_S", overrides=overrides)
    assert planned.bytes == data_bytes(made)
    plain, weighted = (plan.weights(model_of(source), "IQ4_XS", imatrix=i) for i in (False, True))
    assert plain.bytes >= weighted.bytes


@given(
    rows=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=6),
    format=st.sampled_from(["f32", "f16", "q8_0", "q4_k", "iq1_s"]),
    alignment=st.sampled_from([8, 32, 256]),
)
def test_any_file_as_it_is(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, int]],
    format: str,
    alignment: int,
) -> None:
    block = gguf.types.tensor_type_named(format).block  # type: ignore[union-attr]
    infos = [(f"blk.{i}.t.weight", (r, c * block), format) for i, (r, c) in enumerate(rows)]
    path = write(tmp_path_factory.mktemp("any") / "a.gguf", KEYS, infos, alignment)
    assert plan.weights(model_of(path)).bytes == data_bytes(path)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_and_a_file_of_it_are_the_same_model(kind: str, tmp_path: Path) -> None:
    model = plan.from_config(CONFIGS[kind])
    read = model_of(write(tmp_path / "a.gguf", model.metadata, model.tensors))
    assert read.layers == model.layers
    assert read.tensors == model.tensors
    assert (read.context, read.experts, read.trunk) == (1000, model.experts, 6)
    assert len({info.name for info in model.tensors}) == len(model.tensors)
    for recipe in ("Q8_0", "Q4_K_M", "MXFP4_MOE"):
        assert plan.weights(read, recipe) == plan.weights(model, recipe)


def test_every_model_type_has_a_small_config() -> None:
    assert set(CONFIGS) == set(plan.MODEL_TYPES)


def test_a_token_reads_its_experts_one_row_of_tables_and_no_guessing_layer() -> None:
    infos = [
        ("token_embd.weight", (100, 64), "f32"),
        ("output.weight", (100, 64), "f32"),
        ("blk.0.attn_q.weight", (64, 64), "f32"),
        ("blk.0.ffn_up_exps.weight", (8, 32, 64), "f32"),
        ("blk.1.nextn.eh_proj.weight", (64, 128), "f32"),
    ]
    keys = {**KEYS, "llama.block_count": 2, "llama.nextn_predict_layers": 1,
            "llama.expert_count": 8, "llama.expert_used_count": 2}  # fmt: skip
    layers = plan.layers_of(keys)
    assert len(layers) == 1
    model = plan.Model("m", "", keys, tuple(TensorInfo(*info) for info in infos), layers)
    w = plan.weights(model)
    assert {name: part.read for name, part in w.parts.items()} == {
        "embedding": 256, "attention": 16384, "experts": 2 * 32 * 64 * 4, "output": 25600,
        "other": 0,
    }  # fmt: skip
    tied = plan.Model("m", "", keys, model.tensors[:1], layers)
    assert plan.weights(tied).read == 25600
