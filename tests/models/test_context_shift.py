"""Tokens taken out of a model's cache: later keys stand where they would have been computed."""

from __future__ import annotations

import numpy as np
import pytest
from random_models import random_model

from kvant.kv import KeyDiff, StreamingLLM
from kvant.models import ARCHITECTURES
from kvant.models.step import Step

TOKENS = np.arange(40) * 7 % 60


YARN = {
    "rope__scaling__type": "yarn",
    "rope__scaling__factor": 4.0,
    "rope__scaling__original_context_length": 16,
}
MODELS = [*((name, {}) for name in ARCHITECTURES), ("gpt-oss", YARN), ("llama", YARN)]


def fed(model, monkeypatch):
    """A session with tokens, and each layer's keys before they got their positions."""
    plain, rotate = [], Step.rotate

    def watch(step, x, how):
        plain.append(x.copy())
        return rotate(step, x, how)

    session = model.start("f32")
    with monkeypatch.context() as patch:
        patch.setattr(Step, "rotate", watch)
        session.feed(TOKENS)
    # Of a layer the queries come first.
    return session, plain[1::2]


def close(got, wanted):
    return np.abs(got - wanted).max() <= 2e-6 * np.abs(wanted).max()


@pytest.mark.parametrize(("architecture", "changes"), MODELS)
@pytest.mark.parametrize(("start", "stop"), [(0, 5), (4, 30), (38, 39), (20, 40)])
def test_keys_are_those_of_their_new_positions(architecture, changes, start, stop, monkeypatch):
    model = random_model(architecture, **changes)
    session, plain = fed(model, monkeypatch)
    seq = session.sequence
    values = [seq.values(layer) for layer in range(len(plain))]
    seq.remove(start, stop, model.kv_rope)
    kept = np.r_[:start, stop : len(TOKENS)]
    assert seq.length == len(kept)
    for layer, raw in enumerate(plain):
        how = model.kv_rope[layer]
        wanted = how.turn(np.ascontiguousarray(raw[kept]), np.arange(len(kept)))
        for head in range(raw.shape[1]):
            assert close(seq.keys(layer, head), wanted[:, head])
        assert np.array_equal(seq.values(layer), values[layer][kept])
    # And where the model puts the next one.
    session.feed(TOKENS[:1])
    session.feed(TOKENS[:1])
    assert seq.length == len(kept) + 2


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt-oss"])
def test_keys_turned_where_they_are(architecture, monkeypatch):
    model = random_model(architecture)
    session, plain = fed(model, monkeypatch)
    seq = session.sequence
    seq.shift(1000, model.kv_rope, 10, 30)
    places = np.arange(len(TOKENS))
    places[10:30] += 1000
    for layer, raw in enumerate(plain):
        wanted = model.kv_rope[layer].turn(raw, places)
        assert close(seq.keys(layer), wanted[:, 0])
    seq.shift(-1000, model.kv_rope, 10, 30)
    for layer, raw in enumerate(plain):
        assert close(seq.keys(layer), model.kv_rope[layer].turn(raw, np.arange(len(raw)))[:, 0])


def test_a_prefix_that_is_removed_leaves_the_rest_as_it_was(monkeypatch):
    """Keys of the first layer know nothing of other tokens: they are those of a prompt without."""
    model = random_model("llama")
    session, _ = fed(model, monkeypatch)
    session.sequence.remove(0, 12, model.kv_rope)
    other = model.start("f32")
    other.feed(TOKENS[12:])
    assert close(session.sequence.keys(0), other.sequence.keys(0))


@pytest.mark.parametrize("scorer", [StreamingLLM(2), KeyDiff()])
def test_a_model_goes_on_behind_an_eviction(scorer):
    model = random_model("llama")
    session = model.start("f16")
    session.feed(TOKENS)
    session.sequence.evict(scorer, 20)
    assert session.sequence.length == len(TOKENS)
    before = session.sequence.fork()
    one = [session.feed(TOKENS[i : i + 1]) for i in range(3)]
    both = model.start(before).feed(TOKENS[:3])
    assert np.array_equal(np.concatenate(one), both)
