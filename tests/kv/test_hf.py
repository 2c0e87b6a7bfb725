"""Models of transformers whose keys and values lie in a cache, against their own caches."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from kvant import KVCache
from kvant.errors import CacheFullError, FormatError, ModelError, ShapeError
from kvant.kv import hf
from kvant.kv.hf import TransformersCache
from support import run_python

torch: Any = pytest.importorskip("torch", reason="torch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

WAYS = ["sdpa", "eager", "kvant"]
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "max_position_embeddings": 1024,
}
# Full attention; one window in all layers; windows, soft caps and a full layer; sinks of scores.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3", {}),
    "mistral": ("Mistral", {"sliding_window": 20}),
    "gemma2": (
        "Gemma2",
        {"sliding_window": 20, "query_pre_attn_scalar": 48, "attn_logit_softcapping": 3.0},
    ),
    "gpt_oss": (
        "GptOss",
        {"sliding_window": 20, "num_local_experts": 2, "num_experts_per_tok": 2},
    ),
}


@pytest.fixture(autouse=True)
def _torch_as_it_is_used() -> Iterator[None]:
    hf.register()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


@cache
def model(kind: str, way: str, seed: int = 3) -> Any:
    name, options = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**SIZES, **options)
    config._attn_implementation = way
    torch.manual_seed(seed)
    made = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for name, parameter in made.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter)
    return made


def of(made: Any, preset: str = "f32") -> TransformersCache:
    return TransformersCache.from_config(made.config, preset)


def peer_cache(made: Any) -> Any:
    return transformers.DynamicCache(config=made.config)


def ids(rows: int, tokens: int, seed: int = 1) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).integers(2, 300, (rows, tokens)))


def fed(made: Any, store: Any, tokens: Any, steps: int, mask: Any = None) -> Any:
    """Logits of all tokens, the last so many one at a time."""
    first = tokens.shape[1] - steps
    parts, done = [], 0
    for until in (first, *range(first + 1, tokens.shape[1] + 1)):
        seen = None if mask is None else mask[:, :until]
        part = made(tokens[:, done:until], past_key_values=store, attention_mask=seen)
        parts.append(part.logits)
        done = until
    return torch.cat(parts, 1)


def far(a: Any, b: Any) -> float:
    return float((a - b).abs().max())


CASES = [
    (kind, way)
    for kind in KINDS
    for way in WAYS
    if not (way == "sdpa" and kind in ("gemma2", "gpt_oss"))  # transformers itself refuses
]


@pytest.mark.parametrize(("kind", "way"), CASES)
def test_logits_are_those_of_transformers(kind: str, way: str) -> None:
    tokens = ids(2, 150)
    expected = fed(model(kind, "eager"), peer_cache(model(kind, "eager")), tokens, 40)
    store = of(model(kind, way))
    got = fed(model(kind, way), store, tokens, 40)
    assert expected.abs().max() > 1
    assert far(got, expected) < 1e-5 * float(expected.abs().max())
    assert store.get_seq_length() == 150
    assert [row.length for row in store.rows] == [150, 150]


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_agree_on_compressed_keys(kind: str) -> None:
    tokens = ids(1, 150)
    expected = fed(model(kind, "eager"), peer_cache(model(kind, "eager")), tokens, 40)
    results = []
    for way in ("eager", "kvant"):
        store = TransformersCache.from_config(model(kind, way).config, "q8_0", exact=True)
        results.append(fed(model(kind, way), store, tokens, 40))
    moved = float((results[1] - expected).norm() / expected.norm())
    apart = float((results[1] - results[0]).norm() / expected.norm())
    print(f"{kind}: logits moved by {moved:.2%}, apart {apart:.4%}")
    # Weights are random and large, which makes more of an error than a trained model does.
    assert 1e-4 < moved < 0.1
    # The last bit of a float may still round a later layer's key to another code.
    assert apart < moved / 10


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["qwen3", "mistral"])
def test_padding_on_the_left(kind: str, way: str) -> None:
    tokens, mask = ids(3, 70), torch.ones(3, 70, dtype=torch.long)
    for row, count in enumerate((0, 9, 33)):
        mask[row, :count] = 0
        tokens[row, :count] = 0
    expected = fed(model(kind, "eager"), peer_cache(model(kind, "eager")), tokens, 8, mask)
    store = of(model(kind, way))
    got = fed(model(kind, way), store, tokens, 8, mask)
    seen = mask.bool()
    assert far(got[seen], expected[seen]) < 1e-4
    lengths = [row.length for row in store.rows]
    # Left out altogether where kvant attends; kept, and hidden by the mask, where it does not.
    assert lengths == ([70, 61, 37] if way == "kvant" else [70, 70, 70])


def test_holes_in_a_mask() -> None:
    tokens, mask = ids(2, 60), torch.ones(2, 60, dtype=torch.long)
    mask[1, [0, 7, 8, 20]] = 0
    position_ids = torch.arange(60)[None].expand(2, -1)
    first, second = model("qwen3", "eager"), model("qwen3", "kvant")
    expected = first(tokens, attention_mask=mask, position_ids=position_ids).logits
    store = of(second)
    got = second(
        tokens, attention_mask=mask, position_ids=position_ids, past_key_values=store
    ).logits
    seen = mask.bool()
    assert far(got[seen], expected[seen]) < 1e-4
    with pytest.raises(ShapeError, match="padding on the left"):
        model("mistral", "kvant")(
            tokens, attention_mask=mask, past_key_values=of(model("mistral", "kvant"))
        )
    with pytest.raises(ShapeError, match="hides the same tokens"):
        second(tokens[:, :1], past_key_values=store)


GENERATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "greedy": lambda: {"do_sample": False},
    "sampled": lambda: {"do_sample": True, "top_k": 20},
    "beams": lambda: {"num_beams": 4, "num_return_sequences": 2, "do_sample": False},
    "lookup": lambda: {"prompt_lookup_num_tokens": 3, "do_sample": False},
    "assisted": lambda: {"assistant_model": model("qwen3", "sdpa", 4), "do_sample": False},
}


@pytest.mark.parametrize("way", ["sdpa", "kvant"])
@pytest.mark.parametrize("kind", ["qwen3", "mistral"])
@pytest.mark.parametrize("name", GENERATIONS)
def test_generated_tokens_are_those_of_transformers(name: str, kind: str, way: str) -> None:
    rows = 1 if name in ("lookup", "assisted") else 2
    tokens, mask = ids(rows, 24, seed=7), torch.ones(rows, 24, dtype=torch.long)
    if rows == 2:
        tokens[1, :5], mask[1, :5] = 0, 0
    results = []
    for used in ("eager", way):
        made = model(kind, used)
        store = peer_cache(made) if not results else of(made)
        torch.manual_seed(0)
        results.append(
            made.generate(
                tokens,
                attention_mask=mask,
                past_key_values=store,
                max_new_tokens=30,
                **GENERATIONS[name](),
            )
        )
    assert results[0].shape[1] == 54
    assert torch.equal(*results)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_taken_back(kind: str, way: str) -> None:
    if (kind, way) not in CASES:
        pytest.skip("transformers refuses sdpa for this model")
    made, tokens = model(kind, way), ids(2, 100)
    store = of(made)
    fed(made, store, tokens, 0)
    before = made(tokens[:, :1], past_key_values=copy.deepcopy(store)).logits
    made(ids(2, 30, seed=5), past_key_values=store)
    store.crop(-30)
    assert store.get_seq_length() == 100
    assert torch.equal(made(tokens[:, :1], past_key_values=store).logits, before)
    store.crop(100)
    assert torch.equal(made(tokens[:, :1], past_key_values=store).logits, before)
    with pytest.raises(ShapeError, match="at least 0"):
        store.crop(-102)
    store.reset()
    assert (store.get_seq_length(), store.batch_size) == (0, -1)


def test_crop_counts_padding() -> None:
    made, tokens, mask = model("qwen3", "kvant"), ids(2, 40), torch.ones(2, 40, dtype=torch.long)
    mask[1, :6] = 0
    store = of(made)
    expected = fed(made, store, tokens, 1, mask)[:, -1]
    store.crop(-3)
    assert [row.length for row in store.rows] == [37, 31]
    again = made(tokens[:, 37:], past_key_values=store, attention_mask=mask).logits[:, -1]
    assert far(again, expected) < 1e-5
    store.crop(4)
    assert [row.length for row in store.rows] == [4, 0]


def test_rows_that_are_taken_twice_share_pages() -> None:
    made, tokens = model("qwen3", "kvant"), ids(2, 130)
    store = of(made)
    made(tokens, past_key_values=store)
    one = store.cache.nbytes
    store.batch_repeat_interleave(3)
    assert (store.batch_size, store.cache.nbytes) == (6, one)
    store.reorder_cache(torch.tensor([5, 0, 0, 3, 2, 1]))
    store.batch_select_indices(torch.tensor([True, False, True, True, False, False]))
    got = made(tokens[:1, :1].expand(3, 1), past_key_values=store).logits[:, 0]
    fresh = of(made)
    made(tokens[[1, 0, 1]], past_key_values=fresh)
    assert torch.equal(got, made(tokens[:1, :1].expand(3, 1), past_key_values=fresh).logits[:, 0])


@pytest.mark.parametrize("way", ["sdpa", "kvant"])
def test_a_full_cache_is_left_as_it_was(way: str) -> None:
    made = model("qwen3", way)
    store = TransformersCache.from_config(made.config, "f32", budget=400_000)
    made(ids(2, 60), past_key_values=store)
    with pytest.raises(CacheFullError):
        made(ids(2, 400), past_key_values=store)
    assert store.get_seq_length() == 60
    fresh = of(made)
    made(ids(2, 60), past_key_values=fresh)
    next_token = ids(2, 1)
    assert torch.equal(
        made(next_token, past_key_values=store).logits,
        made(next_token, past_key_values=fresh).logits,
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("way", ["sdpa", "kvant"])
def test_halves(dtype: str, way: str) -> None:
    made = copy.deepcopy(model("qwen3", way)).to(getattr(torch, dtype))
    tokens = ids(1, 50)
    expected = fed(made, peer_cache(made), tokens, 0) if way == "sdpa" else None
    got = fed(made, of(made, "f16"), tokens, 5)
    assert got.dtype == getattr(torch, dtype)
    plain = fed(model("qwen3", "sdpa"), peer_cache(model("qwen3", "sdpa")), tokens, 0)
    least = 0.1 if expected is None else 2 * float((expected - plain).norm() / plain.norm())
    assert float((got - plain).norm() / plain.norm()) < least


def test_it_is_small_and_a_cache_of_transformers() -> None:
    made = model("qwen3", "kvant")
    store = of(made, "compact")
    made(ids(1, 640), past_key_values=store)
    assert isinstance(store, transformers.Cache) and isinstance(store, TransformersCache)
    assert store.cache.stats().bits < 6
    assert store.get_max_length() == -1
    assert of(model("gemma2", "kvant")).is_sliding == [True, False, True]
    assert of(model("mistral", "kvant")).get_max_length(0) == 20


def test_what_is_refused() -> None:
    made = model("qwen3", "kvant")
    with pytest.raises(ModelError, match="past_key_values=TransformersCache"):
        made(ids(1, 4))
    with pytest.raises(ModelError, match="mask of tokens"):
        square = torch.ones(1, 1, 4, 4, dtype=torch.bool)
        made(ids(1, 4), attention_mask=square, past_key_values=of(made))
    store = of(made)
    made(ids(2, 4), past_key_values=store)
    with pytest.raises(ShapeError, match="2 rows as before"):
        made(ids(3, 4), past_key_values=store)
    with pytest.raises(FormatError, match="preset"):
        of(made, "q9")
    with pytest.raises(ModelError, match="window None"):
        sliding = model("mistral", "kvant")
        bare = KVCache(3, 2, 32, "f32", "f32")
        sliding(ids(1, 4), past_key_values=TransformersCache(bare, sliding.config))
    with pytest.raises(ModelError, match="latent"):
        TransformersCache.from_config(transformers.DeepseekV3Config())
    with pytest.raises(ModelError, match="linear_attention"):
        TransformersCache.from_config(transformers.Qwen3NextConfig(num_hidden_layers=4))
    with pytest.raises(ModelError, match="causal masks and sliding"):
        hf_mask = transformers.AttentionMaskInterface()["kvant"]
        hf_mask(q_length=4, mask_function=lambda b, h, q, k: q >= 0)


def test_a_config_that_says_kvant_while_another_attends() -> None:
    """Or only new keys would be seen, without a word."""
    made = model("qwen3", "sdpa")
    store = TransformersCache(KVCache(3, 2, 32), model("qwen3", "kvant").config)
    made(ids(1, 4), past_key_values=store)
    with pytest.raises(ModelError, match="expected layer 0 to attend"):
        made(ids(1, 1), past_key_values=store)


def test_without_transformers() -> None:
    code = """
import sys
sys.modules["transformers"] = None
from kvant.kv.hf import TransformersCache, register
from kvant import KVCache
for call in (register, lambda: TransformersCache(KVCache(1, 1, 32))):
    try:
        call()
    except ImportError as error:
        assert "pip install torch transformers" in str(error), error
    else:
        raise AssertionError
"""
    done: subprocess.CompletedProcess[str] = run_python(code)
    assert done.returncode == 0, done.stderr
