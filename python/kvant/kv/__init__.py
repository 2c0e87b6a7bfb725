"""Caches of keys and values: compressed, in pages, attended over where they lie."""

from kvant.kv.cache import KVCache, KVStats
from kvant.kv.calibration import KVCalibration, calibrate
from kvant.kv.codecs import CODECS, KVSide
from kvant.kv.eviction import ExpectedAttention, Head, KeyDiff, Scorer, SnapKV, StreamingLLM
from kvant.kv.prefix import PrefixIndex
from kvant.kv.presets import PRESETS, KVPolicy, KVPreset
from kvant.kv.rope import KVRope
from kvant.kv.sequence import KVSequence
from kvant.kv.stateless import attention, merge_lse

__all__ = [
    "CODECS",
    "PRESETS",
    "ExpectedAttention",
    "Head",
    "KVCache",
    "KVCalibration",
    "KVPolicy",
    "KVPreset",
    "KVRope",
    "KVSequence",
    "KVSide",
    "KVStats",
    "KeyDiff",
    "PrefixIndex",
    "Scorer",
    "SnapKV",
    "StreamingLLM",
    "attention",
    "calibrate",
    "merge_lse",
]
