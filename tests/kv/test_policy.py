"""What policies and presets keep better."""

from __future__ import annotations

import numpy as np
import pytest

from kvant import KVCache, KVPolicy, KVSide, ShapeError
from kvant.kv import PRESETS
from kvant.kv.spec import LayerShape, spec_of

RNG = np.random.default_rng(0)
DIM = 64
K, V = RNG.standard_normal((2, 700, 1, DIM), dtype=np.float32)
Q = RNG.standard_normal((3, 4, DIM), dtype=np.float32)


def error(codec, **options):
    """Of the output, against that of the decoded keys and values."""
    seq = KVCache(1, 1, DIM, codec, codec, policy=KVPolicy(**options)).sequence()
    seq.append(0, K, V)
    exact = seq.attend(0, Q, exact=True)
    return np.linalg.norm(seq.attend(0, Q) - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("codec", ["q8_0", "q6_0", "q5_1", "q4_1", "q4_0", "iq4_nl", "lm4", "lm2"])
def test_fine_products_are_nearly_exact(codec):
    assert error(codec) > 2e-3
    assert error(codec, fine=True) < 5e-5


def test_keys_by_channel_take_weights_finely():
    assert error("kivi4", fine=True) < 0.8 * error("kivi4")


def test_the_first_layer_is_stored_otherwise():
    cache = KVCache(3, 1, DIM, "q4_0", "q4_0", policy=KVPolicy(first=("f16", "q8_0")))
    codecs = [tuple(side.codec for side in sides) for sides in cache.sides]
    assert codecs == [("f16", "q8_0"), ("q4_0", "q4_0"), ("q4_0", "q4_0")]


def test_the_first_is_the_first_with_keys():
    policy = KVPolicy(first=("q8_0", "q8_0"))
    cache = KVCache(3, [0, 1, 1], DIM, "q4_0", "q4_0", policy=policy)
    assert [sides[0].codec for sides in cache.sides[1:]] == ["q8_0", "q4_0"]


def test_a_layer_of_its_own_wins():
    policy = KVPolicy(first=("f16", "f16"), layers={0: ("q5_0", "q5_0")})
    cache = KVCache(2, 1, DIM, "q4_0", "q4_0", policy=policy)
    assert [sides[0].codec for sides in cache.sides] == ["q5_0", "q4_0"]


def test_a_first_view_has_the_codec_of_its_keys():
    policy = KVPolicy(first=("q5_1", "q6_0"))
    cache = KVCache(2, 1, DIM, "lm4", value_dim=32, value_view=True, policy=policy)
    assert [side.codec for side in cache.sides[0]] == ["q5_1", "q5_1"]
    with pytest.raises(ShapeError, match="values stored as the keys"):
        KVCache(2, 1, DIM, "lm4", "q4_0", value_dim=32, value_view=True, policy=policy)


@pytest.mark.parametrize(
    ("preset", "bits"),
    [("lossless", 8.735), ("balanced", 6.079), ("compact", 4.192), ("tiny", 3.157)],
)
def test_presets_take_what_is_said_of_them(preset, bits):
    """Of 32 layers with heads of 128."""
    cache = KVCache.from_model("Llama 3.1 8B", preset)
    assert cache.stats().bits == pytest.approx(bits, abs=1e-3)
    assert cache.policy.sink == 64
    assert cache.policy.tail == 128


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_take_any_layers(preset):
    for name in ("DeepSeek V3", "Gemma 4 E2B", "Qwen3.5 9B"):
        cache = KVCache.from_model(name, preset)
        layer = cache.owned[0]
        shape = cache.shapes[layer]
        assert isinstance(shape, LayerShape)
        assert spec_of(name).shapes[layer] == shape
        seq = cache.sequence()
        k = RNG.standard_normal((70, shape.kv_heads, shape.head_dim), dtype=np.float32)
        seq.append(layer, k, None if shape.view else k[..., : shape.value_dim])
        q = RNG.standard_normal((1, 2 * shape.kv_heads, shape.head_dim), dtype=np.float32)
        assert np.isfinite(seq.attend(layer, q)).all()


def test_sides_of_presets_rotate():
    for preset in PRESETS.values():
        sides = [preset.k, preset.v, *(preset.policy.first or ())]
        for side in sides:
            assert isinstance(side, KVSide)
            assert side.quantized == (side.rotate == "auto")
