"""What a cache holds, as lists: pages are numbers with a count of references, tokens are numbers.

Says of every operation of `KVCache` whether it is refused, and how many bytes are in use behind it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field, replace

PAGE = 64
ROLLBACK = 64


class RefusedError(Exception):
    """The operation raises ShapeError."""


class FullError(Exception):
    """The operation raises CacheFullError."""


def pages_of(tokens):
    return -(-tokens // PAGE)


@dataclass(frozen=True)
class ModelLayer:
    """Heads, bytes of a page and of one of exact tokens, what is kept, and tokens coded at once."""

    heads: int
    page_bytes: int
    exact_bytes: int
    window: int | None = None
    sink: int = 0
    tail: int = 0
    chunk: int | None = None
    group: int = 1

    @property
    def near(self):
        """Whether pages of exact tokens are kept."""
        return self.tail > 0 or self.group > 1

    def first_seen(self, end):
        """The first token that one sees who sees none from `end` on."""
        window = end - self.window if self.window else 0
        return max(window, (end - 1) // self.chunk * self.chunk if self.chunk else 0, 0)


class Pool:
    """Pages in use under a budget."""

    def __init__(self, budget):
        self.budget = budget
        self.used = self.made = 0
        self.references = Counter()
        self.bytes = {}

    def take(self, nbytes):
        self.made += 1
        self.references[self.made] = 1
        self.bytes[self.made] = nbytes
        self.used += nbytes
        return self.made

    def drop(self, pages):
        for page in pages:
            self.references[page] -= 1
            if not self.references[page]:
                del self.references[page]
                self.used -= self.bytes.pop(page)

    def fits(self, nbytes):
        return self.budget is None or self.used + nbytes <= self.budget


@dataclass
class Pages:
    """Of one layer; those of its heads are alike and counted as one.

    ids     the token in each place
    moved   whether some came from others, with or without their exact copies
    """

    length: int = 0
    missing: int = 0
    settled: int = 0
    moved: bool = False
    ids: list[int] = field(default_factory=list)
    first: int = 0
    body: list[int] = field(default_factory=list)
    first_exact: int = 0
    exact: list[int] = field(default_factory=list)
    sinks: list[int] = field(default_factory=list)
    # Groups that opened again after their exact tokens were gone: what they hold is near it.
    reopened: list[int] = field(default_factory=list)

    def copy(self):
        names = ("ids", "body", "exact", "sinks", "reopened")
        lists = {name: getattr(self, name)[:] for name in names}
        return replace(self, **lists)

    @property
    def end(self):
        return self.length + self.missing

    def owns(self, pool, pages, place):
        """Whether there is a page at a place that nobody else holds."""
        return 0 <= place < len(pages) and pool.references[pages[place]] == 1


class ModelSequence:
    """Tokens, of which each layer holds the first so many, and their pages."""

    def __init__(self, layers, pool):
        self.layers, self.pool = layers, pool
        self.tokens = []
        self.changed = None
        self.pages = [Pages() for _ in layers]

    @property
    def length(self):
        return min(pages.end for pages in self.pages)

    @property
    def computed(self):
        """First tokens that are what a new sequence would compute."""
        return self.length if self.changed is None else min(self.length, self.changed)

    def free(self):
        for own in self.pages:
            self.pool.drop(own.body + own.exact + own.sinks)
        self.pages = [Pages() for _ in self.layers]

    def fork(self):
        copy = ModelSequence(self.layers, self.pool)
        copy.tokens, copy.changed = self.tokens[:], self.changed
        copy.pages = [own.copy() for own in self.pages]
        for own in copy.pages:
            self.pool.references.update(own.body + own.exact + own.sinks)
        return copy

    def truncate(self, length):
        for layer, own in zip(self.layers, self.pages, strict=True):
            if not 0 <= length <= own.end:
                raise RefusedError
            if length and own.missing and length < own.settled + own.missing:
                raise RefusedError
            if length and layer.first_seen(length + 1) < own.first * PAGE:
                raise RefusedError
        opened = [self._opens(*each, length) for each in zip(self.layers, self.pages, strict=True)]
        need = 0
        for layer, own, opens in zip(self.layers, self.pages, opened, strict=True):
            if opens and not own.owns(self.pool, own.exact, len(own.exact) - 1):
                need += layer.exact_bytes * layer.heads
        if need and not self.pool.fits(need):
            raise FullError
        for layer, own, opens in zip(self.layers, self.pages, opened, strict=True):
            if opens:
                self._cut(own.exact, 0)
                own.exact.append(self.pool.take(layer.exact_bytes * layer.heads))
                own.first_exact = length // PAGE
            self._cut_pages(layer, own, length - own.missing if length else 0)
            own.reopened = [group for group in own.reopened if group // PAGE * PAGE < length]
            if opens or any(group // PAGE == length // PAGE for group in own.reopened):
                own.reopened.append(length // layer.group * layer.group)
        del self.tokens[length:]
        if self.changed is not None and length <= self.changed:
            self.changed = None

    def remove(self, start, stop):
        """Tokens start .. stop - 1, of all layers."""
        if not 0 <= start <= stop <= self.length:
            raise RefusedError
        if start == stop:
            return
        kept = []
        for own in self.pages:
            first = start - own.missing
            if own.missing and first < own.settled:
                raise RefusedError
            kept.append([*range(first), *range(stop - own.missing, own.length)])
        self._select(kept, False)
        del self.tokens[start:stop]
        self.changed = start if self.changed is None else min(start, self.changed)

    def evict(self, kept):
        """All but these places of each layer; None for all."""
        self._select(kept, True)
        self.changed = 0

    def _select(self, kept, evict):
        plans = []
        for layer, own, places in zip(self.layers, self.pages, kept, strict=True):
            if layer.group > 1 and places is not None and len(places) < own.length:
                raise RefusedError
            if places is not None:
                plans.append((layer, own, places, self._planned(layer, own, places)))
        need = sum(layer.heads * each[1] for layer, _, _, plan in plans for each in plan or ())
        if not self.pool.fits(need):
            raise FullError
        for layer, own, places, plan in plans:
            if evict and len(places) < own.length:
                own.missing += own.length - len(places)
                own.settled = len(places)
            if plan is None:
                self._cut_pages(layer, own, len(places))
                continue
            own.moved = True
            own.ids, own.length = [own.ids[place] for place in places], len(places)
            for (fresh, nbytes, first), name in zip(plan, ("body", "exact", "sinks"), strict=True):
                before = getattr(own, name)
                each = nbytes // max(sum(page is None for page in fresh), 1) * layer.heads
                after = [self.pool.take(each) if page is None else page for page in fresh]
                self.pool.drop([page for page in before if page not in after])
                setattr(own, name, after)
                if name != "sinks":
                    setattr(own, "first" if name == "body" else "first_exact", first)

    def _planned(self, layer, own, places):
        """Pages (None for new ones), bytes of new ones and number of the first; None to cut."""
        length = len(places)
        same = next((i for i, place in enumerate(places) if i != place), length)
        there = bisect_left(places, own.first * PAGE)
        first = pages_of(there) if same < length else own.first
        if length and first * PAGE > layer.first_seen(length + 1):
            raise RefusedError
        if same == length:
            return None

        def run(pages, count, stay, nbytes):
            out = []
            for i in range(count):
                reused = i < stay or own.owns(self.pool, pages, i)
                out.append(pages[i] if reused else None)
            return out, nbytes * sum(page is None for page in out)

        end = pages_of(length)
        stay = same // PAGE - first if first == own.first else 0
        body = run(own.body, end - first, stay, layer.page_bytes)
        exact_first = max(length - layer.tail - ROLLBACK, 0) // PAGE if layer.tail else 0
        count = end - exact_first if layer.tail else 0
        exact = run(own.exact, count, 0, layer.exact_bytes)
        sinks = min(end, pages_of(layer.sink))
        stay = sinks if same >= min(layer.sink, length) else 0
        sinks = run(own.sinks, sinks, stay, layer.exact_bytes)
        return (*body, first), (*exact, exact_first), (*sinks, 0)

    def _cut_pages(self, layer, own, length):
        last = pages_of(length)
        self._cut(own.body, last - own.first)
        self._cut(own.exact, last - own.first_exact)
        if not own.exact:
            own.first_exact = last
        self._cut(own.sinks, min(last, pages_of(layer.sink)))
        own.length = length
        del own.ids[length:]
        if not length:
            own.first = own.first_exact = own.missing = own.settled = 0
            own.moved = False

    def grow(self, number, count, commit=True):
        """Append so many tokens to a layer; not commit: the bytes it takes if no row is refused."""
        if not count:
            return 0
        layer, own = self.layers[number], self.pages[number]
        before = own.length
        end = pages_of(before + count)
        runs = [(own.body, own.first, layer.page_bytes, end)]
        if layer.near:
            runs.append((own.exact, own.first_exact, layer.exact_bytes, end))
        if own.length < layer.sink:
            runs.append((own.sinks, 0, layer.exact_bytes, min(end, pages_of(layer.sink))))
        plans = [self._plan(own.length, *run) for run in runs]
        need = sum(nbytes * (copied + new) for _, nbytes, copied, new in plans)
        if not self.pool.fits(need * layer.heads):
            raise FullError
        if not commit:
            return need * layer.heads
        for pages, nbytes, copied, new in plans:
            if copied:
                self.pool.drop([pages.pop()])
            pages += [self.pool.take(nbytes * layer.heads) for _ in range(copied + new)]
        own.length += count
        self._let_go(layer, own, before)
        return need * layer.heads

    def sees_all_exactly(self, number, queries):
        """Whether no rollback took away exact tokens that the last queries see."""
        layer, own = self.layers[number], self.pages[number]
        end = own.length - queries + 1
        first = max(min(end - layer.tail, end - end % layer.group), 0)
        return not layer.near or (own.first_exact * PAGE <= first and not own.reopened)

    def attend(self, number, queries):
        """RefusedError where the last queries see what a window has let go of."""
        layer, own = self.layers[number], self.pages[number]
        if queries > own.length or (own.missing and queries > own.length - own.settled + 1):
            raise RefusedError
        if layer.first_seen(own.length - queries + 1) < own.first * PAGE:
            raise RefusedError

    def _opens(self, layer, own, length):
        """Whether a cut leaves a page of which the exact tokens are gone."""
        return layer.group > 1 and length % PAGE and length // PAGE < own.first_exact

    def _plan(self, length, pages, first, nbytes, end):
        behind = first + len(pages)
        partial = bool(pages) and length % PAGE and length // PAGE == behind - 1
        copied = int(bool(partial) and self.pool.references[pages[-1]] > 1)
        return pages, nbytes, copied, max(end - behind, 0)

    def _let_go(self, layer, own, length):
        first = layer.first_seen(max(length - ROLLBACK, 0)) // PAGE
        if first > own.first:
            self._shift(own.body, first - own.first)
            own.first = first
        if layer.near:
            first = max(length - layer.tail - ROLLBACK, 0) // PAGE
            if first > own.first_exact:
                self._shift(own.exact, first - own.first_exact)
                own.first_exact = first

    def _shift(self, pages, count):
        self.pool.drop(pages[:count])
        del pages[:count]

    def _cut(self, pages, kept):
        kept = max(kept, 0)
        self.pool.drop(pages[kept:])
        del pages[kept:]


class ModelIndex:
    """Published prefixes: as they came, and the least recently used first."""

    def __init__(self, layers):
        self.plain = not any(layer.window or layer.chunk or layer.tail for layer in layers)
        self.kept, self.used = [], []

    def drop_oldest(self):
        if self.used:
            self._remove(self.used[0])
            return True
        return False

    def publish(self, seq, tokens, extra):
        length = min(len(tokens), seq.computed) // PAGE * PAGE
        if not length:
            return 0
        for entry in self.kept:
            if self._covers(entry, tokens, length, extra) and (
                self.plain or entry[1].length == length
            ):
                self._touch(entry)
                return length
        fork = seq.fork()
        try:
            fork.truncate(length)
        except RefusedError:
            fork.free()
            return 0
        for entry in self.kept[:] if self.plain else ():
            if entry[0] == extra and entry[1].tokens == tokens[: entry[1].length]:
                self._remove(entry)
        self.kept.append((extra, fork))
        self.used.append(self.kept[-1])
        return length

    def match(self, tokens, extra):
        """A fork of the longest prefix, or None."""
        for length in range((len(tokens) - 1) // PAGE * PAGE, 0, -PAGE):
            fitting = [e for e in self.kept if self._covers(e, tokens, length, extra)]
            for entry in sorted(fitting, key=lambda entry: entry[1].length):
                fork = entry[1].fork()
                try:
                    fork.truncate(length)
                except RefusedError:
                    fork.free()
                    continue
                self._touch(entry)
                return fork
        return None

    def _covers(self, entry, tokens, length, extra):
        own = entry[1].tokens
        return entry[0] == extra and len(own) >= length and own[:length] == tokens[:length]

    def _touch(self, entry):
        self.used.remove(entry)
        self.used.append(entry)

    def _remove(self, entry):
        self.kept.remove(entry)
        self.used.remove(entry)
        entry[1].free()
