"""Any sequence of operations on a cache: refused, counted and answered as its model says."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)
from pair import OWNED, VOCABULARY, Pair
from random_operations import SETTINGS, run

NAMES = ["mixed", "plain", "short", "unbounded", "coded", "channels", "channels plain"]
DOCUMENTS = [[(i * (d + 3) + d) % VOCABULARY for i in range(2000)] for d in range(2)]
counts = st.one_of(st.integers(1, 8), st.sampled_from([16, 63, 64, 65, 130, 300]))
layers = st.integers(0, len(OWNED) - 1)
extras = st.sampled_from([b"", b"adapter"])
# Tokens of one of two documents, so that sequences begin alike, or others.
texts = st.one_of(st.sampled_from(DOCUMENTS), st.permutations(range(20)))


class CacheStates(RuleBasedStateMachine):
    """The rules; `Pair` does each to the cache and to its model, and compares."""

    sequences = Bundle("sequences")

    @initialize(setting=st.sampled_from(SETTINGS), threads=st.sampled_from([None, 1, 2]))
    def begin(self, setting, threads):
        self.pair = Pair(setting, threads)

    @rule(target=sequences)
    def new(self):
        return self.pair.new()

    @rule(
        both=sequences,
        text=texts,
        count=counts,
        order=st.permutations(range(len(OWNED))),
    )
    def append(self, both, text, count, order):
        """To all layers in any order; where there is no room, what was done is taken back."""
        model = both.model
        if model.length < len(model.tokens):
            self.pair.truncate(both, model.length)
        length = model.length
        if length > 1000:
            return
        tokens = text[length : length + count] or text[:count]
        for number in order:
            missing = length + len(tokens) - model.pages[number].end
            if missing and not self.pair.append(both, number, tokens[-missing:]):
                self.pair.truncate(both, model.length)
                return

    @rule(both=sequences, number=layers, text=texts, count=st.integers(0, 5))
    def append_to_one_layer(self, both, number, text, count):
        tokens = both.model.tokens
        done = both.model.pages[number].end
        self.pair.append(both, number, (tokens[done:] + text[:count])[: max(count, 1)])

    @rule(
        both=sequences,
        number=layers,
        count=counts,
        row=st.integers(0, 299),
        head=st.integers(0, 1),
        bad=st.sampled_from([float("nan"), float("inf"), -float("inf"), 3e38]),
        side=st.integers(0, 1),
    )
    def append_what_cannot_be_stored(self, both, number, count, row, head, bad, side):
        self.pair.append_refused(both, number, list(range(count)), row % count, head, bad, side)

    @rule(target=sequences, both=sequences)
    def fork(self, both):
        return self.pair.fork(both)

    @rule(both=consumes(sequences))
    def free(self, both):
        self.pair.free(both)

    @rule(both=sequences, length=st.integers(-1, 1001))
    def truncate(self, both, length):
        self.pair.truncate(both, length)

    @rule(both=sequences, count=st.integers(0, 64))
    def roll_back(self, both, count):
        self.pair.truncate(both, max(both.model.length - count, 0))

    @rule(both=sequences, start=st.integers(-1, 1000), count=st.integers(0, 200))
    def remove(self, both, start, count):
        self.pair.remove(both, start, start + count)

    @rule(both=sequences, keep=st.sampled_from([1, 20, 64, 200]), seed=st.integers(0, 9))
    def evict(self, both, keep, seed):
        self.pair.evict(both, keep, seed)

    @rule(
        both=sequences,
        layer=st.integers(0, 4),
        queries=st.sampled_from([1, 1, 2, 7, 65]),
        seed=st.integers(0, 9),
    )
    def attend(self, both, layer, queries, seed):
        self.pair.attend(both, layer, queries, seed)

    @rule(
        both=sequences,
        number=layers,
        side=st.integers(0, 1),
        head=st.integers(0, 1),
        start=st.integers(0, 1000),
        count=st.integers(0, 200),
    )
    def contents(self, both, number, side, head, start, count):
        self.pair.contents(both, number, side, head, start, start + count)

    @rule(both=sequences, extra=extras)
    def publish(self, both, extra):
        self.pair.publish(both, both.model.tokens, extra)

    @rule(target=sequences, text=texts, count=st.integers(1, 1000), extra=extras)
    def match(self, text, count, extra):
        return self.pair.match(text[:count], extra)

    @rule(nbytes=st.sampled_from([None, 1, 10_000]))
    def drop(self, nbytes):
        self.pair.drop(nbytes)

    @invariant()
    def bytes_in_use(self):
        if hasattr(self, "pair"):
            self.pair.check()

    def teardown(self):
        if hasattr(self, "pair"):
            self.pair.close()


TestCacheStates = CacheStates.TestCase


@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
def test_random_operations(setting):
    """A few of those that `make fuzz` does a million of."""
    done, refused = run(0, 1500, setting)
    assert done.total() == 1500 and min(done.values()) > 0
    assert refused > 0
