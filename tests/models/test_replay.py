"""One token after the other, from recorded calls: the bits of all at once."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import metadata, random_model

import kvant
from kvant import _core
from kvant.errors import ShapeError
from kvant.kv import KVSequence
from kvant.models import ARCHITECTURES, Model
from kvant.models.session import Session
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


def test_calls_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("qwen3", context_length=96)
    made = []
    replay = _core.replay
    monkeypatch.setattr(_core, "replay", lambda program: made.append(replay(program)))
    session = model.start()
    for token in range(64):
        session.feed(np.array([token % 40]))
    # The first makes the weights, the second is recorded.
    assert len(made) == 62
    session.feed(np.array([1, 2]))
    session.feed(np.array([1]))
    assert len(made) == 63


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
        session.sequence.truncate(keep)
        del fed[keep:]


def test_an_interruption_while_recording_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = random_model("llama")
    session = model.start()
    session.feed(np.array([1, 2]))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KVSequence, "attend", interrupted)
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


def one_by_one(session: Session, ids: np.ndarray) -> np.ndarray:
    return np.concatenate([session.feed(ids[i : i + 1]) for i in range(len(ids))])


@pytest.mark.parametrize("name", ["llama", "qwen3moe"])
def test_weights_that_are_views_with_gaps(name: str) -> None:
    model = random_model(name)
    gaps: dict[str, kvant.QTensor | np.ndarray] = {}
    for key, values in model.tensors.items():
        gaps[key] = np.asarray(values)
        if values.ndim > 1:
            whole = kvant.quantize(np.concatenate([values, values], axis=-2), "f32")
            gaps[key] = kvant.QTensor(whole.data[..., : values.shape[-2], :], "f32", values.shape)
    other = Model(metadata(name), gaps, pack=False)
    ids = TOKENS[:20] % model.config.vocab_size
    assert np.array_equal(words(one_by_one(other.start(), ids)), words(model.hidden(ids)))


class Sums(dict[str, np.ndarray]):
    """Weights that are computed, with native calls, whenever they are asked for."""

    def __getitem__(self, name: str) -> np.ndarray:
        values = super().__getitem__(name)
        if values.ndim != 2:
            return values
        eye = kvant.quantize(np.eye(values.shape[1], dtype=np.float32), "f32")
        return np.asarray(kvant.matmul(values, eye, act="f32"))


def test_weights_that_are_computed_when_asked_for() -> None:
    model = random_model("qwen3")
    other = Model(metadata("qwen3"), Sums(model.tensors))
    ids = TOKENS[:20] % model.config.vocab_size
    assert np.array_equal(words(one_by_one(other.start(), ids)), words(model.hidden(ids)))


def test_a_program_keeps_what_it_writes_to() -> None:
    x, w = np.ones((1, 64), np.float32), kvant.quantize(np.eye(64, dtype=np.float32), "q8_0")
    program = _core.Program()
    with program:
        many = kvant.matmul_many(x, [w, w])
        one = kvant.matmul(x, w)
    kept = [weakref.ref(y) for y in (*many, one)]
    wanted = one.copy()
    del many, one
    gc.collect()
    assert all(ref() is not None for ref in kept)
    x[:] = 2
    _core.replay(program)
    assert np.array_equal(kept[2](), 2 * wanted)


def test_pages_are_let_go_of_with_their_session() -> None:
    model = random_model("llama", context_length=200)
    cache = model.cache()
    session = model.start(cache)
    one_by_one(session, TOKENS[:10] % 40)
    assert cache.nbytes > 0
    del session
    gc.collect()
    assert cache.nbytes == 0


def test_another_sequence_is_taken_notice_of() -> None:
    model = random_model("qwen3")
    one, two = model.start(), model.start()
    one_by_one(one, np.array([1, 2, 3]))
    one_by_one(two, np.array([4, 5, 6, 7]))
    one.sequence = two.sequence
    found = one.feed(np.array([8]))
    assert np.array_equal(words(found), words(model.hidden([4, 5, 6, 7, 8])[-1:]))
