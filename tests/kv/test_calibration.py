"""Means and factors of keys: what they are, and how they go through files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant import KVCache, KVSide
from kvant.errors import FormatError, ShapeError
from kvant.kv import KVCalibration, calibrate


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_means_and_factors_are_those_of_their_definition():
    k = normal(300, 2, 16) * np.exp2(np.arange(16) / 4).astype(np.float32) + 3
    q = normal(100, 6, 16, seed=1) * np.linspace(1, 3, 16, dtype=np.float32)
    found = calibrate([k], [q])
    for head in range(2):
        keys = k[:, head].astype(np.float64)
        asked = q[:, 3 * head : 3 * head + 3].reshape(-1, 16).astype(np.float64)
        mean = keys.mean(0)
        factors = np.sqrt((keys - mean).std(0) / np.sqrt(np.square(asked).mean(0)))
        factors /= np.exp(np.log(factors).mean())
        np.testing.assert_allclose(found.center[0][head], mean, rtol=1e-6)
        np.testing.assert_allclose(found.equalize[0][head], factors, rtol=1e-6)


@given(
    sizes=st.lists(st.sampled_from([0.0, 1e-30, 1.0, 1e30]), min_size=16, max_size=16),
    asked=st.lists(st.sampled_from([0.0, 1e-30, 1.0, 1e30]), min_size=16, max_size=16),
)
def test_factors_are_usable_whatever_channels_do(sizes, asked):
    k = normal(20, 1, 16) * np.float32(sizes) + np.float32(5)
    q = normal(20, 2, 16, seed=1) * np.float32(asked)
    [factors] = calibrate([k], [q]).equalize
    assert factors.dtype == np.float32
    assert (factors >= 2.0**-12).all()
    assert (factors <= 2.0**12).all()
    assert np.exp(np.log(factors.astype(np.float64)).mean()) == pytest.approx(1, rel=1e-6)


def test_channels_that_are_constant_or_never_asked_for_get_the_ends():
    k, q = normal(50, 1, 16), normal(50, 1, 16, seed=1)
    k[:, 0, 0] = 7
    q[:, 0, 1] = 0
    k[:, 0, 2], q[:, 0, 2] = 0, 0
    factors = calibrate([k], [q]).equalize[0][0]
    assert factors[0] == factors.min() < 1 / 50
    assert factors[1] == factors.max() > 50
    assert 0.5 < factors[2] < 2


def test_equalizing_has_the_least_error_of_products():
    """Of an error that is spread evenly over the channels of a rotated key."""
    sizes = np.exp2(np.linspace(-3, 3, 64)).astype(np.float32)
    k, q = normal(400, 1, 64) * sizes, normal(400, 1, 64, seed=1) * sizes[::-1]
    best = calibrate([k], [q])

    def error(factors):
        cache = KVCache(
            1,
            1,
            64,
            KVSide("iq4_nl", rotate="auto", equalize=True, center=True),
            "f32",
            calibration=KVCalibration(best.center, [factors[None].astype(np.float32)]),
        )
        sequence = cache.sequence()
        sequence.append(0, k, k)
        return np.square(q[:, 0] @ (sequence.keys(0) - k[:, 0]).T).mean()

    own = best.equalize[0][0]
    others = [np.ones(64), own**2, own**0.5, own ** (2 / 3), 1 / own]
    assert error(own) < min(error(other) for other in others)


def test_files_hold_the_same_numbers_and_the_same_bytes(tmp_path: Path):
    layers = [normal(9, heads, dim) for heads, dim in ((1, 16), (4, 80))]
    found = calibrate(layers, layers)
    found.save(tmp_path / "a.npz")
    found.save(str(tmp_path / "b"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b").read_bytes()
    back = KVCalibration.load(tmp_path / "b")
    for name in ("center", "equalize"):
        pairs = zip(getattr(found, name), getattr(back, name), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b"]


def test_what_is_no_calibration_is_refused(tmp_path: Path):
    path = tmp_path / "bad.npz"
    for content in (b"", b"PK\x03\x04", b"nonsense" * 9):
        path.write_bytes(content)
        with pytest.raises(FormatError):
            KVCalibration.load(path)
    one = np.ones((1, 16), np.float32)
    for tables in (
        {},
        {"center.0": one},
        {"center.1": one, "equalize.1": one},
        {"center.0": one, "equalize.0": one[:, :8]},
        {"center.0": one, "equalize.0": 0 * one},
        {"center.0": one * np.float32(np.nan), "equalize.0": one},
        {"center.0": one.astype(np.float64), "equalize.0": one},
        {"center.0": one[0], "equalize.0": one[0]},
        {"center.0": np.array([[{}]], object), "equalize.0": one},
    ):
        np.savez(path, **tables)
        with pytest.raises(FormatError):
            KVCalibration.load(path)
    with pytest.raises(FileNotFoundError):
        KVCalibration.load(tmp_path / "none.npz")


def test_keys_and_queries_that_do_not_fit_are_refused():
    k = normal(5, 2, 16)
    for keys, queries in (
        ([], []),
        ([k], []),
        ([k], [normal(5, 3, 16)]),
        ([k], [normal(5, 4, 8)]),
        ([k[0]], [k]),
        ([k[:0]], [k]),
        ([k], [k * np.float32(np.inf)]),
    ):
        with pytest.raises(ShapeError), np.errstate(invalid="ignore"):
            calibrate(keys, queries)
