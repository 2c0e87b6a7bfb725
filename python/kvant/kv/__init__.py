"""Caches of keys and values: compressed, in pages, attended over where they lie."""

from kvant.kv.cache import KVCache, KVStats
from kvant.kv.calibration import KVCalibration, calibrate
from kvant.kv.codecs import CODECS, KVSide
from kvant.kv.prefix import PrefixIndex
from kvant.kv.presets import PRESETS, KVPolicy, KVPreset
from kvant.kv.sequence import KVSequence
from kvant.kv.stateless import attention, merge_lse

__all__ = [
    "CODECS",
    "PRESETS",
    "KVCache",
    "KVCalibration",
    "KVPolicy",
    "KVPreset",
    "KVSequence",
    "KVSide",
    "KVStats",
    "PrefixIndex",
    "attention",
    "calibrate",
    "merge_lse",
]
