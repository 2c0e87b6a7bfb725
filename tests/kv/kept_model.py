"""One head of a cache in plain NumPy: its tokens as rows of codes with exact copies beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kvant.kv.codecs import signs_of
from kvant.reference.attention import attend_heads, chain_scores, mix_floats
from kvant.reference.kv_attention import _with_exact, centered, code_scores, mix_codes
from kvant.reference.kv_codecs import FLOATS, Coded, decode, encode, rounded
from kvant.reference.ops import hadamard, rope

RULES = {"norm": "nc", "unbiased": "unb", "least": "ls"}
ROLLBACK = 64


@dataclass(frozen=True)
class ModelSide:
    """A codec and its transforms, and rows [T, dim] between the two."""

    side: object
    dim: int
    center: np.ndarray | None = None
    equalize: np.ndarray | None = None

    @property
    def quantized(self):
        return self.side.codec not in FLOATS

    @property
    def signs(self):
        block = self.side.rotation(self.dim)
        return None if self.side.signs is None or not block else signs_of(self.side.signs, block)

    def transform(self, x):
        x = x.astype(np.float32)
        if self.center is not None:
            x = x - self.center
        if self.equalize is not None:
            x = x * (np.float32(1) / self.equalize)
        block = self.side.rotation(self.dim)
        return hadamard(x, block, self.signs) if block else x

    def untransform(self, x):
        block = self.side.rotation(self.dim)
        if block:
            x = hadamard(np.ascontiguousarray(x), block, self.signs, inverse=True)
        if self.equalize is not None:
            x = x * self.equalize
        return x if self.center is None else x + self.center

    def stored(self, x):
        """Rows as they lie in a page."""
        if not self.quantized:
            return rounded(self.side.codec, x)
        return encode(self.side.codec, x, RULES[self.side.scale])

    def decoded(self, rows):
        return decode(rows, self.dim) if self.quantized else rows


def take(rows, at):
    if not isinstance(rows, Coded):
        return rows[at]
    return Coded(*(None if part is None else part[at] for part in rows))


def join(a, b):
    if not isinstance(b, Coded):
        return np.concatenate([a, b])
    return Coded(
        *(None if y is None else np.concatenate([x, y]) for x, y in zip(a, b, strict=True))
    )


@dataclass
class ModelHead:
    """Tokens of one head; `rows` as they lie, `exact` their copies in f16."""

    sides: tuple[ModelSide, ModelSide]
    sink: int = 0
    tail: int = 0
    missing: int = 0
    settled: int = 0
    copied: int = 0  # copies of the tail begin here; what was let go of does not come back
    rows: list = field(default_factory=lambda: [None, None])
    exact: list = field(default_factory=lambda: [None, None])

    @property
    def held(self):
        return 0 if self.exact[0] is None else len(self.exact[0])

    @property
    def end(self):
        return self.held + self.missing

    @property
    def near(self):
        """Tokens that the last query sees exactly."""
        places = np.arange(self.held)
        return (places < self.sink) | self.in_tail(places, self.held)

    def in_tail(self, places, end):
        """Of a query that sees tokens before `end`."""
        return (places >= end - self.tail) & (places >= self.copied) & (self.tail > 0)

    @property
    def first_copy(self):
        return max(self.held - self.tail - ROLLBACK, 0) // 64 * 64

    def append(self, *kv):
        self.copied = max(self.copied, self.first_copy)
        for number, (side, x) in enumerate(zip(self.sides, kv, strict=True)):
            x = side.transform(x)
            # Only what is or may be seen exactly has to be a number of f16.
            copy = x.astype(np.float16).astype(np.float32)
            fresh = self.exact[number] is None
            self.rows[number] = side.stored(x) if fresh else join(self.rows[number], side.stored(x))
            self.exact[number] = copy if fresh else np.concatenate([self.exact[number], copy])

    def truncate(self, length):
        at = np.arange(length - self.missing)
        self.rows = [take(rows, at) for rows in self.rows]
        self.exact = [exact[at] for exact in self.exact]
        self.copied = min(self.copied, -(-len(at) // 64) * 64)

    def select(self, kept, evict, begin=0, end=0, by=0, how=None):
        kept = np.asarray(kept)
        if evict and len(kept) < self.held:
            self.missing += self.held - len(kept)
            self.settled = len(kept)
        if np.array_equal(kept, np.arange(len(kept))) and how is None:
            self.truncate(len(kept) + self.missing)
            return
        near = self.near[kept]
        for number, side in enumerate(self.sides):
            rows = take(self.rows[number], kept)
            floats = side.decoded(rows)
            if side.quantized:
                floats = np.where(near[:, None], self.exact[number][kept], floats)
            if number == 0 and how is not None and begin < end:
                part = side.untransform(floats[begin:end])[:, None]
                turned = rope(part, np.full(end - begin, by), **how)[:, 0]
                floats = floats.copy()
                floats[begin:end] = side.transform(turned)
                middle = side.stored(floats[begin:end])
                parts = [take(rows, slice(0, begin)), middle, take(rows, slice(end, None))]
                rows = join(join(parts[0], parts[1]), parts[2])
            self.rows[number] = rows
            self.exact[number] = floats.astype(np.float16).astype(np.float32)
        self.copied = self.first_copy

    def contents(self, number):
        side = self.sides[number]
        return side.untransform(side.decoded(self.rows[number]))


def attend(heads, q, scale, causal=True, exact=False):
    """f32 [T, H, E] of the last T tokens of one layer's heads, the bits of the cache."""
    group = q.shape[1] // len(heads)
    parts = []
    for number, head in enumerate(heads):
        own = q[:, number * group : (number + 1) * group]
        parts.append(_attend(head, own, scale, causal, exact))
    return np.concatenate(parts, axis=1)


def _attend(head, q, scale, causal, exact):
    keys, values = head.sides
    tokens = len(q)
    places = head.held - tokens + np.arange(tokens)
    end = places + 1 if causal else np.full(tokens, head.held)
    token = np.arange(-(-head.held // 64) * 64)
    near = (token < head.sink) | head.in_tail(token, end[:, None])
    if not (keys.quantized or values.quantized):
        near = np.zeros_like(near)
    bias = None
    if keys.center is not None:
        terms = q.astype(np.float64) * keys.center.astype(np.float64)
        bias = np.cumsum(terms, axis=-1)[..., -1].astype(np.float32)
    if keys.equalize is not None:
        q = q * keys.equalize
    block = keys.side.rotation(keys.dim)
    if block:
        q = hadamard(np.ascontiguousarray(q), block, keys.signs)

    def prepare(_, own, rows):
        close = np.repeat(near, len(own), axis=0)
        coded = head.rows[0]
        if keys.quantized and not exact:
            scores = code_scores(rows, coded)
        else:
            scores = chain_scores(rows, keys.decoded(coded))
        if keys.quantized:
            seen = close[:, : head.held]
            scores = np.where(seen, chain_scores(rows, head.exact[0]), scores)
        if bias is not None:
            scores = scores + bias[:, own].reshape(-1, 1)
        scores = scores * np.float32(scale)
        if not values.quantized:
            return scores, mix_floats(head.rows[1])
        if exact:
            body = mix_floats(values.decoded(head.rows[1]))
        else:
            body = mix_codes(centered(values.side.codec, head.rows[1]))
        return scores, _with_exact(body, mix_floats(head.exact[1]), close)

    out, _ = attend_heads(q, 1, values.dim, np.zeros_like(end), end, None, prepare)
    block = values.side.rotation(values.dim)
    return hadamard(out, block, values.signs, inverse=True) if block else out
