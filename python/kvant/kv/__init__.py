"""Caches of keys and values: compressed, in pages, attended over where they lie."""

from kvant.kv.cache import KVCache, KVCalibration, KVPolicy, KVStats
from kvant.kv.codecs import CODECS, KVSide
from kvant.kv.sequence import KVSequence
from kvant.kv.stateless import attention, merge_lse

__all__ = [
    "CODECS",
    "KVCache",
    "KVCalibration",
    "KVPolicy",
    "KVSequence",
    "KVSide",
    "KVStats",
    "attention",
    "merge_lse",
]
