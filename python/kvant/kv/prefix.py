"""Prefixes that sequences of a cache share: whole pages, found by chained hashes of their tokens.

After vLLM's automatic prefix caching (Kwon et al. 2023): the hash of a page covers its tokens and
the hash of the page before, so that it names all tokens up to its end.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvant.errors import CacheFullError, ShapeError
from kvant.kv.sequence import KVSequence

if TYPE_CHECKING:
    from kvant.kv.cache import KVCache

__all__ = ["PAGE_TOKENS", "PrefixIndex"]

PAGE_TOKENS = 64
_PAGE_BYTES = 4 * PAGE_TOKENS
_DIGEST_BYTES = 16

Tokens = Sequence[int] | NDArray[np.integer[Any]]
T = TypeVar("T")


class _Prefix:
    """A sequence of whole pages that is kept, and the hash of each of them.

    It is the native sequence that is kept: Python's would hold the cache, which holds the index.
    """

    def __init__(self, native: Any, digests: list[bytes]) -> None:
        self.native = native
        self.digests = digests


class PrefixIndex:
    """Prefixes of a cache's sequences, for others that begin with the same tokens.

    Made by `KVCache.prefixes`. A published prefix holds its pages until it is dropped: by `drop`,
    or, the least recently used first, where an append finds the cache's budget used up.

    A match has the bits of a sequence that computed all tokens itself, with two bounds. Layers
    with a window keep what a rollback of 64 tokens needs, so that a prefix much longer than the
    match cannot serve it: publish each length that others shall begin with. Where a policy keeps
    a tail, tokens more than 64 before the end of the published prefix are seen as they are coded.

    Calls of several threads are served one after the other.

    Examples
    --------
    >>> import numpy as np
    >>> from kvant.kv import KVCache
    >>> cache = KVCache(layers=1, kv_heads=1, head_dim=32)
    >>> seq, prompt = cache.sequence(), np.arange(200)
    >>> x = np.ones((200, 1, 32), np.float32)
    >>> seq.append(0, x, x)
    >>> cache.prefixes.publish(seq, prompt)
    192
    >>> other, found = cache.prefixes.match([*range(150), 7, 7, 7])
    >>> found, other.length
    (128, 128)
    >>> cache.prefixes.match(prompt[:128])[1], cache.prefixes.match(prompt, extra=b"adapter")[1]
    (64, 0)
    """

    def __init__(self, cache: KVCache) -> None:
        # The cache holds its index; were it held in turn, memory would wait for the collector.
        self._cache = weakref.ref(cache)
        # Shorter ones may stand in for longer ones that hold all their pages.
        self._plain = not cache.policy.tail and all(s.sees_all for s in cache.shapes)
        self._prefixes: dict[_Prefix, None] = {}  # the least recently used first
        self._pages: dict[bytes, list[_Prefix]] = {}
        self._lock = RLock()

    def __len__(self) -> int:
        """How many prefixes are kept."""
        return len(self._prefixes)

    def publish(self, seq: KVSequence, tokens: Tokens, *, extra: bytes = b"") -> int:
        """Keep the whole pages of a sequence.

        Parameters
        ----------
        seq
            A sequence of the cache.
        tokens
            Ids of its tokens, below 2^32; what is not yet computed, or not given, is left out, as
            is all behind tokens that were removed, turned or evicted.
        extra
            What keys and values depend on besides: the name of an adapter, a hash of images.

        Returns
        -------
        int
            Tokens that can be matched from now on; 0 where a window has let go of what a sequence
            of whole pages would see.

        Raises
        ------
        ShapeError
            Tokens are no ids, or the sequence is one of another cache.
        """
        if seq.cache is not self._cache():
            raise ShapeError("[publish] expected a sequence of the index's cache, got another's")
        data = _bytes_of("publish", tokens)
        # Of a copy: another thread may change the sequence meanwhile.
        fork = seq.fork()
        length = fork.length if fork._changed is None else min(fork.length, fork._changed)
        pages = min(len(data) // _PAGE_BYTES, length // PAGE_TOKENS)
        digests = list(_digests(data, pages, extra))
        if not digests:
            return 0
        with self._lock:
            length = len(digests) * PAGE_TOKENS
            for known in self._pages.get(digests[-1], ()):
                if self._plain or len(known.digests) == len(digests):
                    self._touch(known)
                    return length
            try:
                fork.truncate(length)
            except ShapeError:
                return 0
            if self._plain:
                self._drop_covered(digests)
            prefix = _Prefix(fork._core, digests)
            self._prefixes[prefix] = None
            for digest in digests:
                self._pages.setdefault(digest, []).append(prefix)
        return length

    def match(self, tokens: Tokens, *, extra: bytes = b"") -> tuple[KVSequence, int]:
        """A sequence that begins with the longest prefix of `tokens` that was published.

        Parameters
        ----------
        tokens
            Ids, below 2^32. At least the last of them is left to be computed: attention over it
            gives the next token.
        extra
            As it was published.

        Returns
        -------
        (KVSequence, int)
            A new sequence that shares the prefix's pages, and its length: a multiple of 64, 0 where
            there is no such prefix.

        Raises
        ------
        ShapeError
            Tokens are no ids, or the cache is there no more.
        """
        cache = self._cache()
        if cache is None:
            raise ShapeError("[match] expected an index of a cache, got one whose cache is gone")
        data = _bytes_of("match", tokens)
        with self._lock:
            found: list[list[_Prefix]] = []
            for digest in _digests(data, (len(data) // 4 - 1) // PAGE_TOKENS, extra):
                prefixes = self._pages.get(digest)
                if prefixes is None:
                    break
                found.append(prefixes)
            tried = set()
            # A prefix that cannot be cut to a length cannot be cut to a shorter one either.
            for pages in range(len(found), 0, -1):
                fresh = [prefix for prefix in found[pages - 1] if prefix not in tried]
                for prefix in sorted(fresh, key=lambda prefix: len(prefix.digests)):
                    tried.add(prefix)
                    seq = KVSequence(cache, prefix.native.fork())
                    try:
                        seq.truncate(pages * PAGE_TOKENS)
                    except ShapeError:
                        continue
                    self._touch(prefix)
                    return seq, pages * PAGE_TOKENS
        return cache.sequence(), 0

    def drop(self, nbytes: int | None = None) -> int:
        """Let go of prefixes, the least recently used first.

        Parameters
        ----------
        nbytes
            Until so many bytes of pages are free again; None for all prefixes. Pages that
            sequences share stay.

        Returns
        -------
        int
            Bytes that are free again.
        """
        cache = self._cache()
        with self._lock:
            freed = 0
            while self._prefixes and (nbytes is None or freed < nbytes):
                before = cache.nbytes if cache else 0
                self._remove(next(iter(self._prefixes)))
                freed += before - cache.nbytes if cache else 0
        return freed

    def drop_oldest(self) -> bool:
        """Let go of the least recently used prefix; whether there was one."""
        with self._lock:
            for prefix in self._prefixes:
                self._remove(prefix)
                return True
        return False

    def with_room(self, call: Callable[[], T]) -> T:
        """What the call gives, with prefixes let go of where they take the room.

        Raises
        ------
        CacheFullError
            There is no room, and no prefix is left.
        """
        while True:
            try:
                return call()
            except CacheFullError:
                if not self.drop_oldest():
                    raise

    def _touch(self, prefix: _Prefix) -> None:
        del self._prefixes[prefix]
        self._prefixes[prefix] = None

    def _drop_covered(self, digests: list[bytes]) -> None:
        """Let go of prefixes of the one with these digests."""
        covered = {
            prefix
            for pages, digest in enumerate(digests, 1)
            for prefix in self._pages.get(digest, ())
            if len(prefix.digests) == pages
        }
        for prefix in covered:
            self._remove(prefix)

    def _remove(self, prefix: _Prefix) -> None:
        del self._prefixes[prefix]
        for digest in prefix.digests:
            prefixes = self._pages[digest]
            prefixes.remove(prefix)
            if not prefixes:
                del self._pages[digest]


def _bytes_of(function: str, tokens: Tokens) -> bytes:
    """Token ids as 32-bit words, little-endian."""
    ids = np.asarray(tokens)
    if ids.ndim == 1 and not ids.size:
        return b""
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ShapeError(
            f"[{function}] expected tokens [T] of whole numbers, got {ids.dtype} {ids.shape}"
        )
    small = ids.dtype.kind == "u" and ids.itemsize <= 4
    if not small and (ids.min() < 0 or ids.max() >= 1 << 32):
        raise ShapeError(
            f"[{function}] expected tokens from 0 to 2^32 - 1, got {ids.min()} to {ids.max()}"
        )
    return ids.astype("<u4").tobytes()


def _digests(data: bytes, pages: int, extra: bytes) -> Iterator[bytes]:
    """The hash of each of the first pages of tokens."""
    digest = blake2b(extra, digest_size=_DIGEST_BYTES).digest()
    for at in range(0, pages * _PAGE_BYTES, _PAGE_BYTES):
        digest = blake2b(digest + data[at : at + _PAGE_BYTES], digest_size=_DIGEST_BYTES).digest()
        yield digest
