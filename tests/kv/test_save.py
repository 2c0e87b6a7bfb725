"""States of sequences in files: the same bits afterwards, nothing taken from what was changed."""

from __future__ import annotations

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant import KVCache, KVPolicy, KVSide, isa
from kvant.errors import CacheFullError, Error, StateError
from kvant.kv import CODECS, KVCalibration
from support import words

HEADS, DIM = 2, 32


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def make(k="q8_0", v="q4_0", budget=None, **changes):
    given = {"policy": KVPolicy(sink=3, tail=20), "window": [None, 100]} | changes
    return KVCache(2, HEADS, DIM, k, v, budget=budget, **given)


def fed(cache, tokens, seed=1):
    seq = cache.sequence()
    for layer in range(cache.layers):
        seq.append(
            layer, normal(tokens, HEADS, DIM, seed=seed), normal(tokens, HEADS, DIM, seed=seed + 1)
        )
    return seq


def more(seq, tokens=40, seed=7):
    """What comes of tokens appended now."""
    out = []
    for layer in range(seq.cache.layers):
        seq.append(
            layer, normal(tokens, HEADS, DIM, seed=seed), normal(tokens, HEADS, DIM, seed=seed + 1)
        )
        out.append(seq.attend(layer, normal(tokens, 2 * HEADS, DIM, seed=seed + 2), lse=True))
    return np.concatenate([words(x).ravel() for pair in out for x in pair])


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("tokens", [1, 70, 400])
def test_a_sequence_goes_on_with_the_same_bits(tmp_path, codec, tokens, in_place):
    seq = fed(make(codec, codec), tokens)
    seq.save(tmp_path / "a", tokens=range(tokens))
    cache = make(codec, codec)
    again = cache.load(tmp_path / "a", in_place=in_place)
    assert again.length == tokens and again.tokens.tolist() == list(range(tokens))
    fork = again.fork()
    wanted = more(seq)
    assert np.array_equal(more(again), wanted)
    assert np.array_equal(more(fork), wanted)
    del again, fork
    assert cache.nbytes == 0


def test_another_processor_goes_on_with_the_same_bits(tmp_path):
    wanted = more(fed(make("q5_1", "lm3"), 130))
    for writer in isa.available():
        isa.use(writer)
        fed(make("q5_1", "lm3"), 130).save(tmp_path / "a")
        for reader in isa.available():
            isa.use(reader)
            assert np.array_equal(more(make("q5_1", "lm3").load(tmp_path / "a")), wanted)
    isa.use(isa.available()[0])


def test_what_was_cut_or_changed_is_refused(tmp_path):
    seq = fed(make(), 130)
    seq.save(tmp_path / "a", tokens=range(130))
    data = (tmp_path / "a").read_bytes()
    rng = np.random.default_rng(0)
    cuts = [0, 1, 7, 8, 35, 36, 100, len(data) // 2, len(data) - 64]
    for size in cuts:
        (tmp_path / "b").write_bytes(data[:size])
        with pytest.raises(StateError):
            make().load(tmp_path / "b")
    header = struct.unpack("<8sIQ16s", data[:36])[2]
    parts = json.loads(data[36 : 36 + header])["parts"]
    start = (36 + header + 63) // 64 * 64
    for part in parts:
        for at in rng.integers(0, part["bytes"], 5):
            changed = bytearray(data)
            changed[start + part["offset"] + at] ^= 1 << rng.integers(8)
            (tmp_path / "b").write_bytes(changed)
            cache = make()
            with pytest.raises(StateError, match="written"):
                cache.load(tmp_path / "b", in_place=bool(at % 2))
            assert cache.nbytes == 0
    for at in range(36 + header):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        (tmp_path / "b").write_bytes(changed)
        with pytest.raises(StateError):
            make().load(tmp_path / "b")


@pytest.mark.parametrize(
    "other",
    [
        {"k": "q4_0"},
        {"v": KVSide("q4_0", rotate=32)},
        {"v": "lm4"},
        {"policy": KVPolicy(sink=4, tail=20)},
        {"policy": None},
        {"window": [None, 101]},
        {"window": None},
        {"value_dim": 16},
    ],
)
def test_other_caches_are_refused(tmp_path, other):
    fed(make(), 20).save(tmp_path / "a")
    with pytest.raises(StateError, match="differ in"):
        make(**other).load(tmp_path / "a")


def test_calibrations_models_and_budgets_count(tmp_path):
    side = KVSide("iq4_nl", rotate="auto", center=True, equalize=True)
    tables = [normal(HEADS, DIM, seed=layer) for layer in range(2)]
    one = KVCalibration(tables, [np.abs(t) + 1 for t in tables])
    two = KVCalibration(one.center, one.center[:0] + [t + 1 for t in one.equalize])
    seq = fed(make(side, calibration=one), 20)
    seq.save(tmp_path / "a")
    assert make(side, calibration=one).load(tmp_path / "a").length == 20
    with pytest.raises(StateError, match="equalize"):
        make(side, calibration=two).load(tmp_path / "a")
    cache = make()
    cache.fingerprint = "one"
    fed(cache, 20).save(tmp_path / "a")
    assert make().load(tmp_path / "a").length == 20
    cache.fingerprint = "two"
    with pytest.raises(StateError, match="model two, got one"):
        cache.load(tmp_path / "a")
    small = make(budget=1000)
    with pytest.raises(CacheFullError):
        small.load(tmp_path / "a")
    assert small.nbytes == 0


@given(data=st.binary(max_size=200), at=st.integers(0, 63))
def test_heads_of_states_that_cannot_be_are_refused(data, at):
    seq = fed(make(), 70)
    state = bytearray(seq._core.save(0, 0))
    state[at : at + len(data)] = data
    cache = make()
    with contextlib.suppress(Error):
        cache.sequence()._core.load(0, 0, np.frombuffer(bytes(state), np.uint8), False)
    assert cache.nbytes == 0


def test_a_refused_append_leaves_nothing_in_a_state(tmp_path):
    for codec, policy in (("f16", None), ("q8_0", KVPolicy(tail=64))):
        cache = KVCache(1, HEADS, DIM, codec, codec, policy=policy)
        seq = cache.sequence()
        x = normal(10, HEADS, DIM)
        seq.append(0, x, x)
        with pytest.raises(Error, match="position 12"):
            seq.append(0, *[np.where(np.arange(10)[:, None, None] == 2, 1e6, x).astype("f4")] * 2)
        seq.save(tmp_path / "a")
        assert cache.load(tmp_path / "a").length == 10


def test_heads_of_different_lengths_are_refused():
    cache = KVCache(1, 2, DIM, "q4_0", "q4_0")
    long, short, made = cache.sequence(), cache.sequence(), cache.sequence()
    long.append(0, normal(600, 2, DIM), normal(600, 2, DIM))
    short.append(0, normal(10, 2, DIM), normal(10, 2, DIM))
    made._core.load(0, 0, np.frombuffer(long._core.save(0, 0), np.uint8), False)
    with pytest.raises(Error, match="as many tokens each"):
        made._core.load(0, 1, np.frombuffer(short._core.save(0, 1), np.uint8), False)
    with pytest.raises(Error, match="not so many"):
        made.truncate(500)
    assert made.length == 0


@pytest.mark.parametrize("tokens", [[2**70], {}, "", [1.5], [True]])
def test_tokens_that_are_none_are_refused(tmp_path, tokens, monkeypatch):
    from kvant.kv import state

    seq = fed(make(), 3)
    written = json.dumps
    monkeypatch.setattr(
        state.json, "dumps", lambda x: written({**x, "tokens": tokens} if "tokens" in x else x)
    )
    seq.save(tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(StateError):
        make().load(tmp_path / "a")
