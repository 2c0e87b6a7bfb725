"""What takes tokens out of the middle of a sequence, or moves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from kvant.kv.eviction import Kept, Scorer, evict
from kvant.kv.rope import Ropes
from kvant.kv.selection import remove, shift

if TYPE_CHECKING:
    from kvant.kv.sequence import KVSequence

__all__ = ["Changes"]


class Changes:
    """Methods of `KVSequence`."""

    def remove(
        self, start: int, stop: int, rope: Ropes = None, *, threads: int | None = None
    ) -> None:
        """Forget tokens start .. stop - 1 of every layer; later ones move forward.

        Values, and keys that are not turned, keep their codes. What comes behind the gap is still
        what it became with the others before it: what llama.cpp calls a context shift.

        Parameters
        ----------
        start, stop
            Positions, stop at most `length`.
        rope
            How positions are in keys: a `KVRope`, or one or None for each layer
            (`kvant.models.Model.kv_rope`). Keys behind the gap are decoded, turned back by
            stop - start positions and coded again, which costs an error of the codec each time.
            None where keys have no positions in them.
        threads
            At most this many; the set number by default.

        Raises
        ------
        FormatError
            Keys are coded channel by channel (`kivi4`, `kivi2`) and stay in their groups.
        ShapeError
            There are not such tokens, some of them or tokens behind were evicted, a window has let
            go of tokens that would be seen again, or a key is too large for its codec once turned.
        CacheFullError
            Pages that are shared have to be copied, and the budget has no room.

        Examples
        --------
        >>> import numpy as np
        >>> from kvant.kv import KVCache
        >>> seq = KVCache(layers=1, kv_heads=1, head_dim=32, v="f16").sequence()
        >>> x = np.arange(100, dtype=np.float32)[:, None, None].repeat(32, 2)
        >>> seq.append(0, x, x)
        >>> seq.remove(4, 60)
        >>> seq.length, seq.values(0)[3:6, 0].tolist()
        (44, [3.0, 60.0, 61.0])
        """
        remove(cast("KVSequence", self), start, stop, rope, threads)

    def shift(
        self,
        by: int,
        rope: Ropes,
        start: int = 0,
        stop: int | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        """Turn keys of tokens start .. stop - 1 by `by` positions, where they are.

        For keys whose positions in them are not their places in the sequence. Arguments and errors
        are those of `remove`; by default all tokens are turned.
        """
        shift(cast("KVSequence", self), by, rope, start, stop, threads)

    def evict(
        self,
        scorer: Scorer,
        keep: float,
        layers: Sequence[int] | None = None,
        *,
        sink: int = 0,
        recent: int = 0,
        shared: bool = False,
        floor: float = 0.2,
        threads: int | None = None,
    ) -> Kept:
        """Let go of the tokens that a scorer finds least worth keeping, of each head its own.

        Tokens that come later keep their positions; `length` stays. What can be done with earlier
        ones ends here: queries before the last token and `truncate` to before are refused. Pages
        hold 64 tokens, so a multiple of 64 leaves none half empty.

        Parameters
        ----------
        scorer
            `kvant.kv.StreamingLLM`, `SnapKV`, `KeyDiff`, `ExpectedAttention`, or any object with
            their method `scores`.
        keep
            Tokens that a head keeps: a number, or below 1 a share of those that it holds.
        layers
            Which; all without a window or chunks by default, which let go by themselves.
        sink, recent
            So many first and last tokens of a head stay in any case, within `keep`.
        shared
            Heads of a layer share what they keep together: all of its best tokens stay, and of
            each head at least `floor` of its own part (AdaKV, Feng et al. 2024).
        floor
            See there.
        threads
            At most this many; the set number by default.

        Returns
        -------
        dict of int to list of int64 [n]
            For each layer the tokens that each head kept, as numbers of those that it held: their
            positions, as long as nothing was evicted before.

        Raises
        ------
        FormatError
            Keys are coded channel by channel (`kivi4`, `kivi2`) and stay in their groups.
        ShapeError
            `keep` is out of range, a layer has a window or keys of another, scores are not [T], or
            another thread appended meanwhile.
        CacheFullError
            Pages that are shared have to be copied, and the budget has no room.

        Examples
        --------
        >>> import numpy as np
        >>> from kvant.kv import KVCache, StreamingLLM
        >>> cache = KVCache(layers=1, kv_heads=1, head_dim=32)
        >>> seq, x = cache.sequence(), np.ones((640, 1, 32), np.float32)
        >>> seq.append(0, x, x)
        >>> before = cache.nbytes
        >>> seq.evict(StreamingLLM(sink=4), 128)[0][0][[0, 3, 4, 127]].tolist()
        [0, 3, 516, 639]
        >>> seq.length, seq.held(0), before // cache.nbytes
        (640, 128, 5)
        """
        seq = cast("KVSequence", self)
        return evict(seq, scorer, keep, layers, sink, recent, shared, floor, threads)
