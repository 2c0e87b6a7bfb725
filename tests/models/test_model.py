"""The decoder as a whole, on random models."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import ARCHITECTURE_NAMES, metadata, random_model, tensors

from kvant.errors import Error, ModelError, ShapeError
from kvant.models import Model

TOKENS = [7, 0, 299, 12, 12, 45, 101]
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURE_NAMES)


@each_architecture
def test_later_tokens_do_not_change_earlier_logits(architecture: str) -> None:
    model = random_model(architecture)
    whole = model.logits(TOKENS)
    assert whole.shape == (7, 300)
    assert whole.dtype == np.float32
    for count in (1, 4):
        np.testing.assert_array_equal(model.logits(TOKENS[:count]), whole[:count])


@each_architecture
def test_order_of_tokens_matters(architecture: str) -> None:
    model = random_model(architecture)
    swapped = [TOKENS[1], TOKENS[0], *TOKENS[2:]]
    assert np.abs(model.logits(swapped)[-1] - model.logits(TOKENS)[-1]).max() > 1e-2


@each_architecture
def test_generate_takes_the_best_token_of_the_whole_sequence(architecture: str) -> None:
    model = random_model(architecture)
    new = model.generate(TOKENS, 12)
    assert len(new) == 12
    sequence = TOKENS + new
    best = model.logits(sequence).argmax(-1)
    assert best[len(TOKENS) - 1 : -1].tolist() == new


def test_a_seed_fixes_the_draws() -> None:
    model = random_model("qwen3")

    def draw(seed: int) -> list[int]:
        return model.generate(TOKENS, 20, temperature=2.0, seed=seed)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_a_narrow_nucleus_is_the_best_token() -> None:
    model = random_model("llama")
    drawn = model.generate(TOKENS, 10, temperature=1.0, top_p=1e-6, seed=3)
    assert drawn == model.generate(TOKENS, 10)


def test_draws_follow_the_probabilities() -> None:
    model = random_model("llama")
    scores = model.logits(TOKENS)[-1].astype(np.float64) / 0.7
    probability = np.exp(scores - scores.max())
    probability /= probability.sum()
    best = int(probability.argmax())
    runs = 300
    hits = sum(model.generate(TOKENS, 1, temperature=0.7, seed=s) == [best] for s in range(runs))
    spread = np.sqrt(runs * probability[best] * (1 - probability[best]))
    assert abs(hits - runs * probability[best]) < 4 * spread


def test_the_end_of_text_ends_generation() -> None:
    keys = metadata("llama")
    weights = tensors(keys)
    free = Model(keys, weights).generate(TOKENS, 10)
    stop = free[4]
    model = Model({**keys, "tokenizer.ggml.eos_token_id": np.uint32(stop)}, weights)
    assert model.generate(TOKENS, 10) == free[: free.index(stop)]


def test_an_own_head_replaces_the_embedding() -> None:
    keys = metadata("qwen3")
    weights = tensors(keys)
    head = weights["token_embd.weight"]
    tied = Model(keys, weights).logits(TOKENS)
    own = Model(keys, weights | {"output.weight": head[::-1].copy()}).logits(TOKENS)
    np.testing.assert_allclose(own[:, ::-1], tied, atol=1e-5)


def test_biases_and_rope_factors_are_used() -> None:
    keys = metadata("llama")
    weights = tensors(keys)
    plain = Model(keys, weights).logits(TOKENS)
    for name, size in (
        ("blk.1.attn_q.bias", 48),
        ("blk.0.ffn_down.bias", 32),
        ("rope_freqs.weight", 6),
    ):
        changed = Model(keys, weights | {name: np.full(size, 3, dtype=np.float32)}).logits(TOKENS)
        assert np.abs(changed - plain).max() > 1e-3, name


def test_replaced_weights_are_used_and_the_rest_is_shared() -> None:
    model = random_model("qwen3moe")
    before = model.logits(TOKENS)
    name = "blk.1.ffn_up_exps.weight"
    variant = model.with_weights({name: np.zeros_like(model.tensors[name])})
    assert np.abs(variant.logits(TOKENS) - before).max() > 1e-3
    np.testing.assert_array_equal(model.logits(TOKENS), before)
    assert variant.tensors["output_norm.weight"] is model.tensors["output_norm.weight"]
    assert list(variant.tensors) == list(model.tensors)
    again = variant.with_weights({name: model.tensors[name]})
    np.testing.assert_array_equal(again.logits(TOKENS), before)


def test_replacing_refuses_strange_names_and_shapes() -> None:
    model = random_model("llama")
    with pytest.raises(ModelError, match=r"\[with_weights\] .* got 'blk.9.attn_q.weight'"):
        model.with_weights({"blk.9.attn_q.weight": np.zeros((48, 32), dtype=np.float32)})
    with pytest.raises(ShapeError, match=r"\[with_weights\] expected shape \(48, 32\)"):
        model.with_weights({"blk.0.attn_q.weight": np.zeros((32, 48), dtype=np.float32)})


@each_architecture
def test_an_observer_sees_the_input_of_every_product(architecture: str) -> None:
    model = random_model(architecture)
    rows: dict[str, int] = {}

    def count(name: str, x: np.ndarray, expert: int | None) -> None:
        shape = model.tensors[name].shape
        assert x.shape[1:] == (shape[-1],)
        assert (expert is not None) == (len(shape) == 3)
        rows[name] = rows.get(name, 0) + len(x)

    quiet = model.logits(TOKENS)
    np.testing.assert_array_equal(model.logits(TOKENS, observe=count), quiet)
    matrices = {
        name
        for name, tensor in model.tensors.items()
        if len(tensor.shape) > 1 and name.endswith(".weight")
    }
    assert set(rows) == matrices
    for name, seen in rows.items():
        assert seen == len(TOKENS) * (2 if "_exps." in name else 1), name


def test_inputs_stay_as_they_were() -> None:
    keys = metadata("qwen3moe")
    weights = tensors(keys)
    copies = {name: value.copy() for name, value in weights.items()}
    tokens = np.array(TOKENS)
    model = Model(keys, weights)
    model.logits(tokens)
    model.generate(tokens, 3)
    assert tokens.tolist() == TOKENS
    for name, value in weights.items():
        np.testing.assert_array_equal(value, copies[name])
        assert value.flags.writeable


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([], ShapeError, r"expected a row of one or more integers"),
        ([[1, 2]], ShapeError, r"got int64 \[1, 2\]"),
        ([1.0], ShapeError, r"got float64 \[1\]"),
        ([-1], ModelError, r"expected tokens below 300, got -1"),
        ([5, 300], ModelError, r"expected tokens below 300, got 300"),
        ([1] * 65, ModelError, r"expected at most 64 tokens \(context_length\), got 65"),
    ],
)
def test_logits_refuses(tokens: list[int], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=r"\[logits\] .*" + message.removeprefix("expected ")):
        random_model("llama").logits(tokens)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1}, "got 7 \\+ -1"),
        ({"n": 58}, "expected at most 64 tokens in all"),
        ({"n": 1, "temperature": -0.5}, "temperature >= 0"),
        ({"n": 1, "temperature": float("nan")}, "temperature >= 0"),
        ({"n": 1, "top_p": 0.0}, "top_p"),
        ({"n": 1, "top_p": 1.5}, "top_p"),
    ],
)
def test_generate_refuses_at_once(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ModelError, match=r"\[generate\] .*" + message):
        random_model("llama").stream(TOKENS, **arguments)  # type: ignore[arg-type]


def test_the_context_can_be_filled() -> None:
    assert len(random_model("llama").generate(TOKENS, 57)) == 57


@each_architecture
def test_every_missing_tensor_is_named(architecture: str) -> None:
    keys = metadata(architecture)
    weights = tensors(keys)
    for name in weights:
        rest = {n: w for n, w in weights.items() if n != name}
        with pytest.raises(ModelError, match=rf"expected the tensor '{name}', got none"):
            Model(keys, rest)
        with pytest.raises(ShapeError, match=rf"for {name}, got"):
            Model(keys, rest | {name: np.zeros((1, 2, 3), dtype=np.float32)})


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("llama", {"block_count": None}, "expected the key 'llama.block_count'"),
        ("llama", {"embedding_length": 0}, "positive integer"),
        ("llama", {"embedding_length": "wide"}, "positive integer"),
        ("llama", {"attention__head_count": [4, 4]}, "positive integer"),
        ("llama", {"attention__head_count_kv": 3}, "multiple of 3"),
        ("llama", {"attention__layer_norm_rms_epsilon": float("nan")}, "positive number"),
        ("llama", {"rope__dimension_count": 6}, "rope over all 12"),
        ("llama", {"rope__scaling__type": "longrope"}, "none, linear or yarn, got longrope"),
        ("llama", {"expert_count": 8}, "llama.expert_count = 0, got 8"),
        ("qwen3", {"attention__sliding_window": 32}, "full attention"),
        ("qwen3moe", {"expert_used_count": 7}, "expert_used_count <= 6"),
        ("qwen3moe", {"expert_gating_func": 2}, "qwen3moe.expert_gating_func = 1"),
        ("qwen3moe", {"expert_weights_norm": False}, "expert_weights_norm = True"),
        ("llama", {"block_count": np.float32(np.inf)}, "positive integer"),
        ("llama", {"expert_count": [1, 2]}, "expert_count = 0"),
        ("llama", {"rope__freq_base": 0.5}, "at least 1"),
        ("llama", {"rope__freq_base_swa": 77.0}, "freq_base_swa = 1000"),
        ("llama", {"attention__sliding_window": np.uint64(2**64 - 1)}, "below 2"),
        ("llama", {"attention__sliding_window": [1, 2]}, "integer of 0 or more"),
        ("llama", {"attention__scale": 0.3}, "attention.scale = 0.0"),
        ("olmoe", {"feed_forward_length": [1, 2]}, "integer of 0 or more"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "softcapping = 0.0"),
        ("gemma3", {"attention__sliding_window_pattern": 2}, "pattern = 6"),
        ("gemma3", {"rope__scaling__type": "yarn"}, "none or linear in gemma3"),
        ("qwen3", {"rope__scaling__type": "yarn", "rope__scaling__attn_factor": 2.0}, "attn_fac"),
        ("qwen3", {"rope__scaling__type": "yarn", "rope__freq_base": 1.0}, "at least 1.001"),
    ],
)
def test_a_model_that_cannot_be_run_is_refused(
    architecture: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=r"\[load\] .*" + message):
        Model(metadata(architecture, **changes), {})


@pytest.mark.parametrize(
    ("architecture", "name", "shape"),
    [
        ("llama", "blk.0.attn_q_norm.weight", (12,)),
        ("qwen3moe", "blk.0.ffn_gate_inp.bias", (6,)),
        ("qwen3moe", "blk.1.ffn_up_exps.bias", (6, 20)),
    ],
)
def test_a_tensor_that_would_not_be_used_is_refused(
    architecture: str, name: str, shape: tuple[int, ...]
) -> None:
    keys = metadata(architecture)
    with pytest.raises(ModelError, match=f"only tensors that are used, got '{name}'"):
        Model(keys, tensors(keys) | {name: np.ones(shape, np.float32)})


def test_the_end_of_text_must_be_a_token() -> None:
    keys = metadata("llama")
    with pytest.raises(ModelError, match="whole number for eos_token_id"):
        Model(keys | {"tokenizer.ggml.eos_token_id": [1, 2]}, tensors(keys))


def test_nan_is_no_token() -> None:
    keys = metadata("llama")
    weights = tensors(keys)
    weights["output_norm.weight"] = np.full(32, np.nan, np.float32)
    for temperature in (0.0, 1.0):
        with pytest.raises(Error, match="got NaN"):
            Model(keys, weights).generate(TOKENS, 2, temperature=temperature)


def test_a_session_wants_tokens() -> None:
    with pytest.raises(ShapeError, match="at least one token"):
        random_model("llama").start().feed(np.array([], np.int64))


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(ModelError, match=r"of llama, qwen2, .*, gpt-oss, got mamba"):
        Model({"general.architecture": "mamba"}, {})


@given(st.integers(0, 63), st.integers(1, 40))
def test_linear_rope_scaling_stretches_positions(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 300, count)
    keys = metadata("llama")
    weights = tensors(keys)
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    factors = {"rope_freqs.weight": np.full(6, 4, dtype=np.float32)}
    scaled = Model(keys | scaling, weights).logits(tokens)
    for old in ({"llama.rope.scaling.factor": 4.0}, {"llama.rope.scale_linear": 4.0}):
        np.testing.assert_array_equal(Model(keys | old, weights).logits(tokens), scaled)
    np.testing.assert_allclose(scaled, Model(keys, weights | factors).logits(tokens), atol=2e-5)
