"""A cache and its model, side by side: every operation is done to both, and they must agree.

What a token's keys and values are depends on its id only, so that contents are known by tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from cache_model import FullError, ModelIndex, ModelLayer, ModelSequence, Pool, RefusedError

from kvant import CacheFullError, FormatError, KVCache, KVPolicy, ShapeError
from support import words

VOCABULARY = 1024
# The last but one sees chunks, and values in its keys; the last has no keys.
KV_HEADS = [2, 2, 1, 1, 1, 0]
HEAD_DIM = [32, 32, 32, 16, 48, 16]
VALUE_DIM = [32, 32, 48, 16, 32, 16]
CODECS = [("q8_0", "q4_0"), ("q8_0", "q4_0"), ("lm3", "q5_1"), ("f16", "f16"), ("q4_1", "q4_1")]
CHUNK, VIEW = 150, 4
BY_CHANNEL = ("kivi2", "kivi4")
# The second layer reads the first one's keys.
SHARE = {1: 0}
OWNED = [0, 2, 3, 4]


@dataclass(frozen=True)
class Setting:
    """What the caches of a run are like."""

    window: int | None = 100
    sink: int = 5
    tail: int = 40
    budget: int | None = 700_000
    by_channel: bool = False

    def codecs(self, layer):
        """Of the last layer keys may be coded in groups."""
        return BY_CHANNEL if self.by_channel and layer == 3 else CODECS[layer]

    def cache(self):
        policy = KVPolicy(self.sink, self.tail, {layer: self.codecs(layer) for layer in OWNED})
        return KVCache(
            6,
            KV_HEADS,
            HEAD_DIM,
            value_dim=VALUE_DIM,
            policy=policy,
            value_view=[layer == VIEW for layer in range(6)],
            window=[self.window if layer == 2 else None for layer in range(6)],
            chunk=[CHUNK if layer == VIEW else None for layer in range(6)],
            budget=self.budget,
            share=SHARE,
        )

    def model_layers(self):
        """Bytes of pages are measured: what one token takes, in a cache that keeps nothing else."""
        layers = []
        for layer in OWNED:
            exact = self.codecs(layer) != ("f16", "f16")
            both = _one_token(replace(self, sink=0, tail=1, budget=None).cache(), layer)
            views = [each == VIEW for each in range(6)]
            halves = KVCache(
                6, KV_HEADS, HEAD_DIM, "f16", "f16", value_dim=VALUE_DIM, value_view=views
            )
            beside = _one_token(halves, layer) if exact else 0
            layers.append(
                ModelLayer(
                    KV_HEADS[layer],
                    both - beside,
                    beside,
                    self.window if layer == 2 else None,
                    self.sink if exact else 0,
                    self.tail if exact else 0,
                    CHUNK if layer == VIEW else None,
                    32 if self.codecs(layer) == BY_CHANNEL else 1,
                )
            )
        return layers


def _one_token(cache, layer):
    seq = cache.sequence()
    k, v = keys_and_values(layer, [0])
    seq.append(layer, k, v)
    return cache.nbytes // KV_HEADS[layer]


def _bank(layer, side):
    dim = (VALUE_DIM if side else HEAD_DIM)[layer]
    rng = np.random.default_rng([layer, side])
    x = rng.standard_normal((VOCABULARY, KV_HEADS[layer], dim), dtype=np.float32)
    return x * np.exp(rng.standard_normal((VOCABULARY, 1, 1), dtype=np.float32))


BANK = {layer: (_bank(layer, 0), _bank(layer, 1)) for layer in OWNED}


def keys_and_values(layer, tokens):
    k, v = BANK[layer]
    return k[tokens], None if layer == VIEW else v[tokens]


@dataclass(eq=False)
class Both:
    """One sequence."""

    real: object
    model: ModelSequence


@dataclass
class Pair:
    """The cache and what it should hold."""

    setting: Setting = field(default_factory=Setting)
    threads: int | None = 1

    def __post_init__(self):
        self.cache = self.setting.cache()
        self.layers = self.setting.model_layers()
        self.pool = Pool(self.setting.budget)
        self.index = ModelIndex(self.layers)
        self.sequences = []
        self.refusals = 0
        whole = replace(self.setting, budget=None).cache().sequence()
        for layer in OWNED:
            whole.append(layer, *keys_and_values(layer, slice(None)))
        self.decoded = {
            (layer, side): np.stack(
                [(whole.values if side else whole.keys)(layer, h) for h in range(KV_HEADS[layer])]
            )
            for layer in OWNED
            for side in (0, 1)
        }

    def new(self):
        both = Both(self.cache.sequence(), ModelSequence(self.layers, self.pool))
        self.sequences.append(both)
        return both

    def free(self, both):
        self.sequences.remove(both)
        both.model.free()
        both.real = None
        self.check()

    def fork(self, both):
        fork = Both(both.real.fork(), both.model.fork())
        self.sequences.append(fork)
        self.check(fork)
        return fork

    def truncate(self, both, length):
        self._same(
            lambda: both.real.truncate(length),
            lambda: self._with_room(lambda: both.model.truncate(length)),
        )
        self.check(both)

    def append(self, both, number, tokens):
        """Tokens to a layer; where others hold more already, those that they hold.

        Returns whether there was room.
        """
        model, layer = both.model, OWNED[number]
        at = model.pages[number].end
        known = model.tokens[at : at + len(tokens)]
        tokens = known + tokens[len(known) :]
        k, v = keys_and_values(layer, tokens)
        there = self._same(
            lambda: both.real.append(layer, k, v, threads=self.threads),
            lambda: self._grow(model, number, len(tokens)),
        )
        if there:
            model.tokens += tokens[len(known) :]
            model.pages[number].ids += tokens
        self.check(both)
        return there

    def remove(self, both, start, stop):
        self._same(
            lambda: both.real.remove(start, stop, threads=self.threads),
            lambda: self._with_room(lambda: both.model.remove(start, stop)),
        )
        self.check(both)

    def evict(self, both, keep, seed):
        """So many tokens of every layer, by scores that are drawn."""
        drawn = {
            layer: np.random.default_rng([seed, layer]).random(own.length)
            for layer, own in zip(OWNED, both.model.pages, strict=True)
        }
        kept = [
            None
            if each.window or each.chunk
            else np.sort(np.argsort(-drawn[layer])[:keep]).tolist()
            for layer, each in zip(OWNED, self.layers, strict=True)
        ]

        class Drawn:
            def scores(self, keys, values, head):
                return drawn[head.layer]

        self._same(
            lambda: both.real.evict(Drawn(), keep, threads=self.threads),
            lambda: self._with_room(lambda: both.model.evict(kept)),
        )
        self.check(both)

    def append_refused(self, both, number, tokens, row, head, bad, side):
        """Tokens of which one has a number that cannot be stored."""
        model, layer = both.model, OWNED[number]
        at = model.pages[number].end
        kv = keys_and_values(layer, tokens)
        kv[0 if layer == VIEW else side][row, head % KV_HEADS[layer], row % 16] = bad

        def grow():
            self._grow(model, number, len(tokens), commit=False)
            raise RefusedError

        message = self._same(
            lambda: both.real.append(layer, *kv, threads=self.threads), grow, message=True
        )
        place = f"position {at + row} (token {row}, head {head % KV_HEADS[layer]})"
        assert message.endswith(place) or "budget" in message, message
        self.check(both)

    def attend(self, both, layer, queries, seed=0):
        """The bits of a new cache that gets all tokens at once."""
        owner = SHARE.get(layer, layer)
        number = OWNED.index(owner)
        heads = 2 * KV_HEADS[layer]
        rng = np.random.default_rng(seed)
        q = rng.standard_normal((queries, heads, HEAD_DIM[layer]), dtype=np.float32)
        out = []
        there = self._same(
            lambda: out.append(both.real.attend(layer, q, threads=self.threads)),
            lambda: both.model.attend(number, queries),
        )
        own, exact = both.model.pages[number], self.layers[number].sink + self.layers[number].tail
        if not there or not both.model.sees_all_exactly(number, queries) or (own.moved and exact):
            return False
        fresh = replace(self.setting, budget=None).cache().sequence()
        tokens = own.ids
        fresh.append(owner, *keys_and_values(owner, tokens), threads=self.threads)
        wanted = fresh.attend(layer, q, threads=self.threads)
        assert np.array_equal(words(out[0]), words(wanted))
        return True

    def contents(self, both, number, side, head, start, stop):
        """Keys or values start .. stop - 1 of a head, decoded."""
        layer, own = OWNED[number], both.model.pages[number]
        head %= KV_HEADS[layer]
        start = min(max(start, own.first * 64), own.length)
        stop = min(max(stop, start), own.length)
        got = (both.real.values if side else both.real.keys)(layer, head, start, stop)
        group = self.layers[number].group
        if side or group == 1:
            wanted = self.decoded[layer, side][head, own.ids[start:stop]]
        else:
            fresh = replace(self.setting, budget=None).cache().sequence()
            fresh.append(layer, *keys_and_values(layer, own.ids))
            wanted = fresh.keys(layer, head, start, stop)
            # What was coded from copies is near it.
            for first in own.reopened:
                part = slice(max(first - start, 0), max(first + group - start, 0))
                got[part] = wanted[part]
        assert np.array_equal(words(got), words(wanted))

    def publish(self, both, tokens, extra=b""):
        published = self.cache.prefixes.publish(both.real, tokens, extra=extra)
        assert published == self.index.publish(both.model, tokens, extra)
        self.check(both)

    def match(self, tokens, extra=b""):
        seq, found = self.cache.prefixes.match(tokens, extra=extra)
        model = self.index.match(tokens, extra)
        assert found == (model.length if model else 0)
        both = Both(seq, model or ModelSequence(self.layers, self.pool))
        self.sequences.append(both)
        self.check(both)
        return both

    def drop(self, nbytes):
        before = self.pool.used
        freed = self.cache.prefixes.drop(nbytes)
        while self.index.kept and (nbytes is None or before - self.pool.used < nbytes):
            self.index.drop_oldest()
        assert freed == before - self.pool.used
        self.check()

    def check(self, both=None):
        """Bytes in use, and lengths."""
        assert self.cache.nbytes == self.pool.used
        assert len(self.cache.prefixes) == len(self.index.kept)
        if both is not None:
            assert both.real.length == both.model.length
            for layer, own in zip(OWNED, both.model.pages, strict=True):
                assert both.real.layer_length(layer) == own.end
                assert {both.real.held(layer, h) for h in range(KV_HEADS[layer])} == {own.length}
                assert len(own.ids) == own.length

    def close(self):
        """Nothing is left when nobody holds anything."""
        for both in self.sequences[:]:
            self.free(both)
        self.drop(None)
        assert self.cache.nbytes == self.cache.stats().pages == 0

    def _grow(self, model, number, count, commit=True):
        return self._with_room(lambda: model.grow(number, count, commit))

    def _with_room(self, call):
        while True:
            try:
                return call()
            except FullError:
                if not self.index.drop_oldest():
                    raise

    def _same(self, real, model, message=False):
        """Do both; whether they were done, and not refused."""
        # Not the errors themselves: their frames hold sequences.
        error, text = None, ""
        try:
            real()
        except (ShapeError, FormatError, CacheFullError) as caught:
            error, text = type(caught), str(caught)
        refusal = None
        try:
            model()
        except (RefusedError, FullError) as caught:
            refusal = type(caught)
        refusals = {ShapeError: RefusedError, FormatError: RefusedError, CacheFullError: FullError}
        assert refusals.get(error) is refusal, text
        self.refusals += error is not None
        return text if message else error is None
