"""Recipes against tables worked out by hand from the rules that docs/cli.md states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant.errors import FormatError, ModelError
from kvant.formats import format_info, formats
from kvant.recipes import TensorInfo, may_quantize, parse_override, plan, recipe, recipes, role_of

Infos = list[TensorInfo]


def metadata(arch: str, layers: int, heads: int, kv_heads: int, experts: int = 0) -> dict[str, Any]:
    found = {
        "general.architecture": arch,
        f"{arch}.block_count": layers,
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv_heads,
    }
    return found | ({f"{arch}.expert_count": experts} if experts else {})


def model(layers: int, *, experts: int = 0, tied: bool = False, cols: int = 256) -> Infos:
    tensors = [("token_embd.weight", (500, cols)), ("output_norm.weight", (cols,))]
    if not tied:
        tensors.append(("output.weight", (500, cols)))
    for i in range(layers):
        names = ["attn_q", "attn_k", "attn_v", "attn_output"]
        tensors += [(f"blk.{i}.{name}.weight", (64, cols)) for name in names]
        tensors.append((f"blk.{i}.attn_norm.weight", (cols,)))
        if experts:
            tensors.append((f"blk.{i}.ffn_gate_inp.weight", (experts, cols)))
        stack, end = ((experts,), "_exps") if experts else ((), "")
        for kind in ("gate", "up", "down"):
            tensors.append((f"blk.{i}.ffn_{kind}{end}.weight", (*stack, 64, cols)))
    return [TensorInfo(n, s, "f32" if "norm" in n or "_inp" in n else "bf16") for n, s in tensors]


def column(found: dict[str, str], part: str, layers: int) -> list[str]:
    return [found[f"blk.{i}.{part}.weight"] for i in range(layers)]


def where(formats: Sequence[str], format: str) -> list[int]:
    return [index for index, found in enumerate(formats) if found == format]


DENSE = metadata("llama", 16, 32, 8)


def test_q4_k_m_gives_more_bits_to_the_ends_and_every_third_layer() -> None:
    found = plan("Q4_K_M", DENSE, model(16))
    for part in ("attn_v", "ffn_down"):
        formats = column(found, part, 16)
        assert where(formats, "q6_k") == [0, 1, 4, 7, 10, 13, 14, 15]
        assert where(formats, "q4_k") == [2, 3, 5, 6, 8, 9, 11, 12]
    for part in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert set(column(found, part, 16)) == {"q4_k"}
    assert found["output.weight"] == "q6_k"
    assert found["token_embd.weight"] == "q4_k"
    assert found["blk.0.attn_norm.weight"] == "f32"


# type, attn_v, ffn_down, attn_output: layer by layer for 16 layers with four heads to a key
BY_LAYER = [
    ("Q2_K", ["q4_k"] * 16, ["q3_k"] * 16, ["q3_k"] * 16),
    ("Q3_K_S", ["q3_k"] * 16, ["q3_k"] * 16, ["q3_k"] * 16),
    ("Q3_K_M", ["q5_k"] * 2 + ["q4_k"] * 14, ["q5_k"] + ["q4_k"] * 15, ["q4_k"] * 16),
    ("Q3_K_L", ["q5_k"] * 16, ["q5_k"] * 16, ["q5_k"] * 16),
    ("Q4_K_S", ["q5_k"] * 4 + ["q4_k"] * 12, ["q5_k"] * 2 + ["q4_k"] * 14, ["q4_k"] * 16),
    ("Q5_K_S", ["q5_k"] * 16, ["q5_k"] * 16, ["q5_k"] * 16),
    ("Q6_K", ["q6_k"] * 16, ["q6_k"] * 16, ["q6_k"] * 16),
    ("IQ4_XS", ["q5_k"] * 16, ["q5_k"] * 2 + ["iq4_xs"] * 14, ["iq4_xs"] * 16),
    ("IQ4_NL", ["q5_k"] * 16, ["q5_k"] * 2 + ["iq4_nl"] * 14, ["iq4_nl"] * 16),
    ("Q4_0", ["q4_0"] * 16, ["q4_0"] * 16, ["q4_0"] * 16),
    ("TQ1_0", ["tq1_0"] * 16, ["tq1_0"] * 16, ["tq1_0"] * 16),
]


@pytest.mark.parametrize(("type", "v", "down", "output"), BY_LAYER)
def test_dense_model_layer_by_layer(
    type: str, v: list[str], down: list[str], output: list[str]
) -> None:
    found = plan(type, DENSE, model(16))
    assert column(found, "attn_v", 16) == v
    assert column(found, "ffn_down", 16) == down
    assert column(found, "attn_output", 16) == output


def test_an_importance_matrix_changes_some_recipes() -> None:
    iq4 = plan("IQ4_XS", DENSE, model(16), has_imatrix=True)
    assert set(column(iq4, "ffn_down", 16)) == {"iq4_xs"}
    q4_0 = plan("Q4_0", DENSE, model(16), has_imatrix=True)
    assert column(q4_0, "ffn_down", 16) == ["q4_1"] * 2 + ["q4_0"] * 14
    q5_0 = plan("Q5_0", DENSE, model(16), has_imatrix=True)
    assert column(q5_0, "ffn_down", 16) == ["q5_1"] * 2 + ["q5_0"] * 14
    assert plan("Q4_K_M", DENSE, model(16), has_imatrix=True) == plan("Q4_K_M", DENSE, model(16))


def test_few_heads_to_a_key_give_attn_v_no_bonus() -> None:
    narrow = metadata("llama", 16, 12, 4)
    assert set(column(plan("Q2_K", narrow, model(16)), "attn_v", 16)) == {"q3_k"}
    assert set(column(plan("IQ4_XS", narrow, model(16)), "attn_v", 16)) == {"iq4_xs"}


def test_eight_experts_keep_attention_precise() -> None:
    keys = metadata("llama", 8, 8, 2, experts=8)
    found = plan("Q4_K_M", keys, model(8, experts=8))
    assert set(column(found, "attn_v", 8)) == set(column(found, "attn_k", 8)) == {"q8_0"}
    assert set(column(found, "attn_output", 8)) == {"q5_k"}
    assert set(column(found, "attn_q", 8)) == {"q4_k"}
    assert where(column(found, "ffn_down_exps", 8), "q6_k") == [0, 3, 6, 7]
    assert set(column(found, "ffn_gate_inp", 8)) == {"f32"}
    q3_k_l = plan("Q3_K_L", keys, model(8, experts=8))
    assert set(column(q3_k_l, "attn_output", 8)) == {"q3_k"}
    sixteen = plan("Q4_K_M", metadata("llama", 8, 8, 2, experts=16), model(8, experts=16))
    assert set(column(sixteen, "attn_k", 8)) == {"q4_k"}
    assert set(column(sixteen, "attn_output", 8)) == {"q4_k"}


def test_layers_of_experts_are_told_by_name() -> None:
    keys = metadata("qwen3moe", 8, 8, 2, experts=16)
    tensors = [t for t in model(8, experts=16) if "blk.0.ffn_down" not in t.name]
    found = plan("Q4_K_M", keys, tensors)
    formats = [found[f"blk.{i}.ffn_down_exps.weight"] for i in range(1, 8)]
    assert [i + 1 for i in where(formats, "q6_k")] == [3, 6, 7]
    stray = [*tensors, TensorInfo("blk.8.ffn_down.weight", (64, 256), "bf16")]
    with pytest.raises(ModelError, match=r"blk\.8"):
        plan("Q4_K_M", keys, stray)


def test_mxfp4_moe_is_for_experts_only() -> None:
    found = plan("MXFP4_MOE", metadata("qwen3moe", 2, 8, 2, experts=4), model(2, experts=4))
    assert found["blk.1.ffn_up_exps.weight"] == "mxfp4"
    assert found["blk.1.attn_q.weight"] == "q8_0"
    assert found["token_embd.weight"] == found["output.weight"] == "q8_0"
    assert set(plan("MXFP4_MOE", DENSE, model(16)).values()) == {"q8_0", "f32"}


def test_a_tied_embedding_is_treated_as_the_output() -> None:
    tied = plan("Q4_K_M", DENSE, model(16, tied=True))
    assert tied["token_embd.weight"] == "q6_k"
    assert plan("TQ2_0", DENSE, model(16))["token_embd.weight"] == "q4_k"
    assert plan("TQ2_0", DENSE, model(16, tied=True))["token_embd.weight"] == "q6_k"
    assert plan("Q8_0", DENSE, model(16, tied=True))["token_embd.weight"] == "q8_0"


def test_seventy_billion_models_get_better_values() -> None:
    big = metadata("llama", 80, 64, 8)
    found = column(plan("Q4_K_M", big, model(80)), "attn_v", 80)
    assert set(found) == {"q5_k", "q6_k"}
    assert set(column(plan("Q3_K_S", big, model(80)), "attn_v", 80)) == {"q5_k"}
    plain = metadata("llama", 80, 64, 64)
    assert set(column(plan("Q3_K_S", plain, model(80)), "attn_v", 80)) == {"q3_k"}


@pytest.mark.parametrize(
    ("cols", "expected"),
    [
        (96, {"ffn_up": "q5_0", "attn_v": "q8_0", "output": "q8_0"}),
        (172, {"ffn_up": "f16", "attn_v": "f16", "output": "f16"}),
        (512, {"ffn_up": "q4_k", "attn_v": "q6_k", "output": "q6_k"}),
    ],
)
def test_rows_that_are_no_whole_blocks_fall_back(cols: int, expected: dict[str, str]) -> None:
    found = plan("Q4_K_M", DENSE, model(16, cols=cols))
    assert found["blk.0.ffn_up.weight"] == expected["ffn_up"]
    assert found["blk.0.attn_v.weight"] == expected["attn_v"]
    assert found["output.weight"] == expected["output"]


@pytest.mark.parametrize(
    ("format", "fallback"),
    [("q2_k", "q4_0"), ("q5_k", "q5_1"), ("iq4_xs", "iq4_nl"), ("nvfp4", "q4_0"), ("mxfp4", "f16")],
)
def test_fallback_of_a_single_format(format: str, fallback: str) -> None:
    cols = 96 if format != "mxfp4" else 48
    info = [TensorInfo("blk.0.ffn_up.weight", (4, cols), "f32")]
    assert plan(format, {}, info) == {"blk.0.ffn_up.weight": fallback}


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_q_norm.weight",
        "blk.0.ffn_gate_inp.weight",
        "blk.0.ssm_conv1d.weight",
        "position_embd.weight",
        "blk.0.time_mix_w1.weight",
        "blk.0.attn_q.bias",
        "v.patch_embd.weight",
    ],
)
def test_special_tensors_are_kept(name: str) -> None:
    assert not may_quantize(TensorInfo(name, (64, 256), "f32"))
    assert plan("Q4_K_M", DENSE, [TensorInfo(name, (64, 256), "f32")]) == {name: "f32"}
    assert plan(
        "Q4_K_M", DENSE, [TensorInfo(name, (64, 256), "f32")], overrides=[("", "q8_0")]
    ) == {name: "f32"}


def test_what_counts_as_a_matrix() -> None:
    name = "blk.0.ffn_up.weight"
    assert not may_quantize(TensorInfo(name, (256,), "f32"))
    assert not may_quantize(TensorInfo(name, (1, 256), "f32"))
    assert may_quantize(TensorInfo(name, (2, 1, 256), "f32"))
    assert plan("Q4_0", {}, [TensorInfo(name, (4, 256), "i32")]) == {name: "i32"}


def test_overrides_first_match_wins_and_falls_back() -> None:
    overrides = [(r"blk\.0\.ffn", "q8_0"), ("ffn", "q2_k"), ("attn_v", "q5_0")]
    found = plan("Q4_K_M", DENSE, model(16), overrides=overrides)
    assert found["blk.0.ffn_down.weight"] == "q8_0"
    assert found["blk.1.ffn_down.weight"] == "q2_k"
    assert set(column(found, "attn_v", 16)) == {"q5_0"}
    assert found["blk.0.attn_q.weight"] == "q4_k"
    odd = plan("Q4_K_M", DENSE, model(1, cols=96), overrides=overrides)
    assert odd["blk.0.ffn_down.weight"] == "q8_0"
    assert plan("F16", DENSE, model(1), overrides=overrides)["blk.0.ffn_up.weight"] == "f16"


def test_an_overridden_tensor_is_not_counted() -> None:
    # llama-quantize counts only tensors that go through the recipe's own rules.
    found = plan("Q3_K_M", DENSE, model(16), overrides=[(r"blk\.0\.attn_v", "q8_0")])
    assert where(column(found, "attn_v", 16), "q5_k") == [1, 2]


def test_pure_and_uniform_use_one_format() -> None:
    pure = plan("Q4_K_M", DENSE, model(16), pure=True)
    assert set(pure.values()) == {"q4_k", "f32"}
    assert pure == plan("q4_k", DENSE, model(16))


@given(st.permutations(model(4)))
def test_the_order_of_the_tensors_does_not_matter(tensors: Infos) -> None:
    keys = metadata("llama", 4, 8, 2)
    found = plan("Q4_K_M", keys, tensors)
    assert list(found.items()) == list(plan("Q4_K_M", keys, model(4)).items())
    assert list(found)[:3] == ["output.weight", "output_norm.weight", "token_embd.weight"]


@given(
    st.sampled_from([r.name for r in recipes()] + [f.name for f in formats()]),
    st.sampled_from([32, 64, 96, 100, 128, 172, 256, 768]),
    st.sampled_from([0, 4, 8]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_every_plan_can_be_written(
    type: str, cols: int, experts: int, tied: bool, imatrix: bool, pure: bool
) -> None:
    tensors = model(3, experts=experts, tied=tied, cols=cols)
    keys = metadata("llama", 3, 8, 2, experts)
    found = plan(type, keys, tensors, has_imatrix=imatrix, pure=pure)
    assert set(found) == {t.name for t in tensors}
    for info in tensors:
        assert info.shape[-1] % format_info(found[info.name]).block == 0
        if not may_quantize(info):
            assert found[info.name] == info.format


def test_names() -> None:
    assert recipe("q4_k_m").name == "Q4_K_M"
    assert recipe("Q4_0").family == "mix"
    assert recipe("q4_0").family == "uniform"
    assert recipe("NVFP4").family == "uniform"
    assert recipe("Q5_K").name == "Q5_K_M"
    with pytest.raises(FormatError, match=r"\[recipe\] expected .*Q4_K_M.*'q4_x'"):
        recipe("q4_x")
    assert len({r.file_type for r in recipes()}) == len(recipes())


def test_overrides_are_checked() -> None:
    assert parse_override(r"blk\.(0|1)\.x=y=Q6_K") == (r"blk\.(0|1)\.x=y", "q6_k")
    for bad in ("ffn_down", "=q6_k", "ffn_down=", "ffn(=q6_k", "ffn=q9_z"):
        with pytest.raises(FormatError):
            parse_override(bad)


def test_roles() -> None:
    assert role_of("output.weight") == "output"
    assert role_of("per_layer_token_embd.weight") == "token_embd"
    assert role_of("blk.0.attn_kv_b.weight") == "v"
    assert role_of("blk.0.ffn_up_shexp.weight") == "ffn_up"
    assert role_of("blk.0.ssm_in.weight") == "other"
