"""Random operations on a cache, each checked against its model: `python random_operations.py`.

Operation n of a seed is always the same. The process ends with an error at the first
disagreement: of lengths, contents, attention, bytes in use, or what is refused.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from pair import OWNED, VOCABULARY, Setting
from pair_batches import BatchPair

SETTINGS = [
    Setting(),
    Setting(window=None, sink=0, tail=0),
    Setting(window=30, sink=70, tail=1, budget=500_000),
    Setting(window=200, sink=0, tail=150, budget=None),
    Setting(window=70, sink=0, tail=0, budget=500_000),
    Setting(by_channel=True),
    Setting(window=None, sink=0, tail=0, by_channel=True),
]
MOST_SEQUENCES, MOST_TOKENS = 8, 900
WEIGHTS = {
    "append": 40,
    "append_unevenly": 6,
    "append_many": 5,
    "attend_many": 2,
    "append_refused": 3,
    "contents": 16,
    "truncate": 9,
    "rollback": 6,
    "fork": 6,
    "free": 6,
    "publish": 4,
    "match": 5,
    "attend": 2,
    "drop": 1,
    "remove": 4,
    "evict": 3,
}


class Walk:
    """One cache, and operations drawn from a seed."""

    def __init__(self, setting, seed):
        self.random = random.Random(seed)
        self.pair = BatchPair(setting)
        self.done = Counter()
        # Sequences begin alike, so that prefixes are found.
        self.documents = [self.ids(MOST_TOKENS + 300) for _ in range(3)]
        self.documents[1][:300] = self.documents[0][:300]

    def ids(self, count):
        return self.random.choices(range(VOCABULARY), k=count)

    def step(self):
        """One operation."""
        name = self.random.choices(list(WEIGHTS), WEIGHTS.values())[0]
        pair = self.pair
        if not pair.sequences:
            pair.new()
        both = self.random.choice(pair.sequences)
        if name in ("fork", "match") and len(pair.sequences) >= MOST_SEQUENCES:
            name = "free"
        if both.model.tokens and len(both.model.tokens) > MOST_TOKENS:
            name = "free"
        self.done[name] += 1
        getattr(self, name)(both)

    def next_tokens(self, both, count):
        tokens = both.model.tokens
        fitting = [d for d in self.documents if d[: len(tokens)] == tokens]
        if fitting and self.random.random() < 0.97:
            return self.random.choice(fitting)[len(tokens) : len(tokens) + count]
        return self.ids(count)

    def count(self):
        return self.random.choice([1, 1, 1, 1, 2, 3, 7, 16, 40, 64, 130, 300])

    def append(self, both):
        model = both.model
        if any(own.end < len(model.tokens) for own in model.pages):
            # A step that broke off is taken back, or what is missing is added.
            if self.random.random() < 0.5:
                return self.pair.truncate(both, model.length)
            tokens = []
        else:
            tokens = self.next_tokens(both, self.count())
        total = len(model.tokens) + len(tokens)
        for number in self.random.sample(range(len(OWNED)), len(OWNED)):
            missing = total - model.pages[number].end
            if missing and not self.pair.append(both, number, (model.tokens + tokens)[-missing:]):
                # What a server would do; most of the time there shall be room.
                return self.pair.free(self.random.choice(self.pair.sequences))

    def append_unevenly(self, both):
        number = self.random.randrange(len(OWNED))
        ahead = len(both.model.tokens) - both.model.pages[number].end
        tokens = self.ids(self.random.randrange(6))
        self.pair.append(both, number, both.model.tokens[-ahead:] + tokens if ahead else tokens)

    def append_many(self, _):
        batch = []
        for both in self.several():
            tokens = self.next_tokens(both, self.random.choice([0, 1, 1, 1, 2, 40]))
            batch.append((both, both.model.tokens + tokens))
        for number in range(len(OWNED)):
            parts = [(both, all_[both.model.pages[number].end :]) for both, all_ in batch]
            if not self.pair.append_many(number, parts):
                return self.pair.free(self.random.choice(self.pair.sequences))

    def several(self):
        sequences = self.pair.sequences
        return self.random.sample(sequences, self.random.randrange(1, len(sequences) + 1))

    def attend_many(self, _):
        sequences = self.several()
        counts = [self.random.choice([0, 1, 1, 1, 2, 20]) for _ in sequences]
        self.pair.attend_many(self.random.randrange(5), sequences, counts)

    def append_refused(self, both):
        count = self.count()
        self.pair.append_refused(
            both,
            self.random.randrange(len(OWNED)),
            self.ids(count),
            self.random.randrange(count),
            self.random.randrange(2),
            self.random.choice([float("nan"), float("inf"), -float("inf"), 3e38]),
            self.random.randrange(2),
        )

    def contents(self, both):
        number = self.random.randrange(len(OWNED))
        length = both.model.pages[number].length
        start = self.random.randrange(length + 1)
        stop = start + self.random.randrange(100)
        self.pair.contents(
            both, number, self.random.randrange(2), self.random.randrange(2), start, stop
        )

    def truncate(self, both):
        self.pair.truncate(both, self.random.randrange(len(both.model.tokens) + 2))

    def rollback(self, both):
        self.pair.truncate(both, max(both.model.length - self.random.randrange(70), 0))

    def remove(self, both):
        length = both.model.length
        start = self.random.randrange(length + 1)
        if self.random.random() < 0.5:
            start = max(length - self.random.randrange(80), 0)
        count = self.random.choice([0, 1, 5, 30, 64, 200])
        self.pair.remove(both, start, min(start + count, length + (count == 30)))

    def evict(self, both):
        keep = self.random.choice([1, 10, 64, 100, 300])
        self.pair.evict(both, keep, self.random.randrange(1000))

    def fork(self, both):
        self.pair.fork(both)

    def free(self, both):
        self.pair.free(both)

    def publish(self, both):
        tokens = both.model.tokens
        if self.random.random() < 0.3:
            tokens = tokens[: self.random.randrange(len(tokens) + 1)]
        self.pair.publish(both, tokens, self.random.choice([b"", b"", b"a"]))

    def match(self, both):
        tokens = self.random.choice(self.documents)[: self.random.randrange(1, MOST_TOKENS)]
        if self.random.random() < 0.3:
            tokens = both.model.tokens[:]
        self.pair.match(tokens, self.random.choice([b"", b"", b"a"]))

    def attend(self, both):
        layer = self.random.randrange(5)
        self.pair.attend(both, layer, self.random.choice([1, 1, 2, 5, 70]))

    def drop(self, both):
        self.pair.drop(self.random.choice([None, 1, 10_000]))


def run(seed, operations, setting):
    """So many operations; names of what was done, and how many were refused."""
    walk = Walk(setting, seed)
    for number in range(operations):
        try:
            walk.step()
        except Exception as error:
            error.args = (f"seed {seed} operation {number}: {error}", *error.args[1:])
            raise
    refusals = walk.pair.refusals
    walk.pair.close()
    return walk.done, refusals


def main():
    """As many caches as it takes, each for a hundred thousand operations."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--operations", type=int, default=1_000_000, help="default 1000000")
    parser.add_argument("--seed", type=int, default=0, help="of the first cache (default 0)")
    args = parser.parse_args()
    done, refusals, seed = Counter(), 0, args.seed
    began = time.perf_counter()
    while done.total() < args.operations:
        operations = min(args.operations - done.total(), 100_000)
        some, refused = run(seed, operations, SETTINGS[seed % len(SETTINGS)])
        done += some
        refusals += refused
        seed += 1
    seconds = time.perf_counter() - began
    print(", ".join(f"{name} {count}" for name, count in done.most_common()))
    print(
        f"seeds {args.seed} to {seed - 1}: {done.total()} operations in {seconds:.1f} s "
        f"({done.total() / seconds:.0f} a second), {refusals} refused by cache and model alike"
    )


if __name__ == "__main__":
    main()
