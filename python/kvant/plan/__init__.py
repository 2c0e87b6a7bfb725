"""What a model needs to run: bytes of weights, caches and states, what fits where, and how fast.

>>> from kvant import plan
>>> model = plan.read("Qwen3.5 27B")
>>> plan.kv_bytes(model.layers, 262144) >> 20, plan.state_bytes(model.layers, 4) / 2**20
(16384, 598.5)
"""

from __future__ import annotations

from .cache import cells, kv_bytes, state_bytes
from .configs import MODEL_TYPES, from_config
from .devices import DEVICES, Device, device, host
from .families import FAMILIES, Family, family
from .fit import Verdict, fit, most_context, seconds_per_token
from .layers import Layer, layers_of
from .memory import Memory, Use, compute_bytes, memory
from .model import Model, from_gguf
from .report import Plan, make
from .source import read
from .weights import AS_IS, Part, Weights, weights

__all__ = [
    "AS_IS",
    "DEVICES",
    "FAMILIES",
    "MODEL_TYPES",
    "Device",
    "Family",
    "Layer",
    "Memory",
    "Model",
    "Part",
    "Plan",
    "Use",
    "Verdict",
    "Weights",
    "cells",
    "compute_bytes",
    "device",
    "family",
    "fit",
    "from_config",
    "from_gguf",
    "host",
    "kv_bytes",
    "layers_of",
    "make",
    "memory",
    "most_context",
    "read",
    "seconds_per_token",
    "state_bytes",
    "weights",
]
