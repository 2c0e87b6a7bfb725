"""What fits, with how much context, how fast at most; on one device and on two."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_configs import CONFIGS

from kvant import plan
from kvant.errors import ShapeError

MODEL = plan.from_config(CONFIGS["qwen3_5_moe_text"])
USE = plan.Use(100)
GIB = 1 << 30


def place(nbytes: float, speed: float = 1e9) -> plan.Device:
    return plan.Device("x", int(nbytes), speed, headroom=0.0)


@given(st.integers(0, 700), st.integers(1, 3), st.sampled_from(sorted(CONFIGS)))
def test_most_context_is_exact(context: int, sequences: int, kind: str) -> None:
    model = plan.from_config(CONFIGS[kind])
    use = plan.Use(context, sequences)
    exact = plan.memory(model, use, "BF16").total
    most = plan.most_context(model, use, [place(exact)], "BF16")
    assert most >= context
    assert plan.memory(model, replace(use, context=most), "BF16").total <= exact
    if most < model.context:
        assert plan.memory(model, replace(use, context=most + 1), "BF16").total > exact
    assert plan.fit(model, use, [place(exact)], "BF16").fits
    assert not plan.fit(model, use, [place(exact - 1)], "BF16").fits


def test_too_little_for_the_weights() -> None:
    verdict = plan.fit(MODEL, USE, [place(1000)], "BF16")
    assert (verdict.fits, verdict.most_context, verdict.tokens_per_second) == (False, -1, None)


def test_the_bound_is_bandwidth_over_bytes_read() -> None:
    counted = plan.weights(MODEL, "BF16")
    kv, state = plan.kv_bytes(MODEL.layers, 100), plan.state_bytes(MODEL.layers)
    read = counted.read + kv + state
    assert plan.seconds_per_token(MODEL, counted, USE, [place(GIB)]) == pytest.approx(read / 1e9)
    speed = plan.fit(MODEL, USE, [place(GIB)], counted).tokens_per_second
    assert speed is not None
    assert speed == pytest.approx((1e9 / (read - kv), 1e9 / read))
    assert plan.fit(MODEL, USE, [place(GIB, 0)], counted).tokens_per_second is None


def test_a_file_without_weights_has_no_speed() -> None:
    empty = replace(MODEL, tensors=(), layers=())
    assert plan.fit(empty, USE, [place(GIB)]).tokens_per_second is None


def test_two_devices_keep_experts_on_the_slow_one() -> None:
    counted = plan.weights(MODEL, "BF16")
    experts = counted.parts["experts"]
    table = counted.parts["embedding"]
    dense = counted.read - experts.read - table.read
    dense += plan.kv_bytes(MODEL.layers, 100) + plan.state_bytes(MODEL.layers)
    room = plan.memory(MODEL, USE, counted).total - plan.compute_bytes(MODEL, USE)
    room -= experts.bytes + table.bytes
    fast, slow = place(room, 1e9), place(GIB, 1e7)
    seconds = plan.seconds_per_token(MODEL, counted, USE, [slow, fast])
    assert seconds == pytest.approx(dense / 1e9 + (experts.read + table.read) / 1e7)
    alone = plan.seconds_per_token(MODEL, counted, USE, [slow])
    assert plan.seconds_per_token(MODEL, counted, USE, [place(GIB), slow]) < seconds < alone


def test_each_device_has_buffers_of_its_own() -> None:
    one = plan.fit(MODEL, USE, [place(GIB)]).memory
    two = plan.fit(MODEL, USE, [place(GIB), place(GIB)]).memory
    assert two.compute == 2 * one.compute
    assert replace(two, compute=one.compute) == one


def test_headroom() -> None:
    assert plan.device("RTX 4090").usable == int(24 * GIB * 0.95)
    assert plan.device("dgx-spark").usable == 96 * GIB
    assert plan.device("M4 Max:36GiB").usable == 27 * GIB
    assert plan.device("Raspberry Pi 5").usable == int(16 * GIB * 0.7)
    assert plan.device("M4", headroom=0.5).usable == 16 * GIB
    for known in plan.DEVICES:
        assert plan.device(known.name) == known
        assert known.bandwidth > 1e10 and known.memory >= 8 * GIB


@pytest.mark.parametrize("name", ["RTX 1", "", "M4:much", "M4:-1GiB", "M4:nanGiB", "M4:12"])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(ShapeError, match=r"\[plan\] expected a (device|size)"):
        plan.device(name)


def test_compute_buffers_of_llama() -> None:
    """The formula by hand for Llama 3.1 8B: 258.5 MiB."""
    model = plan.read("Llama 3.1 8B")
    assert plan.compute_bytes(model, plan.Use(8192)) == 258.5 * (1 << 20)
    scores = 32 * 512 * 8192 * 4
    assert plan.compute_bytes(model, plan.Use(8192, flash=False)) == 258.5 * (1 << 20) + scores


@pytest.mark.parametrize("wrong", [{"context": -1}, {"sequences": 0}, {"batch": 0}])
def test_use_is_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ShapeError):
        plan.Use(**{"context": 1, **wrong})
