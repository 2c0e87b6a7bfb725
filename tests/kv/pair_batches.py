"""Calls for several sequences, done to a cache and its model."""

from __future__ import annotations

import numpy as np
from cache_model import FullError
from pair import HEAD_DIM, KV_HEADS, OWNED, SHARE, Pair, keys_and_values

from support import words


class BatchPair(Pair):
    """The cache and what it should hold, of several sequences at a time."""

    def append_many(self, number, batch):
        """Tokens to a layer of several sequences, as pairs; whether there was room for all."""
        layer, parts = OWNED[number], []
        for both, tokens in batch:
            at = both.model.pages[number].end
            known = both.model.tokens[at : at + len(tokens)]
            parts.append((both, known + tokens[len(known) :], tokens[len(known) :]))
        k, v = keys_and_values(layer, [token for _, tokens, _ in parts for token in tokens])
        counts = [len(tokens) for _, tokens, _ in parts]

        def grow():
            models = [both.model for both, _, _ in parts]
            need = [
                model.grow(number, count, commit=False)
                for model, count in zip(models, counts, strict=True)
            ]
            if not self.pool.fits(sum(need)):
                raise FullError
            for model, count in zip(models, counts, strict=True):
                model.grow(number, count)

        there = self._same(
            lambda: self.cache.append_many(
                layer, [both.real for both, _, _ in parts], k, v, counts, threads=self.threads
            ),
            lambda: self._with_room(grow),
        )
        for both, tokens, fresh in parts:
            if there:
                both.model.tokens += fresh
                both.model.pages[number].ids += tokens
            self.check(both)
        return there

    def attend_many(self, layer, sequences, counts, seed=0):
        """The bits of a call for each, refused if one is."""
        number = OWNED.index(SHARE.get(layer, layer))
        shape = (sum(counts), 2 * KV_HEADS[layer], HEAD_DIM[layer])
        q = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        out = []

        def attend():
            for both, count in zip(sequences, counts, strict=True):
                if count:
                    both.model.attend(number, count)

        if self._same(
            lambda: out.append(
                self.cache.attend_many(
                    layer, [both.real for both in sequences], q, counts, threads=self.threads
                )
            ),
            attend,
        ):
            wanted = [
                both.real.attend(layer, part)
                for both, part in zip(sequences, np.split(q, np.cumsum(counts)[:-1]), strict=True)
            ]
            assert np.array_equal(words(out[0]), words(np.concatenate(wanted)))
