"""Several sequences of a cache in one call, each with as many tokens as it has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import index
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from kvant import _core
from kvant.errors import ShapeError
from kvant.kv.arguments import query_of, rows_of

if TYPE_CHECKING:
    from kvant.kv.cache import KVCache
    from kvant.kv.sequence import KVSequence

__all__ = ["Batches"]

Array = NDArray[np.float32]


class Batches:
    """Methods of `KVCache`."""

    _core: _core.KvCache

    def append_many(
        self,
        layer: int,
        sequences: Sequence[KVSequence],
        k: Any,
        v: Any = None,
        counts: Any = None,
        *,
        threads: int | None = None,
    ) -> None:
        """Add keys and values of the next tokens of several sequences to a layer: all or none.

        Each sequence is then what `KVSequence.append` makes of it.

        Parameters
        ----------
        layer
            Which one; it has keys of its own.
        sequences
            Of this cache, each once.
        k, v
            f32, f16 or bf16 [sum of counts, kv_heads, head_dim] and value_dim: the tokens of the
            first sequence, then those of the second; no v where values are a view of keys.
        counts : integers, optional
            Tokens of each sequence; None for as many each.
        threads
            At most this many; the set number by default.

        Raises
        ------
        ShapeError
            A shape does not fit, a number is NaN, infinite or too large for its codec, or a
            sequence comes twice or is of another cache.
        CacheFullError
            The budget has no room for all, with published prefixes let go of. All sequences are
            then as they were, as after all errors. Forks that share a page both have to copy it.

        Examples
        --------
        >>> import numpy as np
        >>> from kvant.kv import KVCache
        >>> cache = KVCache(layers=1, kv_heads=1, head_dim=32)
        >>> a, b = cache.sequence(), cache.sequence()
        >>> x = np.ones((5, 1, 32), np.float32)
        >>> cache.append_many(0, [a, b], x, x, counts=[4, 1])
        >>> a.length, b.length
        (4, 1)
        """
        cache = cast("KVCache", self)
        given = rows_of("append_many", cache, layer, k, v)
        each = _counts("append_many", cache, sequences, len(given.k), counts)
        cores = [sequence._core for sequence in sequences]
        bad = cache.prefixes.with_room(
            lambda: _core.kv_append_many(self._core, cores, each, *given, threads or 0)
        )
        if bad >= 0:
            row, head = divmod(bad, cache.shapes[layer].kv_heads)
            ends = list(accumulate(each))
            number = next(i for i, end in enumerate(ends) if row < end)
            token = row - (ends[number] - each[number])
            raise ShapeError(
                f"[append_many] expected finite numbers in reach of {cache.codecs(layer)}, got one "
                f"that is not in sequence {number}, at position "
                f"{sequences[number].layer_length(layer) + token} (token {token}, head {head})"
            )

    def attend_many(
        self,
        layer: int,
        sequences: Sequence[KVSequence],
        q: Any,
        counts: Any = None,
        scale: float | None = None,
        causal: bool = True,
        lse: bool = False,
        out: Array | None = None,
        *,
        softcap: float = 0.0,
        sinks: Array | None = None,
        exact: bool = False,
        threads: int | None = None,
    ) -> Any:
        """Attention of the last tokens of several sequences, each over its own keys.

        Each result is bit for bit that of `KVSequence.attend`. The work of all is shared by all
        threads: one call for a batch is faster than one for each of its sequences, the more so the
        shorter they are.

        Parameters
        ----------
        layer
            Which one.
        sequences
            Of this cache; one may come twice.
        q
            f32 [sum of counts, heads, head_dim]: the last tokens of the first sequence, then those
            of the second.
        counts : integers, optional
            Tokens of each sequence; None for as many each.
        scale, causal, lse, out, softcap, sinks, exact, threads
            As for `KVSequence.attend`, the same for all.

        Returns
        -------
        ndarray or (ndarray, ndarray)
            f32 [sum of counts, heads, value_dim], and with `lse` f32 [sum of counts, heads].

        Raises
        ------
        ShapeError
            As for `KVSequence.attend`, with the number of the sequence; or a sequence is of another
            cache. Nothing is written to `out`.

        Examples
        --------
        >>> import numpy as np
        >>> from kvant.kv import KVCache
        >>> cache = KVCache(layers=1, kv_heads=1, head_dim=32, v="f16")
        >>> a, b = cache.sequence(), cache.sequence()
        >>> x = np.ones((5, 1, 32), np.float32)
        >>> v = np.arange(5, dtype=np.float32)[:, None, None].repeat(32, 2)
        >>> cache.append_many(0, [a, b], x, v, counts=[4, 1])
        >>> cache.attend_many(0, [a, b], x[:3], counts=[2, 1])[:, 0, 0].tolist()
        [1.0, 1.5, 4.0]
        """
        cache = cast("KVCache", self)
        given = query_of("attend_many", cache, layer, q, scale, causal, lse, out, sinks)
        each = _counts("attend_many", cache, sequences, len(given.q), counts)
        _core.kv_attend_many(
            self._core,
            [sequence._core for sequence in sequences],
            each,
            given.place,
            given.q,
            given.scale,
            softcap,
            causal,
            exact,
            given.sinks,
            given.out,
            given.sums,
            threads or 0,
        )
        return given.result


def _counts(
    function: str, cache: KVCache, sequences: Sequence[KVSequence], tokens: int, counts: Any
) -> list[int]:
    """Tokens of each sequence."""
    for number, sequence in enumerate(sequences):
        if sequence.cache is not cache:
            raise ShapeError(
                f"[{function}] expected sequences of this cache, got one of another at {number}"
            )
    if counts is None:
        each, rest = divmod(tokens, len(sequences)) if sequences else (0, tokens)
        if rest:
            raise ShapeError(
                f"[{function}] expected as many tokens for each of {len(sequences)} sequences, "
                f"got {tokens}; counts says how many each has"
            )
        return [each] * len(sequences)
    given = [index(count) for count in counts]
    if len(given) != len(sequences) or sum(given) != tokens or min(given, default=0) < 0:
        raise ShapeError(
            f"[{function}] expected counts of {len(sequences)} sequences that add up to {tokens} "
            f"tokens, got {given}"
        )
    return given
