"""One token after the other, from recorded calls: the bits of all at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_model

from kvant import _core
from kvant.errors import ShapeError
from kvant.models import ARCHITECTURES
from support import words

TOKENS = np.random.default_rng(0).integers(0, 40, 150)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_tokens_one_by_one_have_the_bits_of_all_at_once(name: str) -> None:
    model = random_model(name)
    ids = TOKENS[: model.config.context_length] % model.config.vocab_size
    wanted = model.hidden(ids)
    session = model.start()
    found = np.concatenate([session.feed(ids[i : i + 1]) for i in range(len(ids))])
    assert np.array_equal(words(found), words(wanted))


def test_calls_are_made_again_until_the_cache_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("qwen3", context_length=96)
    made = []
    replay = _core.replay
    monkeypatch.setattr(_core, "replay", lambda program: made.append(replay(program)))
    session = model.start(64)
    for token in range(64):
        session.feed(np.array([token % 40]))
    assert len(made) == 63
    session.feed(np.array([1]))
    assert len(made) == 63
    session.feed(np.array([1]))
    assert len(made) == 64


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=12))
def test_batches_and_steps_back_between_single_tokens(moves: list[tuple[int, int]]) -> None:
    model = random_model("gemma3")
    session, fed = model.start(), []
    rng = np.random.default_rng(len(moves))
    for count, back in moves:
        ids = rng.integers(0, model.config.vocab_size, count)
        found = session.feed(ids)
        fed += ids.tolist()
        assert np.array_equal(words(found[-1]), words(model.hidden(fed)[-1]))
        keep = max(len(fed) - back, 1)
        session.cache.truncate(keep)
        del fed[keep:]


def test_an_interruption_while_recording_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = random_model("llama")
    session = model.start()
    session.feed(np.array([1, 2]))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_core, "kv_attend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.feed(np.array([3]))
    wanted = model.hidden([1, 2, 3, 4])[2:]
    found = np.concatenate([session.feed(np.array([token])) for token in (3, 4)])
    assert np.array_equal(words(found), words(wanted))


def test_a_token_that_is_not_there_is_refused_and_the_session_goes_on() -> None:
    model = random_model("llama")
    session = model.start()
    session.feed(np.array([1]))
    with pytest.raises(ShapeError, match="embedding"):
        session.feed(np.array([model.config.vocab_size]))
    wanted = model.hidden([1, 2])[1:]
    assert np.array_equal(words(session.feed(np.array([2]))), words(wanted))


def test_two_programs_cannot_be_recorded_at_once() -> None:
    with (
        _core.Program(),
        pytest.raises(ValueError, match="recorded already"),
        _core.Program(),
    ):
        pass
    assert _core.Program().seconds() == []


def test_results_given_out_stay_as_they_were() -> None:
    model = random_model("qwen3moe")
    session = model.start()
    states = [session.feed(np.array([token])) for token in range(4)]
    copies = [state.copy() for state in states]
    session.feed(np.array([5]))
    assert all(np.array_equal(a, b) for a, b in zip(states, copies, strict=True))
